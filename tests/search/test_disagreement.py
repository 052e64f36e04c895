"""Changed answers, on networks small enough to check by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import RunCancelled
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline import events
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.tasks import find_task
from qaf_core.search.disagreement import Answers
from qaf_core.search.selection import Step, plan_with

SHAPE = (3, 12, 12)
SVD: Step = ("svd", 3)


@pytest.fixture(scope="module")
def captured() -> nn.Module:
    """Answers with all five classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[-1].bias -= model(images()).mean(dim=0)
    return capture(model, SHAPE)


@pytest.fixture
def network(captured: nn.Module) -> nn.Module:
    """A copy of it."""
    return copy.deepcopy(captured)


def images(count: int = 160) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def dense_plan(network: nn.Module) -> Plan:
    return plan_for_ratio(
        take_inventory(network, SHAPE), model="test/net", ratio=1.0, bits=8, activation_bits=8, method="dense"
    )


def answers_of(network: nn.Module, tmp_path: Path, **changes: object) -> Answers:
    given = {
        "task": find_task("classification"),
        "plan": dense_plan(network),
        "cache": SolveCache(tmp_path),
        **changes,
    }
    return Answers(network, take_inventory(network, SHAPE), images(), **given)  # type: ignore[arg-type]


def scores_of(network: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network(batch)
    return found


def test_changed_answers_are_those_of_the_compressed_network(network: nn.Module, tmp_path: Path) -> None:
    answers = answers_of(network, tmp_path)
    assert answers.images == 160
    steps = {"2": ("svd", 1)}
    plan = plan_with(dense_plan(network), steps)  # type: ignore[arg-type]
    made = compress_network(network, plan, take_inventory(network, SHAPE), calibration=images()).model
    changed = scores_of(network, images()).argmax(1) != scores_of(made, images()).argmax(1)
    assert float(changed.float().mean()) > 0.0
    told = answers.judge(steps)  # type: ignore[arg-type]
    assert told.share == pytest.approx(float(changed.float().mean()))
    assert answers.judge({}).share < told.share
    assert set(told.errors) == {"0", "2", "6"}
    assert told.errors["2"] > told.errors["0"] > 0.0


def test_only_what_the_task_reads_can_be_counted(network: nn.Module, tmp_path: Path) -> None:
    class Boxes(nn.Module):
        def forward(self, values: Tensor) -> list[list[Tensor]]:
            return [[values]]

    pixels = nn.Conv2d(3, 4, 1).eval()
    one = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)).eval()
    for model, task, expected in (
        (network, "classification", True),
        (one, "classification", False),
        (network, "segmentation", False),
        (pixels, "segmentation", True),
        (pixels, "classification", False),
        (Boxes(), "detection", False),
    ):
        answers = Answers(
            model, [], images(), task=find_task(task), plan=dense_plan(network), cache=SolveCache(tmp_path)
        )
        assert answers.can_count is expected


def test_where_answers_cannot_be_counted_the_error_of_the_outputs_is(
    network: nn.Module, tmp_path: Path
) -> None:
    answers = answers_of(network, tmp_path, task=find_task("segmentation"))
    assert not answers.can_count
    plan = plan_with(dense_plan(network), {"2": SVD})
    made = compress_network(network, plan, take_inventory(network, SHAPE), calibration=images()).model
    wanted, found = scores_of(network, images()), scores_of(made, images())
    error = float((found - wanted).square().sum() / wanted.square().sum())
    assert answers.judge({"2": SVD}).share == pytest.approx(error, rel=0.1)  # batch by batch


def test_it_tells_how_far_a_comparison_is_and_stops_inside_of_it(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STAGE_SECONDS", 0.0)
    told: list[RunEvent] = []
    answers_of(network, tmp_path, progress=Progress(told.append)).judge({"2": SVD})
    fractions = [event.data["fraction"] for event in told]
    assert {event.data["stage"] for event in told} == {"selecting"}
    assert {event.data["message"].rpartition(" ")[2] for event in told} == {"1"}
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert max(fractions) > 0.5
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(RunCancelled):
        answers_of(network, tmp_path / "new", progress=Progress(should_stop=stop)).judge({"2": SVD})
    assert asked <= 8
