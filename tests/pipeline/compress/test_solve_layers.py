"""Which layers helpers are for, and a network solved with one: the same codes, all told, none left behind."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress import solve_layers
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import Compression, CompressOptions
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.pipeline.compress.solve_layers import (
    count_helpers,
    estimated_seconds,
    is_small,
    placed,
    shareable,
    solve_where_placed,
    threads_for,
)
from qaf_core.pipeline.compress.solver_pool import SolveJob, spare_cores
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.quantization.spec import QuantSpec

SHAPE = (3, 8, 8)
QUICK = SolverOptions(starts=1, start_iterations=20, iterations=2, rounding_rounds=3)
PATIENCE_SECONDS = 90.0


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, padding=1) for channels in (3, 8, 8, 8, 8)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4)).eval()


def job(name: str = "layer", size: int = 8, **fields: Any) -> SolveJob:
    weight = torch.randn(size, size, 3, 3, generator=torch.Generator().manual_seed(size))
    task = SolveTask(structure="cp", rank=4, spec=QuantSpec(bits=4), options=QUICK, method="joint", seed=0)
    return SolveJob(name=name, index=0, weight=weight, task=replace(task, **fields))


def compress(model: nn.Module, **options: Any) -> Compression:
    inventory = take_inventory(model, SHAPE)
    plan = plan_for_ratio(inventory, model="test/network", ratio=1.5, bits=4, activation_bits=32)
    given = {"calibration": None, "options": CompressOptions(solver=QUICK), **options}
    return compress_network(model, plan, inventory, **given)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# Who solves what


def test_small_layers_are_solved_on_one_thread() -> None:
    before = torch.get_num_threads()
    with threads_for(torch.zeros(8, 8, 3, 3), 4):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with threads_for(torch.zeros(512, 512, 3, 3), 1000):
        assert torch.get_num_threads() == before
    assert not is_small(torch.zeros(8, 8, 3, 3, device="meta"), 4)


class OnGpu:
    """What a weight on a GPU is to those who look at its device only."""

    device = torch.device("cuda")

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def cpu(self) -> torch.Tensor:
        return self._weight


def test_large_layers_go_to_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = torch.zeros(8, 8, 3, 3), torch.zeros(512, 512, 3, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placed(large, 1000) is large
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: asked.append(device) or self)
    assert placed(small, 4) is small
    assert asked == []
    placed(large, 1000)
    assert asked == ["cuda"]
    monkeypatch.setenv("QAF_DEVICE", "cpu")
    placed(large, 1000)
    assert asked == ["cuda"]


def test_a_gpu_that_fails_leaves_the_layer_to_the_processor() -> None:
    given, devices = job(), []
    expected = given.task.solve(given.weight, layer="layer", on_event=None)

    class Task:
        rank = given.task.rank

        def solve(self, weight: Any, **options: Any) -> Any:
            devices.append(weight.device.type)
            if weight.device.type == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return given.task.solve(weight, **options)

    task: Any = Task()
    gpu: Any = OnGpu(given.weight)
    found = solve_where_placed(task, gpu, layer="layer", on_event=lambda event: None)
    assert devices == ["cuda", "cpu"]
    assert all(torch.equal(a, b) for a, b in zip(found.factors.codes, expected.factors.codes, strict=True))

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    task.solve = fail
    with pytest.raises(RuntimeError, match="fault of ours"):
        solve_where_placed(task, given.weight, layer="layer", on_event=lambda event: None)


def test_helpers_take_small_layers_whose_results_are_kept_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SolveCache(tmp_path)
    limited = replace(QUICK, time_limit_seconds=5.0)
    known, large = job("known", size=6), replace(job("large"), weight=torch.zeros(512, 512, 3, 3))
    large = replace(large, task=replace(large.task, rank=1000))
    cache.keep(
        cache.key(known.weight, known.task), known.task.solve(known.weight, layer="known", on_event=None)
    )
    found = shareable([job("new"), known, large, job("limited", options=limited)], cache)
    assert [one.name for one in found] == ["new"]
    assert found[0].key == cache.key(found[0].weight, found[0].task)
    monkeypatch.setattr(solve_layers, "MOST_SENT_BYTES", found[0].weight.nbytes - 1)
    assert shareable([job("new")], cache) == []


def test_helpers_are_started_only_where_they_have_enough_to_do() -> None:
    small = [job(str(index)) for index in range(40)]
    assert count_helpers(small, 0) == 0
    assert count_helpers([], 4) == 0
    assert count_helpers(small[:3], 4) == 0  # done before a helper is up
    assert count_helpers(small[:18], 1) == 1
    assert count_helpers(small[:18], 64) <= 3
    assert count_helpers(small * 10, 64) == solve_layers.MOST_HELPERS
    wide = replace(job(), weight=torch.zeros(512, 512, 3, 3))
    dense = replace(wide, task=replace(wide.task, structure="dense", rank=None))
    assert count_helpers([dense] * 2, 64) == 1  # one for each layer but one


def test_the_estimate_grows_with_size_and_rank() -> None:
    assert estimated_seconds(job(rank=4)) < estimated_seconds(job(size=64, rank=134)) < 2.0
    dense = [job(size=size, structure="dense", rank=None) for size in (8, 64)]
    assert estimated_seconds(dense[0]) < estimated_seconds(dense[1]) < 1.0


def test_spare_cores_follow_the_limit_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert spare_cores() == 0
        torch.set_num_threads(2)
        assert spare_cores() in (0, 1)  # as the machine has them
    finally:
        torch.set_num_threads(before)


# With a helper


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers also for layers that take no time."""
    monkeypatch.setattr(solve_layers, "HELPER_SECONDS", 0.1)


@pytest.mark.usefixtures("eager")
def test_a_helper_changes_no_code_and_all_is_told(model: nn.Module, tmp_path: Path) -> None:
    events: list[RunEvent] = []

    def watch(event: RunEvent) -> None:
        events.append(event)
        if event.kind == "iteration" and event.layer == "1":
            # Until the helper has done its first layer.
            wait_for(lambda: list(tmp_path.rglob("*.safetensors")))

    alone = compress(model)
    helped = compress(model, cache=SolveCache(tmp_path, helpers=1), progress=Progress(watch))
    assert multiprocessing.active_children() == []
    assert [outcome.name for outcome in helped.layers] == [outcome.name for outcome in alone.layers]
    first, second = alone.model.state_dict(), helped.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    started = [event.layer for event in events if event.kind == "layer_started"]
    finished = [event.layer for event in events if event.kind == "layer_finished"]
    assert started[:2] == ["1", "4"]  # one from each end
    assert sorted(started) == sorted(finished) == ["1", "2", "3", "4"]
    for outcome in helped.layers:
        own = [event for event in events if event.layer == outcome.name]
        assert (own[0].kind, own[-1].kind) == ("layer_started", "layer_finished")
        steps = [event.data["iteration"] for event in own if event.kind == "iteration"]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (1, outcome.iterations)
        assert own[0].data["index"] == int(outcome.name) - 1
        assert own[-1].data["relative_error"] == outcome.relative_error
    fractions = [event.data["fraction"] for event in events if event.kind == "stage"]
    assert fractions == sorted(fractions)


@pytest.mark.usefixtures("eager")
def test_a_stop_keeps_what_a_helper_has_done(model: nn.Module, tmp_path: Path) -> None:
    finished: list[str | None] = []

    def watch(event: RunEvent) -> None:
        if event.kind == "layer_finished":
            finished.append(event.layer)
        if event.kind == "iteration" and "4" not in finished:
            wait_for(lambda: list(tmp_path.rglob("*.safetensors")))
            time.sleep(0.02)  # and until it has said so

    result = compress(
        model, cache=SolveCache(tmp_path, helpers=1), progress=Progress(watch, lambda: "4" in finished)
    )
    assert multiprocessing.active_children() == []
    assert result.status == "cancelled"
    assert [outcome.name for outcome in result.layers] == sorted(str(name) for name in finished)
    assert "4" in finished
    assert len(finished) < 4


def test_a_library_call_starts_no_process(model: nn.Module, tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    seen: set[int] = set()

    def watch(_event: RunEvent) -> None:
        seen.update(child.pid or 0 for child in multiprocessing.active_children() if child not in before)

    assert compress(model, cache=SolveCache(tmp_path), progress=Progress(watch)).status == "completed"
    assert compress(model, progress=Progress(watch)).status == "completed"  # nowhere to leave results
    assert seen == set()
