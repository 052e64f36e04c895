"""Solving the layers of a plan one after another, with helper processes ahead where that pays."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qaf_core.errors import RunCancelled
from qaf_core.factorization.options import SolveEvent, Status
from qaf_core.factorization.solve import SolveResult
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.plan.types import LayerPlan
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.pipeline.compress.solver_pool import News, SolveJob, SolverPool
from qaf_core.pipeline.events import Progress

_log = logging.getLogger("qaf_core")

SMALL_SWEEP = 5e8  # floating-point operations of a solver sweep below which one thread is faster
# What a solve takes on one thread, measured from 16 to 512 channels: small layers all get as many sweeps as
# make up for their size, rounding without factors grows with the cube of the inputs.
CALLS_SECONDS, SECONDS_PER_OPERATION = 0.5, 1e-8
DENSE_SECONDS, DENSE_SECONDS_PER_CUBE = 2e-4, 1.7e-10
# A helper needs about two seconds to load torch, on a core of its own: it must have more than that to do.
HELPER_SECONDS = 5.0
MOST_HELPERS = 8  # each takes some hundred megabytes
MOST_SENT_BYTES = 200_000_000
WAIT_SECONDS = 0.1
DEVICE_VARIABLE = "QAF_DEVICE"


class LayerSolver:
    """Solves layers, or finds them solved, and tells of it.

    Args:
        jobs: The layers, front to back.
        rows: Their rows of the plan by name.
        progress: Told of all that happens; asked whether to stop.
        cache: Where solved layers are looked up and kept, or None. Its helpers solve small layers ahead and
            end with ``solve_all``.

    Attributes:
        solved: Results by layer, as they come in; a stop leaves those there that were done.
    """

    def __init__(
        self,
        jobs: Sequence[SolveJob],
        *,
        rows: Mapping[str, LayerPlan],
        progress: Progress,
        cache: SolveCache | None,
    ) -> None:
        self.solved: dict[str, SolveResult] = {}
        self._jobs, self._rows, self._progress, self._cache = jobs, rows, progress, cache
        self._helpers = 0 if cache is None else cache.helpers

    def solve_all(self) -> None:
        """Solve every layer.

        Raises:
            RunCancelled: If the run is to stop; layers not done are left out.
        """
        jobs = {job.name: job for job in self._jobs}
        shared: dict[str, SolveJob] = {}
        if self._cache is not None and self._helpers > 0:
            shared = {job.name: job for job in shareable(self._jobs, self._cache)}
        helpers = count_helpers(list(shared.values()), self._helpers)
        order = list((jobs | shared).values())
        if helpers > 0:
            # Large layers last, when the helpers are through: they are solved with all cores.
            order.sort(key=lambda job: not is_small(job.weight, job.task.rank))
        with SolverPool(order, shared=shared, cache=self._cache, helpers=helpers) as pool:
            while len(self.solved) < len(jobs):
                self._progress.check()
                job = pool.take()
                if job is not None:
                    self._solve(job, pool)
                self._relay(pool, WAIT_SECONDS if job is None else 0.0)

    def _solve(self, job: SolveJob, pool: SolverPool) -> None:
        """Solve a layer in this process, passing on meanwhile what helpers tell."""

        def on_event(event: SolveEvent) -> None:
            self._progress.solver_event(event)
            self._relay(pool)

        share = len(self.solved) / len(self._jobs)
        self._progress.stage("solving", job.name, share)
        self._report_start(job)
        key = job.key if self._cache is None else job.key or self._cache.key(job.weight, job.task)
        result = None if self._cache is None else self._cache.load(key)
        if result is None:
            result = solve_where_placed(job.task, job.weight, layer=job.name, on_event=on_event)
            if self._cache is not None:
                self._cache.keep(key, result)
        if result.status is Status.CANCELLED:
            raise RunCancelled  # a layer that was stopped is not finished: it keeps its original weight
        self._report_end(job, result)

    def _relay(self, pool: SolverPool, wait_seconds: float = 0.0) -> None:
        for news in pool.news(wait_seconds):
            self._pass_on(news, pool)

    def _pass_on(self, news: News, pool: SolverPool) -> None:
        if news.kind == "started":
            self._report_start(news.job)
        elif news.event is not None:
            self._progress.solver_event(news.event)
        elif news.kind == "solved":
            result = None if self._cache is None else self._cache.load(news.job.key)
            if result is None:  # it was not kept: the disk is full, or the weight not finite
                pool.give_back(news.job)
            else:
                self._report_end(news.job, result)

    def _report_start(self, job: SolveJob) -> None:
        self._progress.send(
            "layer_started", job.name, index=job.index, total=len(self._jobs), **self._planned(job)
        )

    def _report_end(self, job: SolveJob, result: SolveResult) -> None:
        self.solved[job.name] = result
        self._progress.send(
            "layer_finished",
            job.name,
            relative_error=result.relative_error,
            float_relative_error=result.float_relative_error,
            status=result.status.value,
            explanation=result.status.explanation,
            iterations=result.iterations,
            seconds=result.seconds,
            output_error=None,
            **self._planned(job),
        )

    def _planned(self, job: SolveJob) -> dict[str, Any]:
        row = self._rows[job.name]
        return {
            "structure": row.structure,
            "rank": list(row.rank) if isinstance(row.rank, tuple) else row.rank,
            "bits": list(row.bits) if isinstance(row.bits, tuple) else row.bits,
        }


def placed(weight: Tensor, rank: int | tuple[int, int] | None) -> Tensor:
    """The weight on the device it is best solved on: large ones on a GPU where PyTorch finds one.

    The same solver runs there. Small layers stay: their many short calls take longer on a GPU.
    ``QAF_DEVICE=cpu`` leaves all where they are.
    """
    device = os.environ.get(DEVICE_VARIABLE, "auto")
    if device == "cpu" or is_small(weight, rank) or not torch.cuda.is_available():
        return weight
    return weight.to("cuda")


def solve_where_placed(
    task: SolveTask, weight: Tensor, *, layer: str, on_event: Callable[[SolveEvent], None]
) -> SolveResult:
    """Solve on the weight's device; if the memory of a GPU is full, on the processor. Factors come back
    on the processor.
    """
    try:
        with threads_for(weight, task.rank):
            result = task.solve(weight, layer=layer, on_event=on_event)
    except torch.OutOfMemoryError:
        if weight.device.type == "cpu":
            raise
        _log.warning("%s: the GPU's memory is full; solved on the processor", layer)
        weight = weight.cpu()
        with threads_for(weight, task.rank):
            result = task.solve(weight, layer=layer, on_event=on_event)
    factors = result.factors
    moved = replace(
        factors, codes=tuple(c.cpu() for c in factors.codes), scales=tuple(s.cpu() for s in factors.scales)
    )
    return replace(result, factors=moved)


def shareable(jobs: Sequence[SolveJob], cache: SolveCache) -> list[SolveJob]:
    """The layers that helpers may solve, with their keys: small ones whose results can be kept and are not
    yet, and whose tensors may lie in memory twice.
    """
    able = [
        job
        for job in jobs
        if is_small(job.weight, job.task.rank)
        and job.task.options.time_limit_seconds is None
        and _size_bytes(job) <= MOST_SENT_BYTES
    ]
    known = [replace(job, key=cache.key(job.weight, job.task)) for job in able]
    return [job for job in known if not cache.holds(job.key)]


def _size_bytes(job: SolveJob) -> int:
    covariance = job.task.input_covariance
    return job.weight.nbytes + (0 if covariance is None else covariance.nbytes)


def count_helpers(jobs: Sequence[SolveJob], most: int) -> int:
    """How many helpers these layers are worth, at most ``most`` and one for each layer but one."""
    work_seconds = sum(estimated_seconds(job) for job in jobs)
    return max(0, min(most, MOST_HELPERS, len(jobs) - 1, int(work_seconds / HELPER_SECONDS)))


def estimated_seconds(job: SolveJob) -> float:
    """About what the solve of a layer takes on one thread."""
    if job.task.structure not in FACTORIZED:
        inputs = job.weight[0].numel()
        return DENSE_SECONDS * inputs + DENSE_SECONDS_PER_CUBE * inputs**3
    return CALLS_SECONDS + SECONDS_PER_OPERATION * sweep_operations(job.weight, job.task.rank)


def sweep_operations(weight: Tensor, rank: int | tuple[int, int] | None) -> float:
    """Floating-point operations of a solver sweep, about."""
    ranks = rank if isinstance(rank, tuple) else (rank or 1,)
    return 6.0 * weight.numel() * max(ranks)


def is_small(weight: Tensor, rank: int | tuple[int, int] | None) -> bool:
    """Whether a layer is solved on one thread: sharing short matrix products costs more than it saves."""
    return weight.device.type == "cpu" and sweep_operations(weight, rank) < SMALL_SWEEP


@contextmanager
def threads_for(weight: Tensor, rank: int | tuple[int, int] | None) -> Iterator[None]:
    """One thread while a small layer is solved."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if is_small(weight, rank) else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
