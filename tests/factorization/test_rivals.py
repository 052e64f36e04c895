"""The joint method against the rivals: never worse than rounding afterwards or the published method."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import draw
from torch import Tensor

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.data.models.catalogue import build_model, find_model, load_inventory
from qaf_core.factorization.admm import solve_joint
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.tucker2 import Tucker2
from qaf_core.factorization.baselines import round_factors, tensorly_factors
from qaf_core.network.plan.rules import plan_for_ratio

QUICK = SolverOptions(starts=1, start_iterations=40, iterations=4, rounding_rounds=6)


def planned_layers(model_id: str) -> dict[str, tuple[Tensor, str, Any]]:
    """Weight, structure and rank of the layers a plan at ratio 2 factorizes."""
    source = find_model(model_id)
    model = build_model(source)
    plan = plan_for_ratio(load_inventory(source), model=model_id, ratio=2, bits=4, activation_bits=32)
    rows = [row for row in plan.layers if row.structure != "keep"]
    return {
        row.name: (model.get_submodule(row.name).get_parameter("weight").detach(), row.structure, row.rank)
        for row in rows
    }


# A convolution and a linear layer; benchmarks/joint_against_sequential.py takes all layers.
SHIPPED = [("digits/cnn", ("features.3", "classifier.0"))]
DIGITS_LAYERS = ("features.3", "features.7", "classifier.0")


@pytest.mark.parametrize(
    ("model_id", "layer"), [(model_id, layer) for model_id, layers in SHIPPED for layer in layers]
)
def test_joint_never_loses_more_than_sequential(model_id: str, layer: str) -> None:
    weight, structure, rank = planned_layers(model_id)[layer]
    for bits in (3, 8):
        spec = QuantSpec(bits=bits, granularity="rank_row")
        joint, sequential = (
            solve_layer(weight, structure, rank, spec, SolverOptions(starts=1), method=method).relative_error
            for method in ("joint", "sequential")
        )
        assert joint <= sequential, f"{bits} bits"


def test_the_plan_covers_no_other_layers_of_the_digits_model() -> None:
    assert tuple(planned_layers("digits/cnn")) == DIGITS_LAYERS


@pytest.mark.parametrize("structure", ["cp", "svd", "tucker2"])
@pytest.mark.parametrize("granularity", ["rank", "rank_row"])
def test_joint_never_loses_more_than_sequential_from_the_same_start(structure: str, granularity: str) -> None:
    target = draw(12, 10, 9) if structure != "svd" else draw(12, 10)
    problem: Canonical | Tucker2 = Tucker2(target, (5, 4)) if structure == "tucker2" else Canonical(target, 6)
    start, _ = tensorly_factors(problem, seed=0)
    for bits in (2, 4, 8):
        widths = (bits,) * len(start)
        codes, scales = round_factors(start, widths, granularity)
        rounded = [code * scale for code, scale in zip(codes, scales, strict=True)]
        squared = problem.quadratic(rounded, 0).squared_error(rounded[0], problem.target_norm_squared)
        state, _ = solve_joint(
            problem, QuantSpec(bits=widths, granularity=granularity), options=QUICK, seed=0, start=start
        )
        assert state.best.error <= math.sqrt(squared / problem.target_norm_squared)


@pytest.mark.parametrize("seed", range(2))
def test_the_smallest_kernel_is_met_no_worse_than_by_the_published_method(seed: int) -> None:
    weight = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    ours, theirs = (
        solve_layer(weight, rank=1, spec=QuantSpec(bits=4), method=method).relative_error
        for method in ("joint", "paper")
    )
    assert ours <= theirs + 1e-6
