"""Forms of layers, from the table of latencies and the sensitivity."""

from __future__ import annotations

from typing import Any

import pytest

from qaf_core.errors import PlanError
from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.search.forms import list_forms
from qaf_core.search.selection import DENSE
from qaf_core.search.sensitivity.settings import Sensitivity, harm_rows


def info(name: str, **changes: Any) -> LayerInfo:
    given: dict[str, Any] = {
        "name": name, "kind": "conv2d", "weight_shape": (16, 16, 3, 3), "kernel": (3, 3), "padding": (1, 1),
        "input_hw": (8, 8), "output_hw": (8, 8), "macs": 147_456, "params": 2304, "output_elements": 1024,
        "structures": ("cp", "svd", "dense", "keep"), **changes,
    }  # fmt: skip
    return LayerInfo(**given)


def row(layer: str, structure: str, rank: Rank, ms: float) -> dict[str, Any]:
    return {"layer": layer, "structure": structure, "rank": rank, "median_ms": ms}


def test_forms_are_those_of_the_table_with_the_harm_expected_at_these_bits() -> None:
    inventory = (info("stem"), info("middle"), info("head"))
    harms = {("dense", None, 8): 1e-4, ("dense", None, 4): 1e-2, ("cp", 12, 4): 0.02, ("cp", 12, 8): 0.01}
    sensitivity = Sensitivity(
        activation_bits=8, settings={"middle": harm_rows(inventory[1], harms, 8)}, floor=0.0,
        unit="divergence", how="curvature", temperature=1.0, images=1, seconds=0.0,
    )  # fmt: skip
    table = [row("middle", "cp", 12, 0.5), row("middle", "dense", None, 1.0), row("middle", "cp", 24, 0.7),
             row("middle", "svd", 4, 0.1)]  # fmt: skip
    found = list_forms(inventory, table, sensitivity, bits=4, activation_bits=8)
    assert [form.step for form in found["middle"]] == [DENSE, ("cp", 12), ("cp", 24)]  # svd: nothing known
    assert [form.harm for form in found["middle"]] == [1e-2, 0.02, pytest.approx(0.005, rel=0.2)]
    assert set(found) == {"middle"}  # the first convolution and the classifier have no choice
    with pytest.raises(PlanError, match="no dense row of middle"):
        list_forms(inventory, table[:1], sensitivity, bits=4, activation_bits=8)
