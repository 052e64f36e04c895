"""The joint solver's sweeps and its loop, by properties that hold whatever the numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from helpers import draw_double as draw
from torch import Tensor

from qaf_core.errors import RunCancelled
from qaf_core.factorization.admm import START_SWEEPS, START_WORK, automatic_sweeps, solve_joint
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.tucker2 import Tucker2
from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
from qaf_core.factorization.sweeps import (
    State,
    activation_noise,
    admm_sweep,
    align_signs,
    column_losses,
    fit_factor_scales,
    round_to_nearest,
    rounding_sweep,
    start_sweep,
)
from qaf_core.quantization.grid import Grid
from qaf_core.quantization.spec import QuantSpec

ROWS, COLUMNS, KERNEL, RANK = 10, 8, 9, 12
QUICK = SolverOptions(start_iterations=30, iterations=4, rounding_rounds=6)
ALL_SWEEPS = pytest.mark.parametrize("kind", ["start", "admm", "rounding"])

Problem = Canonical | Tucker2


def make(name: str, moment: bool = False, target: Tensor | None = None) -> Problem:
    inputs = draw(20, COLUMNS, seed=9)
    second = inputs.mT @ inputs / 20 if moment else None
    target = draw(ROWS, COLUMNS, KERNEL) if target is None else target
    if name == "tucker2":
        return Tucker2(target, (6, 5), second)
    return Canonical(target if name == "cp" else target[:, :, 0], RANK if name == "cp" else 4, second)


def state_of(problem: Problem, values: list[Tensor], bits: int = 3, granularity: str = "rank") -> State:
    return State(
        subproblem=problem,
        spec=QuantSpec(bits=bits, granularity=granularity),
        options=SolverOptions(),
        values=[value.clone() for value in values],
        codes=[torch.zeros_like(value) for value in values],
        scales=[torch.ones_like(value[:1]) for value in values],
        duals=[torch.zeros_like(value) for value in values],
    )


def sweep_of(kind: str) -> Callable[[State], None]:
    if kind == "start":
        return lambda state: start_sweep(1, warm=True)(state, 0)
    sweep = admm_sweep() if kind == "admm" else rounding_sweep
    return lambda state: sweep(state, 1)


def rebuilt_error(state: State, codes: list[Tensor], scales: list[Tensor]) -> float:
    """Relative error of codes × scales, the tensor rebuilt in full (CP and matrices)."""
    problem = state.subproblem
    assert isinstance(problem, Canonical)
    values = [code * scale for code, scale in zip(codes, scales, strict=True)]
    letters = ",".join(f"{letter}r" for letter in "ijk"[: len(values)])
    rebuilt = torch.einsum(f"{letters}->{'ijk'[: len(values)]}", *values)
    difference = (problem.target - rebuilt).movedim(1, -1)
    target = problem.target.movedim(1, -1)
    moment = torch.eye(COLUMNS, dtype=torch.float64) if problem.moment is None else problem.moment
    squares = ((difference @ moment) * difference).sum() / ((target @ moment) * target).sum()
    return math.sqrt(float(squares))


@ALL_SWEEPS
@pytest.mark.parametrize("moment", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_one_sweep_scales_with_the_target(kind: str, moment: bool, granularity: str) -> None:
    problem = make("cp", moment)
    larger = make("cp", moment, 64.0 * problem.target)
    start = problem.random_start(torch.Generator().manual_seed(1))
    plain = state_of(problem, start, granularity=granularity)
    scaled = state_of(larger, [4.0 * factor for factor in start], granularity=granularity)
    for state in (plain, scaled):
        sweep_of(kind)(state)
    for codes, other in zip(plain.codes, scaled.codes, strict=True):
        assert torch.equal(codes, other)
    product = [math.prod(float(v[0, 0]) for v in state.values) for state in (plain, scaled)]
    assert product[1] == pytest.approx(64.0 * product[0], rel=1e-9)
    assert scaled.float_error == pytest.approx(plain.float_error, rel=1e-9)
    if kind != "start":
        assert scaled.quantized_error == pytest.approx(plain.quantized_error, rel=1e-9)


@ALL_SWEEPS
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_one_sweep_follows_a_permutation_of_channels_and_positions(kind: str, mode: int) -> None:
    problem = make("cp")
    order = torch.randperm(problem.target.shape[mode], generator=torch.Generator().manual_seed(2))
    permuted = make("cp", target=problem.target.index_select(mode, order))
    start = problem.random_start(torch.Generator().manual_seed(1))
    moved = [factor[order] if other == mode else factor for other, factor in enumerate(start)]
    states = (
        state_of(problem, start, granularity="rank_row"),
        state_of(permuted, moved, granularity="rank_row"),
    )
    for state in states:
        sweep_of(kind)(state)
    for other, (values, found) in enumerate(zip(states[0].values, states[1].values, strict=True)):
        torch.testing.assert_close(found, values[order] if other == mode else values)
    assert states[1].float_error == pytest.approx(states[0].float_error, rel=1e-9)


@ALL_SWEEPS
def test_one_sweep_follows_a_permutation_of_components(kind: str) -> None:
    problem = make("cp")
    order = torch.randperm(RANK, generator=torch.Generator().manual_seed(3))
    start = problem.random_start(torch.Generator().manual_seed(1))
    states = state_of(problem, start), state_of(problem, [factor[:, order] for factor in start])
    for state in states:
        sweep_of(kind)(state)
    if kind != "rounding":  # coordinate descent visits the components in their order
        for values, found in zip(states[0].values, states[1].values, strict=True):
            torch.testing.assert_close(found, values[:, order])
    assert states[1].float_error == pytest.approx(states[0].float_error, rel=0.05)


def test_the_penalty_does_not_move_a_solution_that_lies_on_the_grid() -> None:
    codes = [
        torch.randint(-3, 4, (size, 3), generator=torch.Generator().manual_seed(size)).double()
        for size in (9, 8, 7)
    ]
    for factor in codes:
        factor[0] = 3.0
    target = torch.einsum("ir,jr,kr->ijk", *codes)
    for kind in ("admm", "rounding"):
        state = state_of(Canonical(target, 3), codes)
        sweep_of(kind)(state)
        assert state.quantized_error < 1e-4


@pytest.mark.parametrize("name", ["cp", "svd", "tucker2"])
@pytest.mark.parametrize("bits", [2, 4])
def test_sweeps_put_every_factor_on_its_grid(name: str, bits: int) -> None:
    problem = make(name)
    state = state_of(problem, problem.random_start(torch.Generator().manual_seed(0)), bits=bits)
    low, high = Grid.of(bits).low, Grid.of(bits).high
    for sweep in (admm_sweep(), rounding_sweep):
        sweep(state, 1)
        for values, codes, scales in zip(state.values, state.codes, state.scales, strict=True):
            assert torch.equal(codes, codes.round())
            assert low <= float(codes.min())
            assert float(codes.max()) <= high
            torch.testing.assert_close(values, codes * scales)


@pytest.mark.parametrize("name", ["cp", "svd"])
@pytest.mark.parametrize("moment", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_the_kept_iterate_has_the_error_it_says_and_no_event_was_lower(
    name: str, moment: bool, granularity: str
) -> None:
    events: list[SolveEvent] = []
    spec = QuantSpec(bits=4, granularity=granularity)
    state, _ = solve_joint(
        make(name, moment), spec, options=QUICK, seed=0, layer="layer", on_event=events.append
    )
    assert state.best.error == pytest.approx(
        rebuilt_error(state, state.best.codes, state.best.scales), rel=1e-6
    )
    assert state.best.error <= min(event.quantized_error for event in events)


@pytest.mark.parametrize("name", ["cp", "svd", "tucker2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_error_is_never_above_plainly_rounding_the_start(name: str, bits: int) -> None:
    problem = make(name)
    no_rounding = SolverOptions(start_iterations=30, iterations=0, rounding_rounds=0)
    plain, _ = solve_joint(problem, QuantSpec(bits=bits), options=no_rounding, seed=0)
    state, _ = solve_joint(problem, QuantSpec(bits=bits), options=QUICK, seed=0)
    assert state.best.error <= plain.best.error


def test_rounded_activations_keep_the_solver_from_components_that_cancel() -> None:
    # The sum of two components that are nearly opposite: they grow without end as they come near to it.
    a, b, c, d, e, f = (draw(size, seed=seed) for seed, size in enumerate((9, 8, 7, 9, 8, 7)))
    target = sum(
        torch.einsum("i,j,k->ijk", *term) for term in ((d, b, c), (a, e, c), (a, b, f))
    )  # of border rank 2
    problem = Canonical(target, 2)
    sizes, noises = [], []
    for activation_bits in (32, 8, 4):
        state, _ = solve_joint(
            problem, QuantSpec(bits=8, activation_bits=activation_bits), options=QUICK, seed=0
        )
        values = [codes * scales for codes, scales in zip(state.best.codes, state.best.scales, strict=True)]
        size = float(torch.stack([value.square().sum(dim=0) for value in values]).prod(dim=0).sum())
        sizes.append(size / problem.target_norm_squared)
        exact = float((torch.einsum("ir,jr,kr->ijk", *values) - target).square().sum())
        noises.append(exact / problem.target_norm_squared)
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * sizes[2], sizes
    assert noises[0] < noises[1]


def test_the_error_of_a_solve_includes_what_rounded_activations_are_expected_to_add() -> None:
    problem = make("cp")
    state = State.begin(
        problem,
        QuantSpec(bits=8, activation_bits=8),
        QUICK,
        problem.random_start(torch.Generator().manual_seed(0)),
    )
    values = state.values
    exact = problem.quadratic(values, 0).squared_error(values[0], problem.target_norm_squared)
    components = torch.stack([value.square().sum(dim=0) for value in values]).prod(dim=0).sum()
    expected = ((1 + activation_noise(8)) ** 2 - 1) * float(components)
    error = state.problem(values, 0).squared_error(values[0], problem.target_norm_squared)
    assert error - exact == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_given_start_is_rounded_as_it_is_too(bits: int) -> None:
    high = (Grid.of(bits).low, Grid.of(bits).high)[1]
    start = [
        torch.randint(-high, high + 1, (size, 2), generator=torch.Generator().manual_seed(size)).double()
        for size in (9, 8, 7)
    ]
    for factor in start:
        factor[0] = high
    problem = Canonical(torch.einsum("ir,jr,kr->ijk", *start), 2)
    state, _ = solve_joint(problem, QuantSpec(bits=bits), options=QUICK, seed=0, start=start)
    assert state.best.error < 1e-6


def test_events_count_up_and_are_finite() -> None:
    events: list[SolveEvent] = []
    state, status = solve_joint(
        make("cp"),
        QuantSpec(bits=3),
        options=QUICK,
        seed=0,
        layer="conv1",
        on_event=events.append,
    )
    iterations = [event.iteration for event in events]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] == state.iteration <= 30 + 4 + 6
    times = [event.elapsed_seconds for event in events]
    assert times == sorted(times)
    for event in events:
        assert event.layer == "conv1"
        numbers = (
            event.float_error,
            event.quantized_error,
            event.primal_residual,
            event.dual_residual,
            event.rho,
        )
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert status in (Status.CONVERGED, Status.STAGNATED, Status.MAX_ITERATIONS)


def test_primal_residuals_fall_in_the_admm_phase() -> None:
    events: list[SolveEvent] = []
    options = SolverOptions(start_iterations=30, iterations=40, rounding_rounds=0, patience=40)
    solve_joint(make("cp"), QuantSpec(bits=4), options=options, seed=0, on_event=events.append)
    residuals = [event.primal_residual for event in events if event.rho > 0]
    assert len(residuals) > 5
    assert residuals[-1] < 0.5 * residuals[0]


@pytest.mark.parametrize("stop_at", [1, 3, 8])
def test_a_cancelled_solve_keeps_the_best_so_far(stop_at: int) -> None:
    events: list[SolveEvent] = []

    def watch(event: SolveEvent) -> None:
        events.append(event)
        if len(events) == stop_at:
            raise RunCancelled

    state, status = solve_joint(make("cp"), QuantSpec(bits=4), options=QUICK, seed=0, on_event=watch)
    assert status is Status.CANCELLED
    assert len(events) == stop_at
    assert state.best.error <= min(event.quantized_error for event in events)
    assert state.best.error == pytest.approx(
        rebuilt_error(state, state.best.codes, state.best.scales), rel=1e-6
    )


def test_a_time_limit_ends_the_solve_with_a_result() -> None:
    options = SolverOptions(start_iterations=100_000, tolerance=0.0, time_limit_seconds=0.05)
    began = time.monotonic()
    state, status = solve_joint(make("cp"), QuantSpec(bits=4), options=options, seed=0)
    assert status is Status.TIME_LIMIT
    assert time.monotonic() - began < 5
    assert state.best.codes
    assert math.isfinite(state.best.error)


def test_limits_of_the_phases_are_kept() -> None:
    options = SolverOptions(start_iterations=7, iterations=2, rounding_rounds=3, tolerance=0.0, patience=100)
    state, status = solve_joint(make("cp"), QuantSpec(bits=4), options=options, seed=0)
    assert state.iteration == 7 + 2 + 3
    assert status is Status.MAX_ITERATIONS


def test_patience_ends_a_phase_without_progress() -> None:
    options = SolverOptions(start_iterations=20, iterations=500, rounding_rounds=0, tolerance=0.0, patience=2)
    state, status = solve_joint(make("cp"), QuantSpec(bits=4), options=options, seed=0)
    assert status is Status.STAGNATED
    assert state.iteration < 20 + 500


def test_a_target_that_is_not_finite_ends_as_diverged_with_zero_factors() -> None:
    target = draw(ROWS, COLUMNS, KERNEL)
    target[0, 0, 0] = math.inf
    state, status = solve_joint(Canonical(target, 3), QuantSpec(bits=4), options=QUICK, seed=0)
    assert status is Status.DIVERGED
    assert all(not bool(codes.any()) for codes in state.best.codes)
    assert all(bool(torch.isfinite(scales).all()) for scales in state.best.scales)


def test_floating_point_needs_no_rounding_phases() -> None:
    state, _ = solve_joint(make("svd"), QuantSpec(bits=32), options=QUICK, seed=0)
    assert state.iteration <= 30
    assert state.best.error == pytest.approx(state.float_error, rel=1e-6)


@pytest.mark.parametrize("bits", [(2, 8, 32), (32, 32, 4), (8, 2, 5)])
def test_each_factor_keeps_its_own_width(bits: tuple[int, ...]) -> None:
    state, _ = solve_joint(make("cp"), QuantSpec(bits=bits), options=QUICK, seed=0)
    for codes, width in zip(state.best.codes, bits, strict=True):
        if width == 32:
            assert not torch.equal(codes, codes.round())
        else:
            low, high = Grid.of(width).low, Grid.of(width).high
            assert torch.equal(codes, codes.round())
            assert low <= float(codes.min())
            assert float(codes.max()) <= high
    assert state.best.error == pytest.approx(
        rebuilt_error(state, state.best.codes, state.best.scales), rel=1e-6
    )


def test_one_scale_a_factor_stays_one_scale() -> None:
    state, _ = solve_joint(make("cp"), QuantSpec(bits=4, granularity="tensor"), options=QUICK, seed=0)
    assert [tuple(scales.shape) for scales in state.best.scales] == [(1, 1)] * 3


def test_scales_by_row_are_an_outer_product_on_the_output_side() -> None:
    state, _ = solve_joint(make("cp"), QuantSpec(bits=4, granularity="rank_row"), options=QUICK, seed=0)
    assert [tuple(scales.shape) for scales in state.best.scales] == [(ROWS, RANK), (1, RANK), (1, RANK)]
    scales = state.best.scales[0]
    torch.testing.assert_close(scales, scales[:, :1] * scales[:1] / scales[:1, :1])
    assert float(scales.min()) > 0


@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_finer_scales_round_better(granularity: str) -> None:
    values = draw(30, 6) * torch.logspace(-1, 1, 6, dtype=torch.float64) * torch.rand(30, 1).double().add(0.1)

    def error(kind: str) -> float:
        scales = fit_factor_scales(values, 3, kind, 0)
        return float((Grid.of(3).round(values, scales) * scales - values).norm() / values.norm())

    assert error(granularity) <= error("tensor") * (1 + 1e-9)
    assert error("rank") < 0.9 * error("tensor")


@pytest.mark.parametrize("name", ["cp", "svd", "tucker2"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_turned_columns_keep_the_tensor_and_lose_less(name: str, bits: int) -> None:
    problem, norm = make(name), make(name).target_norm_squared
    values = problem.random_start(torch.Generator().manual_seed(4))
    oriented = align_signs(problem, values, (bits,) * len(values))
    errors = [problem.quadratic(each, 0).squared_error(each[0], norm) for each in (values, oriented)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-9)
    lost, kept = (
        torch.stack([column_losses(each[mode], bits) for mode in problem.paired]).sum(dim=0)
        for each in (values, oriented)
    )
    assert bool((kept <= lost * (1 + 1e-9)).all())
    assert float(kept.sum()) < float(lost.sum())
    again = align_signs(problem, oriented, (bits,) * len(values))
    assert all(torch.equal(a, b) for a, b in zip(oriented, again, strict=True))


def test_columns_turn_to_where_the_grid_reaches_further() -> None:
    left, right = torch.tensor([[2.0], [-1.0], [0.0]]), torch.tensor([[2.0], [-1.0]])
    problem = Canonical(left @ right.mT, 1)
    oriented = align_signs(problem, [left, right], (2, 2))
    assert torch.equal(oriented[0], -left)
    assert torch.equal(oriented[1], -right)
    floating = align_signs(problem, [left, right], (32, 32))
    assert torch.equal(floating[0], left)


def test_dead_columns_are_turned_without_harm() -> None:
    problem = make("cp")
    values = problem.random_start(torch.Generator().manual_seed(4))
    values[1][:, 2] = 0.0
    oriented = align_signs(problem, values, (4, 4, 4))
    assert all(bool(torch.isfinite(factor).all()) for factor in oriented)


def test_plain_rounding_notes_its_error() -> None:
    problem = make("cp")
    state = state_of(problem, problem.random_start(torch.Generator().manual_seed(0)), bits=4)
    round_to_nearest(state)
    assert state.quantized_error == state.best.error
    assert state.best.error == pytest.approx(rebuilt_error(state, state.codes, state.scales), rel=1e-9)


def test_the_same_seed_gives_the_same_codes_and_another_seed_others() -> None:
    def solve(seed: int) -> list[Tensor]:
        return solve_joint(make("cp"), QuantSpec(bits=4), options=QUICK, seed=seed)[0].best.codes

    first, again, other = solve(0), solve(0), solve(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_small_layers_start_longer() -> None:
    works = [1e3, 1e8, 1e9, 1e10, 1e12]
    structures = [SimpleNamespace(sweep_operations=work) for work in works]
    counts = [automatic_sweeps(one, START_WORK, *START_SWEEPS) for one in structures]  # type: ignore[arg-type]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (300, 60)
