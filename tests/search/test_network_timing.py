"""Structures chosen by the time of the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.errors import ModelError, RunCancelled
from qaf_core.factorization.structures import Rank
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.search import network_timing
from qaf_core.search.network_timing import WholeNetwork, choose_in_place
from qaf_core.search.selection import Candidate, Step

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


def test_the_dense_int8_network_answers_any_number_of_images(network: nn.Module) -> None:
    whole = WholeNetwork(network, take_inventory(network, SHAPE), images(), threads=1, batch=3)
    with torch.inference_mode():
        wanted = network(images()).numpy()
    found = whole.answer(images().numpy())
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert np.abs(found - wanted).max() > 0.0
    assert np.array_equal(whole.answer(images()[:2].numpy()), found[:2])


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

    def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
        self.plans.append(dict(plans))
        generator = np.random.default_rng(len(self.plans))
        return {
            key: 10.0
            - sum(self._gains.get((name, step[0]), 0.0) for name, step in plan.items())
            + generator.normal(scale=self._noise, size=100)
            for key, plan in plans.items()
        }


def fits(structure: str, rank: Rank, error: float = 0.1) -> dict[str, Candidate]:
    return {
        structure: Candidate(
            structure=structure, rank=rank, latency_ms=1.0, output_error=error, verdict="within the bound"
        )
    }


FITTING: dict[str, dict[str, Candidate]] = {
    "a": fits("cp", 8) | fits("svd", 4),
    "b": fits("svd", 6),
    "c": fits("tucker2", (4, 4)),
    "d": {},
}


def test_the_fastest_whole_network_wins_kind_by_kind() -> None:
    gains = {("a", "cp"): 1.0, ("a", "svd"): 0.8, ("b", "svd"): 0.5, ("c", "tucker2"): -0.1}
    clock = Clock(gains)
    first: dict[str, Step] = {"a": ("cp", 8), "b": ("svd", 6), "c": ("tucker2", (4, 4)), "d": DENSE}
    told: list[RunEvent] = []
    found, forms = choose_in_place(clock, FITTING, first, progress=Progress(told.append))
    assert found == {"a": ("cp", 8), "b": ("svd", 6), "c": DENSE}
    assert [event.data["fraction"] for event in told] == [0.0, 0.5]  # nothing fits "d"
    # What was timed, with its gain: dense gains nothing.
    by_steps = [{tuple(sorted(form.steps.items())): form.gain_ms for form in kind} for kind in forms]
    assert by_steps[0][("a", ("cp", 8)), ("b", ("svd", 6))] == pytest.approx(1.5, abs=0.01)
    assert by_steps[0][("a", ("svd", 4)), ("b", ("svd", 6))] == pytest.approx(1.3, abs=0.01)
    assert by_steps[0][("a", DENSE), ("b", DENSE)] == 0.0
    assert by_steps[1][(("c", ("tucker2", (4, 4))),)] == pytest.approx(-0.1, abs=0.01)
    # The first kind is timed with the others as they were, the second with the first as chosen.
    assert all(plan["c"] == ("tucker2", (4, 4)) for plan in clock.plans[0].values())
    assert all(plan["a"] == ("cp", 8) for plan in clock.plans[1].values())


@given(
    gains=st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from(("cp", "svd", "tucker2"))), st.floats(-1, 1)
    ),
    first=st.fixed_dictionaries(
        {
            "a": st.sampled_from((("cp", 8), ("svd", 4), DENSE)),
            "b": st.sampled_from((("svd", 6), DENSE)),
            "c": st.sampled_from((("tucker2", (4, 4)), DENSE)),
        }
    ),
)
def test_the_end_is_no_slower_than_the_beginning(
    gains: dict[tuple[str, str], float], first: dict[str, Step]
) -> None:
    def gain(steps: Mapping[str, Step]) -> float:
        return sum(gains.get((name, step[0]), 0.0) for name, step in steps.items())

    found, _ = choose_in_place(Clock(gains), FITTING, first)
    assert gain(found) >= 0.9 * gain(first) - 0.02  # a tenth may be given for less error


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


@pytest.mark.parametrize(("gain", "structure"), [(0.95, "cp"), (0.8, "svd")])
def test_of_structures_as_fast_the_closest_is_taken(gain: float, structure: str) -> None:
    fitting = {"c": fits("cp", 8, 0.01) | fits("svd", 4, 0.02)}
    found, _ = choose_in_place(Clock({("c", "svd"): 1.0, ("c", "cp"): gain}), fitting, {})
    assert found["c"][0] == structure


def test_a_layer_that_gains_nothing_is_not_taken_along_with_its_kind() -> None:
    first: dict[str, Step] = {"a": ("cp", 8), "b": ("svd", 6)}
    found, _ = choose_in_place(Clock({("a", "cp"): 1.0, ("b", "svd"): 0.01}), FITTING, first)
    assert (found["a"], found["b"]) == (("cp", 8), DENSE)


def test_what_the_rounds_cannot_tell_from_dense_is_dense() -> None:
    found, _ = choose_in_place(Clock({("c", "tucker2"): 1e-4}, noise=0.5), FITTING, {})
    assert found["c"] == DENSE


def test_it_stops_between_kinds() -> None:
    clock = Clock({})
    with pytest.raises(RunCancelled):
        choose_in_place(clock, FITTING, {}, progress=Progress(should_stop=lambda: len(clock.plans) == 1))
    assert len(clock.plans) == 1
