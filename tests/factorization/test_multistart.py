"""Several starts: the best is kept, events and limits run through all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import draw

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.errors import RunCancelled
from qaf_core.factorization.admm import solve_joint
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.tucker2 import Tucker2
from qaf_core.factorization.multistart import SEED_STEP, automatic_starts, solve_from_starts
from qaf_core.factorization.options import SolveEvent, Status

QUICK: dict[str, Any] = {"start_iterations": 20, "iterations": 2, "rounding_rounds": 3}


def run(bits: int, starts: int | None = 3, **given: Any) -> tuple[Any, Status, int]:
    options = SolverOptions(starts=starts, time_limit_seconds=given.pop("limit", None), **QUICK)
    problem = given.pop("problem", None) or Canonical(draw(12, 10, 9), 8)
    return solve_from_starts(problem, QuantSpec(bits=bits), options=options, seed=5, **given)


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_the_best_of_the_starts_is_kept(bits: int) -> None:
    problem, options = Canonical(draw(12, 10, 9), 8), SolverOptions(**QUICK)
    errors = [
        solve_joint(problem, QuantSpec(bits=bits), options=options, seed=5 + n * SEED_STEP)[0].best.error
        for n in range(3)
    ]
    state, _, _ = run(bits)
    assert state.best.error <= min(errors) * (1 + 1e-6)
    assert len(set(errors)) == 3


@pytest.mark.parametrize("bits", [3, 6])
def test_events_of_all_starts_count_on_and_end_at_the_kept_error(bits: int) -> None:
    events: list[SolveEvent] = []
    state, _, iterations = run(bits, on_event=events.append, layer="conv1")
    assert [event.iteration for event in events] == sorted({event.iteration for event in events})
    assert events[-1].iteration == iterations
    assert [event.elapsed_seconds for event in events] == sorted(event.elapsed_seconds for event in events)
    assert min(event.quantized_error for event in events) == pytest.approx(state.best.error, rel=1e-4)
    assert {event.layer for event in events} == {"conv1"}


@pytest.mark.parametrize(("bits", "share"), [(4, 0.1), (8, 0.45), (4, 0.7), (8, 0.95)])
def test_a_stop_in_any_start_ends_the_solve(bits: int, share: float) -> None:
    seen: list[SolveEvent] = []
    run(bits, on_event=seen.append)
    stop_at, heard = max(1, int(share * len(seen))), 0

    def stop(_event: SolveEvent) -> None:
        nonlocal heard
        heard += 1
        if heard == stop_at:
            raise RunCancelled

    state, status, _ = run(bits, on_event=stop)
    assert status is Status.CANCELLED
    assert heard == stop_at
    assert state.best.error < 1.0


def test_all_starts_share_one_time_limit() -> None:
    weight, spec = draw(32, 32, 3, 3), QuantSpec(bits=8)
    began_one = solve_layer(weight, "cp", 40, spec, SolverOptions(starts=1)).seconds
    result = solve_layer(
        weight, "cp", 40, spec, SolverOptions(starts=50, time_limit_seconds=max(0.2, began_one / 2))
    )
    assert result.status is Status.TIME_LIMIT
    assert result.seconds < 10 * max(0.2, began_one)


def test_a_given_start_is_the_only_one() -> None:
    problem, events = Canonical(draw(12, 10, 9), 8), []
    start = problem.random_start(torch.Generator().manual_seed(1))
    _, _, iterations = run(8, problem=problem, start=start, on_event=events.append)
    assert iterations <= QUICK["start_iterations"] + QUICK["iterations"] + QUICK["rounding_rounds"]


def test_a_start_without_draws_is_made_once() -> None:
    _, _, many = run(3, starts=5, problem=Tucker2(draw(12, 10, 9), (5, 4)))
    _, _, once = run(3, starts=1, problem=Tucker2(draw(12, 10, 9), (5, 4)))
    assert many == once


def test_small_problems_get_more_starts_than_large_ones() -> None:
    sizes = [Canonical(torch.zeros(n, n, 9), n) for n in (16, 32, 256)]
    counts = [automatic_starts(problem) for problem in sizes]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 1
    assert counts[-1] == 1
