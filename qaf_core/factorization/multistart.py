"""Several starts of the joint solver on one layer, the best result kept.

The error has many local minima. Where a solve is short it is worth repeating: from other random starts, and,
where the grid is fine enough that rounding hardly disturbs the factors, from floating-point factors that make
no room for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from qaf_core.factorization.admm import OnEvent, solve_joint
from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
from qaf_core.factorization.subproblem import Subproblem
from qaf_core.factorization.sweeps import State
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.quantization.spec import QuantSpec

# Floating-point operations of a sweep up to which so many random starts are made, where the options leave it
# open: there a sweep costs the calls more than the arithmetic.
AUTOMATIC_STARTS = ((1e6, 3), (5e6, 2))
FINE_BITS = 6  # from here on floating-point factors are tried as a start too
TINY_SWEEP = 1e5  # below so many operations a sweep, at any width
CHEAP_SWEEP = 5e8  # where a sweep costs no more floating-point operations than this
SEED_STEP = 7919  # between the seeds of the starts of one layer
ENDED_EARLY = (Status.CANCELLED, Status.TIME_LIMIT)
LEAST_SECONDS = 1e-9  # a limit is positive; one that has passed leaves one iteration


@dataclass(kw_only=True)
class _Attempts:
    """The solves of one layer as one: events numbered on, one time limit, the best state so far."""

    subproblem: Subproblem
    spec: QuantSpec
    options: SolverOptions
    layer: str
    on_event: OnEvent | None
    began: float
    iterations: int = 0
    best: State | None = None
    status: Status = Status.MAX_ITERATIONS
    ended_early: Status | None = None

    def solve(self, seed: int, spec: QuantSpec, start: Sequence[Tensor] | None = None) -> State:
        """One more solve; a limit or a cancellation in it ends the whole."""
        limit = self.options.time_limit_seconds
        left = None if limit is None else max(limit - (time.monotonic() - self.began), LEAST_SECONDS)
        state, status = solve_joint(
            self.subproblem,
            spec,
            options=replace(self.options, time_limit_seconds=left),
            seed=seed,
            layer=self.layer,
            on_event=None if self.on_event is None else self._relay(spec),
            start=start,
        )
        self.iterations += state.iteration
        if status in ENDED_EARLY:
            self.ended_early = status
        if spec == self.spec and (self.best is None or state.best.error < self.best.best.error):
            self.best, self.status = state, status
        return state

    def _relay(self, spec: QuantSpec) -> OnEvent:
        """Passes events on, numbered on from the solves before; the error of floating-point factors is no
        quantized one.
        """
        before, best, on_event = self.iterations, self.best, self.on_event

        def relay(event: SolveEvent) -> None:
            known = event.quantized_error if spec == self.spec or best is None else best.best.error
            if on_event is not None:
                on_event(replace(
                    event, iteration=before + event.iteration, quantized_error=known,
                    elapsed_seconds=time.monotonic() - self.began,
                ))  # fmt: skip

        return relay


def solve_from_starts(
    subproblem: Subproblem,
    spec: QuantSpec,
    *,
    options: SolverOptions,
    seed: int,
    layer: str = "",
    on_event: OnEvent | None = None,
    start: Sequence[Tensor] | None = None,
) -> tuple[State, Status, int]:
    """Run the joint solver from as many starts as the options say, or as are cheap.

    Args:
        subproblem, spec, options, seed, layer, on_event: As in ``solve_joint``.
        start: Factors to begin with; then there is no other start.

    Returns:
        The state with the lowest quantized error, why its solve stopped (or why all were cut short), and the
        iterations of all solves.
    """
    attempts = _Attempts(
        subproblem=subproblem, spec=spec, options=options, layer=layer, on_event=on_event,
        began=time.monotonic(),
    )  # fmt: skip
    best = attempts.solve(seed, spec, start)
    bits = best.bits
    if start is None and not all(Grid.of(b).is_float for b in bits):
        count = (options.starts or automatic_starts(subproblem)) if subproblem.draws_start else 1
        for attempt in range(1, count):
            if attempts.ended_early is None:
                attempts.solve(seed + attempt * SEED_STEP, spec)
        fine = min(bits) >= FINE_BITS and subproblem.sweep_operations < CHEAP_SWEEP
        if (fine or subproblem.sweep_operations < TINY_SWEEP) and attempts.ended_early is None:
            unrounded = replace(spec, bits=(FLOAT.bits,) * len(bits), granularity="rank")
            plain = attempts.solve(seed, unrounded)
            if attempts.ended_early is None:
                attempts.solve(seed, spec, plain.float_values)
    return attempts.best or best, attempts.ended_early or attempts.status, attempts.iterations


def automatic_starts(subproblem: Subproblem) -> int:
    """Random starts where the options leave their number open: 3, 2 or 1 by the cost of a sweep."""
    return next((n for limit, n in AUTOMATIC_STARTS if subproblem.sweep_operations <= limit), 1)
