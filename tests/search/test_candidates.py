"""Choosing structures by measured latency: the fastest within the bound, and why not the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import PlanError, RunCancelled
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.validation import validate_plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.search.candidates import (
    MOMENT_WEIGHT,
    Selection,
    Verdict,
    choose_structures,
    output_tails,
)

SHAPE = (3, 10, 10)
QUICK = SolverOptions(starts=1, start_iterations=15, iterations=1, rounding_rounds=2)


class Network(nn.Module):
    """The weight of ``planted`` has Tucker rank (4, 4); that of ``full`` is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.planted = nn.Conv2d(16, 16, 3, padding=1)
        self.full = nn.Conv2d(16, 16, 3, padding=1)
        self.classifier = nn.Linear(16, 4)
        weight = torch.einsum("ia,abk,jb->ijk", torch.randn(16, 4), torch.randn(4, 4, 9), torch.randn(16, 4))
        self.planted.weight.data = weight.reshape(16, 16, 3, 3) / 20

    def forward(self, images: Tensor) -> Tensor:
        values = torch.relu(self.full(torch.relu(self.planted(torch.relu(self.stem(images))))))
        scores: Tensor = self.classifier(values.mean((2, 3)))
        return scores


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture
def inventory(model: Network) -> tuple[LayerInfo, ...]:
    return take_inventory(model, SHAPE)


def images(count: int = 256) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def rows_of(layer: str, **latencies: float) -> list[dict[str, Any]]:
    """Table rows from names such as ``cp8`` and ``tucker2_4_4``."""
    found = []
    for name, latency in latencies.items():
        structure, _, pair = name.partition("_")
        rank: int | list[int] | None = [int(part) for part in pair.split("_")] if pair else None
        if structure.startswith("cp"):
            structure, rank = "cp", int(structure[2:])
        found.append({"layer": layer, "structure": structure, "rank": rank, "median_ms": latency})
    return found


TABLE = [
    *rows_of(
        "planted",
        dense=1.0,
        tucker2_2_2=0.2,
        tucker2_4_4=0.4,
        tucker2_6_6=0.6,
        tucker2_8_8=0.99,
        cp2=0.3,
        cp40=0.7,
        cp80=1.4,
    ),
    *rows_of("full", dense=1.0, tucker2_2_2=0.2, tucker2_4_4=0.4, tucker2_6_6=0.6, cp8=0.5),
]


def choose(model: nn.Module, inventory: tuple[LayerInfo, ...], **changes: Any) -> Selection:
    values: dict[str, Any] = {
        "model_id": "test/net",
        "bits": 8,
        "error_bound": 0.02,
        "options": QUICK,
        **changes,
    }
    table = values.pop("table", TABLE)
    return choose_structures(model, inventory, table, images(), **values)


def verdicts(selection: Selection, layer: str) -> dict[str, str]:
    (choice,) = [choice for choice in selection.choices if choice.name == layer]
    return {f"{c.structure}{c.rank or ''}".replace(" ", ""): c.verdict for c in choice.candidates}


def test_the_fastest_within_the_bound_is_chosen_and_noise_stays_dense(
    model: Network, inventory: tuple[LayerInfo, ...]
) -> None:
    selection = choose(model, inventory)
    planted, full = selection.choices
    assert (planted.structure, planted.rank, planted.latency_ms) == ("tucker2", (4, 4), 0.4)
    assert (full.structure, full.rank, full.latency_ms) == ("dense", None, 1.0)
    told = verdicts(selection, "planted")
    assert told["tucker2(4,4)"] == Verdict.CHOSEN
    assert told["tucker2(2,2)"] in (Verdict.RANK_TOO_SMALL, Verdict.OVER_BOUND)
    assert told["cp2"] in (Verdict.RANK_TOO_SMALL, Verdict.OVER_BOUND, Verdict.NOT_TRIED)
    assert told["cp40"] == told["dense"] == told["tucker2(6,6)"] == Verdict.SLOWER_THAN_CHOSEN
    assert told["tucker2(8,8)"] == told["cp80"] == Verdict.SLOWER_THAN_DENSE  # 1 % is within the noise
    assert all(c.output_error is None for c in planted.candidates if c.verdict == Verdict.RANK_TOO_SMALL)
    assert all(c.output_error > 0.02 for c in full.candidates if c.output_error is not None)
    assert [c.latency_ms for c in planted.candidates] == sorted(c.latency_ms for c in planted.candidates)


def test_the_plan_is_valid_and_a_run_under_it_keeps_the_bound(
    model: Network, inventory: tuple[LayerInfo, ...], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cache = SolveCache(tmp_path)
    selection = choose(model, inventory, cache=cache)
    solved = set(tmp_path.rglob("*.safetensors"))
    validate_plan(selection.plan, inventory, model="test/net")
    rows = {row.name: (row.structure, row.bits) for row in selection.plan.layers}
    assert rows == {
        "stem": ("dense", 8),
        "planted": ("tucker2", 8),
        "full": ("dense", 8),
        "classifier": ("dense", 8),
    }
    assert selection.plan.options == {
        "starts": 1,
        "start_iterations": 15,
        "iterations": 1,
        "rounding_rounds": 2,
        "moment_weight": MOMENT_WEIGHT,
    }
    assert json.loads(json.dumps(selection.to_dict()))["choices"][0]["name"] == "planted"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    options = CompressOptions(solver=QUICK, moment_weight=MOMENT_WEIGHT)
    done = compress_network(
        model, selection.plan, inventory, calibration=images(), options=options, cache=cache
    )
    # Only the dense layers are left to solve: the chosen candidate is found solved.
    assert len(set(tmp_path.rglob("*.safetensors")) - solved) == 3
    errors = {row.name: row.output_error for row in done.layers}
    assert errors["planted"] is not None
    assert errors["planted"] < 0.02


def test_a_wide_bound_lets_the_fastest_through(model: Network, inventory: tuple[LayerInfo, ...]) -> None:
    selection = choose(model, inventory, error_bound=0.95)
    assert [choice.latency_ms for choice in selection.choices] == [0.2, 0.2]


def test_a_layer_with_nothing_faster_stays_dense_unmeasured(
    model: Network, inventory: tuple[LayerInfo, ...]
) -> None:
    table = [*rows_of("planted", dense=1.0, cp8=1.1), *rows_of("full", dense=1.0)]
    events: list[RunEvent] = []
    selection = choose(model, inventory, table=table, bits=4, progress=Progress(events.append))
    assert {row.structure for row in selection.plan.layers} == {"dense"}
    assert {row.name: row.bits for row in selection.plan.layers}["full"] == 4
    assert [event.data["message"] for event in events] == [
        "Trying forms of planted, 1 of 2 layers", "Trying forms of full, 2 of 2 layers"
    ]  # fmt: skip


def test_solved_candidates_are_found_again(
    model: Network, inventory: tuple[LayerInfo, ...], tmp_path: Path
) -> None:
    cache = SolveCache(tmp_path)
    first = choose(model, inventory, cache=cache)
    # A file that is written again is another file; one that is read has a new date.
    kept = {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")}
    assert kept
    assert choose(model, inventory, cache=cache).to_dict() == first.to_dict()
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")} == kept


def test_a_stop_is_heard_while_a_candidate_is_solved(
    model: Network, inventory: tuple[LayerInfo, ...]
) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(RunCancelled):
        choose(model, inventory, progress=Progress(should_stop=stop))
    assert asked <= 6


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, float("nan"), True])
def test_a_bound_that_means_nothing_is_refused(
    model: Network, inventory: tuple[LayerInfo, ...], bound: float
) -> None:
    with pytest.raises(PlanError, match="error bound"):
        choose(model, inventory, error_bound=bound)


def test_a_table_of_another_network_is_refused(model: Network, inventory: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(PlanError, match="no dense row of full"):
        choose(model, inventory, table=rows_of("planted", dense=1.0))


def test_tails_are_what_principal_directions_leave_out() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, 3, generator=generator) @ torch.randn(3, 12, generator=generator) + 5.0
    tails = output_tails([values[:200], values[200:]])
    assert len(tails) == 13
    assert tails[0] == pytest.approx(1.0)
    assert tails[3] == pytest.approx(0.0, abs=1e-6)
    assert tails == sorted(tails, reverse=True)
    centred = (values - values.mean(dim=0)).double()
    shares = torch.linalg.svdvals(centred).square()
    assert tails[2] == pytest.approx(float(shares[2:].sum() / shares.sum()), rel=1e-4)
