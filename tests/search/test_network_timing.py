"""What structures gain inside the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.errors import ModelError, RunCancelled
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.search import network_timing
from qaf_core.search.network_timing import WholeNetwork, compare_times, gains_in_place
from qaf_core.search.selection import Step

SHAPE = (3, 16, 16)
DENSE: Step = ("dense", None)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_networks_are_timed_with_chains_in_place(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_timing, "ROUNDS", 5)
    opened: list[onnx.ModelProto] = []
    open_session = network_timing.open_session

    def keep(model: bytes, *, threads: int) -> object:
        opened.append(onnx.load_from_string(model))
        return open_session(model, threads=threads)

    monkeypatch.setattr(network_timing, "open_session", keep)
    whole = WholeNetwork(network, take_inventory(network, SHAPE), images(), threads=1, batch=2)
    assert whole.kinds == (("0",), ("3", "5"), ("9",))
    times = whole.time({"dense": {}, "cp": {"3": ("cp", 4), "5": DENSE}, "unknown": {"7": ("cp", 4)}})
    assert {name: len(rounds) for name, rounds in times.items()} == {"dense": 5, "cp": 5, "unknown": 5}
    convolutions = [[node.op_type for node in model.graph.node].count("Conv") for model in opened]
    assert convolutions == [3, 3, 5, 3]  # the original takes its turn


def test_a_network_that_onnx_cannot_express_is_named() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, values: Tensor) -> list[list[Tensor]]:
            return [[self.conv(values)]]

    model = Pairs().eval()
    with pytest.raises(ModelError):
        WholeNetwork(model, take_inventory(model, SHAPE), images(), threads=1)


class Clock:
    """Times a network by a sum over its layers, with a little noise."""

    kinds: Sequence[Sequence[str]] = (("a", "b"), ("c",), ("d",))

    def __init__(self, gains: Mapping[tuple[str, str], float], noise: float = 1e-3) -> None:
        self._gains, self._noise = gains, noise
        self.plans: list[dict[str, Mapping[str, Step]]] = []

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
        self.plans.append(dict(plans))
        generator = np.random.default_rng(len(self.plans))
        return {
            key: 10.0
            - sum(self._gains.get((name, step[0]), 0.0) for name, step in plan.items())
            + generator.normal(scale=self._noise, size=100)
            for key, plan in plans.items()
        }


FORMS: dict[str, dict[str, tuple[Step, float]]] = {
    "a": {"cp": (("cp", 8), 1.0), "svd": (("svd", 4), 0.5)},
    "b": {"svd": (("svd", 6), 0.5)},
    "c": {"tucker2": (("tucker2", (4, 4)), 0.2)},
    "d": {},
}


def test_a_network_that_does_not_run_is_told(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WholeNetwork(network, take_inventory(network, SHAPE), images(), threads=1)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(network_timing, "time_interleaved", fail)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the network; got no kernel for this"):
        whole.time({"dense": {}})
    monkeypatch.setattr(network_timing, "open_session", fail)
    with pytest.raises(ModelError, match="cannot run"):
        whole.time({"dense": {}})


def test_gains_in_place_are_told_by_kind_and_structure() -> None:
    gains = {("a", "cp"): 0.6, ("a", "svd"): 0.8, ("b", "svd"): 0.4, ("c", "tucker2"): -0.1}
    clock = Clock(gains)
    told: list[RunEvent] = []
    found = gains_in_place(clock, FORMS, progress=Progress(told.append))
    assert [event.data["fraction"] for event in told] == [0.0, 0.5]  # "d" has no form
    assert found == {
        ("a", "cp"): pytest.approx(0.6, abs=0.01),
        ("a", "svd"): pytest.approx(1.2, abs=0.01),  # with its kind
        ("b", "svd"): pytest.approx(1.2, abs=0.01),
        ("c", "tucker2"): 0.0,
    }
    # Layers of a kind change together, all others are dense.
    assert clock.plans[0] == {
        "dense": {}, "cp": {"a": ("cp", 8)}, "svd": {"a": ("svd", 4), "b": ("svd", 6)}
    }  # fmt: skip


def test_what_the_rounds_cannot_tell_from_dense_gains_nothing() -> None:
    assert gains_in_place(Clock({("c", "tucker2"): 1e-4}, noise=0.5), {"c": FORMS["c"]}) == {
        ("c", "tucker2"): 0.0
    }


def test_a_gain_far_beyond_that_of_the_layers_alone_is_not_believed() -> None:
    assert gains_in_place(Clock({("c", "tucker2"): 5.0}), {"c": FORMS["c"]}) == {("c", "tucker2"): 2.0}


def test_the_planned_network_is_compared_with_the_dense_one() -> None:
    found = compare_times(Clock({("a", "cp"): 1.0}), {"a": ("cp", 8)})
    assert (found.dense_ms, found.planned_ms) == (pytest.approx(10, abs=0.01), pytest.approx(9, abs=0.01))
    assert found.ratio.value == pytest.approx(0.9, abs=0.01)
    assert found.ratio.low <= found.ratio.value <= found.ratio.high


def test_it_stops_between_kinds() -> None:
    clock = Clock({})
    with pytest.raises(RunCancelled):
        gains_in_place(clock, FORMS, progress=Progress(should_stop=lambda: len(clock.plans) == 1))
    assert len(clock.plans) == 1
