"""The rival methods do what their sources say."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import draw
from torch import Tensor

from qaf_core.errors import RunCancelled
from qaf_core.factorization import baselines
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.tucker2 import Tucker2
from qaf_core.factorization.baselines import (
    correct_errors,
    paper_start,
    round_factors,
    search_tensor_scale,
    solve_paper,
    tensorly_factors,
)
from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
from qaf_core.quantization.grid import Grid

PAPER = SolverOptions(inner_iterations=10)


def planted(rank: int = 3) -> Tensor:
    factors = [draw(size, rank, seed=size, dtype=torch.float64) for size in (12, 10, 9)]
    return torch.einsum("ir,jr,kr->ijk", *factors)


def float_error(problem: Canonical | Tucker2, values: list[Tensor]) -> float:
    squared = problem.quadratic(values, 0).squared_error(values[0], problem.target_norm_squared)
    return math.sqrt(squared / problem.target_norm_squared)


def test_tensorly_finds_a_planted_decomposition() -> None:
    problem = Canonical(planted(), 3)
    assert float_error(problem, tensorly_factors(problem, seed=0)[0]) < 1e-2


def test_tensorly_svd_is_the_best_of_its_rank() -> None:
    problem = Canonical(draw(12, 10, dtype=torch.float64), 4)
    values = torch.linalg.svdvals(problem.target)
    expected = float((values[4:].square().sum() / values.square().sum()).sqrt())
    assert float_error(problem, tensorly_factors(problem, seed=0)[0]) == pytest.approx(expected, rel=1e-6)


def test_tensorly_tucker_is_at_least_as_good_as_the_start_of_the_joint_solver() -> None:
    problem = Tucker2(draw(12, 10, 9, dtype=torch.float64), (5, 4))
    start = problem.random_start(torch.Generator())
    found, _ = tensorly_factors(problem, seed=0)
    assert float_error(problem, found) <= float_error(problem, start) * (1 + 1e-6)


@pytest.mark.parametrize(
    "target",
    [torch.full((8, 6, 9), 0.5), planted(1).float(), torch.ones(1, 1, 9)],
    ids=["constant", "rank 1", "single"],
)
def test_tensorly_survives_ranks_that_are_too_high(target: Tensor) -> None:
    problem = Canonical(target, 4)
    values, _ = tensorly_factors(problem, seed=0)
    assert all(bool(torch.isfinite(factor).all()) for factor in values)
    assert float_error(problem, values) < 1e-2


def test_tensorly_depends_on_the_seed_alone() -> None:
    problem = Canonical(draw(8, 7, 9), 5)
    first, again, other = (tensorly_factors(problem, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_one_scale_is_the_best_clipping_point_of_its_range() -> None:
    values = draw(40, 5)
    found = search_tensor_scale(values, 3)
    error = float((Grid.of(3).round(values, found) * found - values).square().sum())
    for share in torch.linspace(0.2, 1.2, 200).tolist():
        scale = (share * values.abs().max() / 3).reshape(1, 1)
        assert error <= float((Grid.of(3).round(values, scale) * scale - values).square().sum()) * (1 + 1e-5)


def test_zero_factors_have_a_usable_scale() -> None:
    assert float(search_tensor_scale(torch.zeros(4, 3), 4)) == 1.0
    assert float(search_tensor_scale(draw(4, 3), 32)) == 1.0


@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_factors_are_rounded_one_by_one(granularity: str) -> None:
    factors = [draw(9, 4, seed=1), draw(8, 4, seed=2), draw(7, 4, seed=3)]
    codes, scales = round_factors(factors, (4, 3, 32), granularity)
    for values, code, scale, bits in zip(factors, codes, scales, (4, 3, 32), strict=True):
        assert torch.equal(code, Grid.of(bits).round(values, scale))
    if granularity == "tensor":
        assert all(scale.numel() == 1 for scale in scales)
    else:
        assert torch.equal(scales[1], Grid.of(3).fit_scales(factors[1], dims=(0,)))


def component_sizes(values: list[Tensor]) -> Tensor:
    return torch.stack([factor.square().sum(dim=0) for factor in values]).prod(dim=0)


def test_error_preserving_correction_shrinks_components_within_the_bound() -> None:
    # Two components that nearly cancel: the degenerate case the correction is made for.
    a, b, c = (draw(size, 1, seed=size, dtype=torch.float64) for size in (9, 8, 7))
    near = [
        torch.cat([factor, factor + 0.05 * draw(*factor.shape, seed=1).double()], dim=1)
        for factor in (a, b, c)
    ]
    near[0] = near[0] * torch.tensor([[20.0, -19.0]], dtype=torch.float64)
    target = torch.einsum("ir,jr,kr->ijk", *near) + 0.01 * draw(9, 8, 7).double()
    problem = Canonical(target, 2)
    factors = problem.balance(near)
    for mode in problem.order:
        factors[mode] = problem.quadratic(factors, mode).solution()
    bound = 1.05 * problem.quadratic(factors, 0).squared_error(factors[0], problem.target_norm_squared)
    corrected = correct_errors(problem, list(factors), bound, sweeps=10)
    assert problem.quadratic(corrected, 0).squared_error(
        corrected[0], problem.target_norm_squared
    ) <= bound * (1 + 1e-6)
    assert float(component_sizes(corrected).sum()) < 0.9 * float(component_sizes(factors).sum())


def test_the_published_start_is_nearly_exact_on_a_planted_tensor() -> None:
    problem = Canonical(planted(), 3)
    assert float_error(problem, paper_start(problem, seed=0)) < 2e-2


def solve(options: SolverOptions = PAPER, watch: object = None, target: Tensor | None = None) -> tuple:  # type: ignore[type-arg]
    problem = Canonical(draw(12, 10, 9) if target is None else target, 8)
    state, status = solve_paper(problem, (4, 4, 4), options=options, seed=0, layer="conv", on_event=watch)  # type: ignore[arg-type]
    return state.best.codes, state.best.scales, state.float_values, status, state.iteration


def test_the_published_method_has_one_scale_a_factor_and_codes_on_the_grid() -> None:
    codes, scales, start, status, iterations = solve()
    assert [scale.numel() for scale in scales] == [1, 1, 1]
    for code in codes:
        assert torch.equal(code, code.round())
        assert -8 <= float(code.min()) <= float(code.max()) <= 7
    assert [factor.shape for factor in start] == [code.shape for code in codes]
    assert status is Status.CONVERGED
    assert iterations >= 2


def test_the_published_method_lowers_the_error_of_its_rounded_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "PAPER_OUTER_LIMIT", 3)
    target = planted(8).float()
    problem = Canonical(target, 8)
    codes, scales, start, _, _ = solve(target=target)

    def error(values: list[Tensor]) -> float:
        return float((torch.einsum("ir,jr,kr->ijk", *values) - target).norm() / target.norm())

    rounded = round_factors(problem.balance(start), (4, 4, 4), "tensor")
    after = error([code * scale for code, scale in zip(codes, scales, strict=True)])
    assert after < error([code * scale for code, scale in zip(*rounded, strict=True)])


def test_the_published_method_tells_and_keeps_its_best_iterate() -> None:
    events: list[SolveEvent] = []
    codes, scales, *_ = solve(watch=events.append)
    target = draw(12, 10, 9)
    rebuilt = torch.einsum(
        "ir,jr,kr->ijk", *(code * scale for code, scale in zip(codes, scales, strict=True))
    )
    error = float((rebuilt - target).norm() / target.norm())
    assert [event.iteration for event in events] == list(range(1, len(events) + 1))
    assert error == pytest.approx(min(event.quantized_error for event in events), rel=1e-4)
    assert all(math.isfinite(event.float_error) and event.rho > 0 for event in events)


def test_the_published_method_can_be_stopped() -> None:
    def stop(_event: SolveEvent) -> None:
        raise RunCancelled

    assert solve(watch=stop)[3] is Status.CANCELLED
    assert solve(SolverOptions(inner_iterations=10, time_limit_seconds=1e-6))[3] is Status.TIME_LIMIT
