"""Helpers as the processes they are: what they leave in the cache, and that they end with their work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import torch

from qaf_core.factorization.options import SolverOptions
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.pipeline.compress.solver_pool import News, SolveJob, SolverPool
from qaf_core.quantization.spec import QuantSpec

PATIENCE_SECONDS = 90.0
QUICK = SolverOptions(starts=1, start_iterations=20, iterations=3, rounding_rounds=3)
ENDLESS = SolverOptions(rounding_rounds=10_000_000, patience=10_000_000, tolerance=0.0)
GRID = QuantSpec(bits=4, granularity="rank_row")
TASK = SolveTask(structure="cp", rank=9, spec=GRID, options=QUICK, method="joint", seed=3)


def make_job(cache: SolveCache, index: int, task: SolveTask = TASK, **kind: torch.dtype) -> SolveJob:
    weight = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(index)).to(**kind)
    return SolveJob(name=f"layer{index}", index=index, weight=weight, task=task, key=cache.key(weight, task))


def gather(pool: SolverPool, enough: Callable[[list[News]], bool]) -> list[News]:
    told: list[News] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not enough(told):
        assert time.monotonic() < deadline, "waited in vain"
        told.extend(pool.news(0.1))
    return told


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def helper_pids() -> list[int]:
    """Of the helpers that live."""
    return [process.pid for process in active_children() if process.pid is not None]


def test_a_helper_leaves_the_codes_that_this_process_would_find(tmp_path: Path) -> None:
    cache = SolveCache(tmp_path)
    covariance = torch.eye(10) + 0.2
    jobs = [
        make_job(cache, 0),
        make_job(cache, 1, replace(TASK, input_covariance=covariance)),
        make_job(cache, 2, dtype=torch.bfloat16),
        make_job(cache, 3, replace(TASK, structure="tt")),  # the solver does not take it
        make_job(cache, 4, replace(TASK, structure="tucker2", rank=(5, 4))),
        make_job(cache, 5),
    ]
    shared = [job.name for job in jobs[:-1]]
    with SolverPool(jobs, shared=shared, cache=cache, helpers=1) as pool:
        told = gather(pool, lambda told: sum(news.kind in ("solved", "lost") for news in told) == 5)
        pids = helper_pids()
        # What no helper may take, or could not solve, is left to this process.
        left = [pool.take(), pool.take(), pool.take()]
    assert [job.name if job else None for job in left] == ["layer3", "layer5", None]
    assert [news.job.name for news in told if news.kind == "started"] == shared[::-1]
    assert [news.job.name for news in told if news.kind == "lost"] == ["layer3"]
    assert all(is_gone(pid) for pid in pids)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in (jobs[0], jobs[1], jobs[2], jobs[4]):
            kept, own = cache.load(job.key), job.task.solve(job.weight, layer="own", on_event=None)
            assert kept is not None
            assert all(map(torch.equal, kept.factors.codes, own.factors.codes))
            assert all(map(torch.equal, kept.factors.scales, own.factors.scales))
            assert (kept.relative_error, kept.iterations) == (own.relative_error, own.iterations)
            events = [news.event for news in told if news.job is job and news.event is not None]
            assert (events[0].iteration, events[-1].iteration) == (1, own.iterations)
    finally:
        torch.set_num_threads(threads)


def test_a_dead_helper_gives_its_layer_back_and_a_working_one_ends_with_the_block(tmp_path: Path) -> None:
    cache = SolveCache(tmp_path)
    jobs = [make_job(cache, index, replace(TASK, options=ENDLESS)) for index in range(3)]
    with SolverPool(jobs, shared=[job.name for job in jobs], cache=cache, helpers=2) as pool:
        first = pool.take()
        assert first is jobs[0]
        gather(pool, lambda told: len({news.job.name for news in told if news.event is not None}) == 2)
        assert pool.take() is None
        killed, working = helper_pids()
        os.kill(killed, signal.SIGKILL)
        (lost,) = (news for news in gather(pool, lambda told: any(n.kind == "lost" for n in told))
                   if news.kind == "lost")  # fmt: skip
        assert pool.take() is lost.job
        assert pool.take() is None
        began = time.monotonic()
    assert time.monotonic() - began < 10.0
    assert is_gone(killed)
    assert is_gone(working)
    assert list(tmp_path.rglob("*")) == []


def test_without_helpers_the_layers_come_in_order(tmp_path: Path) -> None:
    cache = SolveCache(tmp_path)
    jobs = [make_job(cache, index) for index in range(3)]
    with SolverPool(jobs, shared=(), cache=None, helpers=2) as pool:
        assert helper_pids() == []
        assert [pool.take() for _ in range(4)] == [*jobs, None]
        pool.give_back(jobs[1])
        assert pool.take() is jobs[1]
        assert list(pool.news()) == []
