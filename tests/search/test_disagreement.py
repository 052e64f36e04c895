"""Changed answers and the layers to blame, on networks small enough to check by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.errors import RunCancelled
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.solve import solve_layer
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, swap_layer
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.tasks import find_task
from qaf_core.quantization.spec import QuantSpec
from qaf_core.search.disagreement import Answers
from qaf_core.search.selection import Step, plan_with

SHAPE = (3, 12, 12)
SVD: Step = ("svd", 3)
OPTIONS = SolverOptions(starts=1, iterations=5)


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


def chain_of(network: nn.Module, layer: str, step: Step) -> FactorizedLayer:
    module, (structure, rank) = layer_of(network, layer), step
    weight = module.rows.detach()
    solved = solve_layer(weight, structure=structure, rank=rank, spec=QuantSpec(bits=8), options=OPTIONS)
    return build_chain(module, solved.factors)


def answers_of(network: nn.Module, tmp_path: Path, **changes: object) -> Answers:
    given = {
        "task": find_task("classification"),
        "plan": dense_plan(network),
        "chains": {("2", SVD): chain_of(network, "2", SVD)},
        "cache": SolveCache(tmp_path),
        **changes,
    }
    return Answers(network, take_inventory(network, SHAPE), images(), **given)  # type: ignore[arg-type]


def scores_of(network: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network(batch)
    return found


def test_the_harm_of_a_layer_is_the_divergence_with_it_alone(network: nn.Module, tmp_path: Path) -> None:
    answers = answers_of(network, tmp_path)
    assert answers.harm("2", ("dense", None)) == 0.0
    alone = copy.deepcopy(network)
    swap_layer(alone, "2", chain_of(network, "2", SVD))
    wanted, found = (scores_of(net, images()).log_softmax(dim=1) for net in (network, alone))
    expected = float((wanted.exp() * (wanted - found)).sum(dim=1).mean())
    assert expected > 0.0
    assert answers.harm("2", SVD) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(KeyError):  # nothing was fitted
        answers.harm("0", SVD)


def test_changed_answers_are_those_of_the_compressed_network(network: nn.Module, tmp_path: Path) -> None:
    answers = answers_of(network, tmp_path)
    assert answers.images == 160
    steps = {"2": ("svd", 1)}
    plan = plan_with(dense_plan(network), steps)  # type: ignore[arg-type]
    made = compress_network(network, plan, take_inventory(network, SHAPE), calibration=images()).model
    changed = scores_of(network, images()).argmax(1) != scores_of(made, images()).argmax(1)
    assert float(changed.float().mean()) > 0.0
    assert answers.changed(steps) == pytest.approx(float(changed.float().mean()))  # type: ignore[arg-type]
    assert answers.changed({}) < answers.changed(steps)  # type: ignore[arg-type]


def test_another_way_to_compute_is_compared_too(network: nn.Module, tmp_path: Path) -> None:
    answers = answers_of(network, tmp_path)

    def same(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return scores_of(network, torch.from_numpy(batch)).numpy()

    def always_first(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.eye(5, dtype=np.float32)[np.zeros(len(batch), int)]

    assert answers.changed_by(same) == 0.0
    others = float((scores_of(network, images()).argmax(1) != 0).float().mean())
    assert answers.changed_by(always_first) == pytest.approx(others)


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
            model, [], images(), task=find_task(task), plan=dense_plan(network), chains={},
            cache=SolveCache(tmp_path),
        )  # fmt: skip
        assert answers.can_count() is expected


def test_it_stops(network: nn.Module, tmp_path: Path) -> None:
    answers = answers_of(network, tmp_path, progress=Progress(should_stop=lambda: True))
    with pytest.raises(RunCancelled):
        answers.harm("2", SVD)
    with pytest.raises(RunCancelled):
        answers.changed({"2": SVD})
