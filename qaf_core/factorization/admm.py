"""The joint solver: factors found directly on their integer grids.

One loop (:func:`iterate`) runs three kinds of sweep over the factors (:mod:`~qaf_core.factorization.sweeps`):
a floating-point start that expects the rounding to come, ADMM on the grid, and rounding with error feedback.
The best quantized iterate of the last two (and the plain rounding of the start) is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.errors import RunCancelled
from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
from qaf_core.factorization.subproblem import Subproblem
from qaf_core.factorization.sweeps import (
    FALL_SHARE,
    Best,
    State,
    admm_sweep,
    align_signs,
    round_to_nearest,
    rounding_sweep,
    start_sweep,
)
from qaf_core.quantization.grid import Grid
from qaf_core.quantization.spec import QuantSpec

OnEvent = Callable[[SolveEvent], None]

START_EVENT_EVERY = 10
# Floating-point operations, and least and most sweeps, where the options leave them open.
START_WORK, START_SWEEPS = 2.5e11, (60, 300)
ROUNDING_WORK, ROUNDING_SWEEPS = 4e10, (10, 30)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A kind of sweep, how often it may run, and how it knows that it is done.

    Attributes:
        name: For people.
        sweep: Changes the state; told the number of the step.
        limit: Sweeps at most.
        watches_quantized: It goes by the quantized error, not by that of the floating-point factors.
        settled: Whether two errors one after the other are as good as equal.
        patience: Sweeps without a better quantized iterate before it ends; None: any number.
    """

    name: str
    sweep: Callable[[State, int], None]
    limit: int
    watches_quantized: bool
    settled: Callable[[float, float], bool]
    patience: int | None = None


def solve_joint(
    subproblem: Subproblem,
    spec: QuantSpec,
    *,
    options: SolverOptions,
    seed: int,
    layer: str = "",
    on_event: OnEvent | None = None,
    start: Sequence[Tensor] | None = None,
) -> tuple[State, Status]:
    """Run the joint solver on one structure.

    Args:
        subproblem: The target and its algebra.
        spec: Bits of each factor, granularity of the scales, and bits of activations.
        options: Limits and tolerances.
        seed: Of the random start.
        layer: Name carried by the events.
        on_event: Called after each sweep that is reported; it may raise ``RunCancelled`` to stop.
        start: Floating-point factors to begin with, instead of a random start (a warm start).

    Returns:
        The final state, whose ``best`` holds codes and scales, and why it stopped.
    """
    generator = torch.Generator().manual_seed(seed)
    values = list(start) if start is not None else subproblem.random_start(generator)
    state = State.begin(subproblem, spec, options, values)
    start_limit = options.start_iterations or automatic_sweeps(subproblem, START_WORK, *START_SWEEPS)
    rounding_limit = options.rounding_rounds
    if rounding_limit is None:
        rounding_limit = automatic_sweeps(subproblem, ROUNDING_WORK, *ROUNDING_SWEEPS)
    quantized = not all(Grid.of(b).is_float for b in state.bits)

    def settled(previous: float, current: float) -> bool:
        return abs(previous - current) <= options.tolerance * current

    start_phase = Phase(
        name="start", sweep=start_sweep(start_limit, warm=start is not None), limit=start_limit,
        watches_quantized=False, settled=settled,
    )  # fmt: skip
    on_the_grid = (("admm", admm_sweep(), options.iterations), ("rounding", rounding_sweep, rounding_limit))
    phases = [start_phase] + [
        Phase(
            name=name, sweep=sweep, limit=limit, watches_quantized=True, settled=settled,
            patience=options.patience,
        )
        for name, sweep, limit in on_the_grid if quantized
    ]  # fmt: skip
    round_to_nearest(state)
    status = iterate(state, phases, layer=layer, on_event=on_event)
    if not state.best.codes:  # not one iterate was finite
        zeros = [torch.zeros_like(v) for v in state.values]
        state.best = Best(error=1.0, codes=zeros, scales=[torch.ones_like(v[:1]) for v in zeros])
    return state, status


def automatic_sweeps(subproblem: Subproblem, work: float, least: int, most: int) -> int:
    """Sweeps that cost about ``work`` floating-point operations, within ``least … most``."""
    return int(min(most, max(least, work / max(subproblem.sweep_operations, 1.0))))


def iterate(
    state: State,
    phases: Sequence[Phase],
    *,
    layer: str,
    on_event: OnEvent | None,
    began: float | None = None,
) -> Status:
    """Run the phases one after another; each ends when done, all end on a limit, a cancellation or a
    divergence. What the start found is rounded also where it ends early.

    Time counts from ``began``, a reading of ``time.monotonic``, or from now.
    """
    began = time.monotonic() if began is None else began
    status = Status.MAX_ITERATIONS
    for phase in phases:
        try:
            if phase.limit:
                status = _run_phase(state, phase, layer=layer, on_event=on_event, began=began)
        except RunCancelled:
            status = Status.CANCELLED
        if status is Status.DIVERGED:
            return status
        if phase.name == "start":
            state.values = align_signs(state.subproblem, state.values, state.bits)
            round_to_nearest(state)
        if status in (Status.CANCELLED, Status.TIME_LIMIT):
            return status
    return status


def _run_phase(state: State, phase: Phase, *, layer: str, on_event: OnEvent | None, began: float) -> Status:
    previous, idle = math.inf, 0
    for step in range(phase.limit):
        phase.sweep(state, step)
        state.iteration += 1
        current = state.quantized_error if phase.watches_quantized else state.float_error
        if not all(bool(torch.isfinite(v).all()) for v in state.values):
            return Status.DIVERGED
        idle = 0 if current <= state.best.error or not phase.watches_quantized else idle + 1
        if phase.watches_quantized or step % START_EVENT_EVERY == 0 or step == phase.limit - 1:
            _report(state, layer, time.monotonic() - began, on_event)
        settled = phase.settled(previous, current)
        previous = current
        if settled and (phase.watches_quantized or step > FALL_SHARE * phase.limit):
            return Status.CONVERGED
        if phase.patience is not None and idle >= phase.patience:
            return Status.STAGNATED
        limit = state.options.time_limit_seconds
        if limit is not None and time.monotonic() - began > limit:
            return Status.TIME_LIMIT
    return Status.MAX_ITERATIONS


def _report(state: State, layer: str, elapsed_seconds: float, on_event: OnEvent | None) -> None:
    if on_event is None:
        return
    if math.isinf(state.quantized_error):
        round_to_nearest(state)
    on_event(
        SolveEvent(
            layer=layer,
            iteration=state.iteration,
            float_error=state.float_error,
            quantized_error=state.quantized_error,
            primal_residual=state.primal_residual,
            dual_residual=state.dual_residual,
            rho=state.rho,
            elapsed_seconds=elapsed_seconds,
        )
    )
