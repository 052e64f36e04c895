"""The algebra of each structure, against sums written out and tensors rebuilt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import draw_double as draw
from torch import Tensor

from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.tucker2 import Tucker2
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.subproblem import Quadratic

ROWS, COLUMNS, KERNEL = 7, 6, 5
Problem = Canonical | Tucker2
every_problem = pytest.mark.parametrize(
    "name", ["cp", "svd", "tucker2", "cp moment", "svd moment", "tucker2 moment"]
)


def make(name: str) -> Problem:
    inputs = draw(20, COLUMNS, seed=9)
    moment = inputs.mT @ inputs / 20 if name.endswith("moment") else None
    if name.startswith("svd"):
        return Canonical(draw(ROWS, COLUMNS), 3, moment)
    return (
        Tucker2(draw(ROWS, COLUMNS, KERNEL), (4, 3), moment)
        if name.startswith("tucker2")
        else Canonical(draw(ROWS, COLUMNS, KERNEL), 4, moment)
    )


def random_factors(problem: Problem, seed: int = 3) -> list[Tensor]:
    start = problem.random_start(torch.Generator().manual_seed(seed))
    return [factor + draw(*factor.shape, seed=seed + mode) for mode, factor in enumerate(start)]


def rebuild(problem: Problem, factors: list[Tensor]) -> Tensor:
    """The tensor of floating-point factors, by the class that packs, stores and runs them."""
    structure = "tucker2" if isinstance(problem, Tucker2) else "cp" if problem.target.ndim == 3 else "svd"
    shape = tuple(problem.target.shape)
    parts = ALGEBRAS[structure](shape).stored(factors)
    return Factors(
        structure=structure,
        weight_shape=shape,
        codes=tuple(parts),
        scales=tuple(torch.ones((1,) * part.ndim, dtype=part.dtype) for part in parts),
        bits=(32,) * len(parts),
    ).reconstruct()


def explicit_error(problem: Problem, factors: list[Tensor]) -> float:
    """``‖(X - X̂) ×_J S^½‖²`` with X̂ rebuilt."""
    difference = (problem.target - rebuild(problem, factors)).movedim(1, -1)
    weighted = difference if problem.moment is None else difference @ problem.moment
    return float((difference * weighted).sum())


@every_problem
def test_the_error_from_grams_is_that_of_the_rebuilt_tensor(name: str) -> None:
    problem = make(name)
    factors = random_factors(problem)
    expected = explicit_error(problem, factors)
    for mode in problem.order:
        found = problem.quadratic(factors, mode).squared_error(factors[mode], problem.target_norm_squared)
        assert found == pytest.approx(expected, rel=1e-10)


@every_problem
def test_the_norm_of_the_target_is_the_error_of_nothing(name: str) -> None:
    problem = make(name)
    nothing = [torch.zeros_like(factor) for factor in random_factors(problem)]
    assert problem.target_norm_squared == pytest.approx(explicit_error(problem, nothing), rel=1e-12)


@every_problem
def test_the_solution_is_the_least_squares_factor(name: str) -> None:
    problem = make(name)
    factors = random_factors(problem)
    for mode in problem.order:
        quadratic = problem.quadratic(factors, mode)
        solved = list(factors)
        solved[mode] = quadratic.solution()
        lowest = explicit_error(problem, solved)
        assert lowest <= explicit_error(problem, factors)
        for seed in range(3):
            moved = list(solved)
            moved[mode] = solved[mode] + 1e-2 * draw(*solved[mode].shape, seed=seed)
            assert explicit_error(problem, moved) > lowest
        slope = quadratic.couple_rows(solved[mode] @ quadratic.gram) - quadratic.linear
        assert float(slope.norm()) < 1e-4 * float(quadratic.linear.norm())


@every_problem
def test_balancing_keeps_the_tensor(name: str) -> None:
    problem = make(name)
    factors = [1e3 ** (mode - 1) * factor for mode, factor in enumerate(random_factors(problem))]
    balanced = problem.balance(factors)
    torch.testing.assert_close(rebuild(problem, balanced), rebuild(problem, factors))
    if isinstance(problem, Canonical):
        norms = torch.stack([factor.norm(dim=0) for factor in balanced])
        torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    else:
        for mode in (0, 2):
            torch.testing.assert_close(balanced[mode].norm(dim=0), torch.ones_like(balanced[mode][0]))


@every_problem
def test_balancing_survives_dead_components(name: str) -> None:
    problem = make(name)
    factors = random_factors(problem)
    factors[0][:, 0] = 0.0
    balanced = problem.balance(factors)
    assert all(bool(torch.isfinite(factor).all()) for factor in balanced)
    torch.testing.assert_close(rebuild(problem, balanced), rebuild(problem, factors))


@every_problem
def test_a_lift_solves_with_the_raised_diagonal(name: str) -> None:
    problem = make(name)
    quadratic = problem.quadratic(random_factors(problem), 0)
    raised = quadratic.gram + 0.3 * torch.diag(quadratic.gram.diagonal())
    expected = torch.linalg.solve(raised, quadratic.linear.mT).mT
    torch.testing.assert_close(quadratic.solution(0.3), expected, rtol=1e-4, atol=1e-6)


def test_rows_coupled_in_groups_are_solved_group_by_group() -> None:
    left, right = draw(9, 3, seed=1), draw(9, 4, seed=2)
    quadratic = Quadratic(gram=right.mT @ right, linear=draw(6, 4, seed=3), row_gram=left.mT @ left)
    full = np.kron(np.eye(2), np.asarray(quadratic.row_gram))
    expected = np.linalg.solve(full, quadratic.linear.numpy()) @ np.linalg.inv(quadratic.gram.numpy())
    np.testing.assert_allclose(quadratic.solution().numpy(), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        quadratic.couple_rows(quadratic.linear).numpy(), full @ quadratic.linear.numpy(), rtol=1e-12
    )


@every_problem
def test_starts_depend_on_the_seed_alone_and_have_the_size_of_the_target(name: str) -> None:
    problem = make(name)
    first, again = (problem.random_start(torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert 0.05 < float(rebuild(problem, first).norm() / problem.target.norm()) < 20


def test_the_order_ends_on_the_output_side() -> None:
    assert make("cp").order == (1, 2, 0)
    assert make("svd").order == (1, 0)
    assert make("tucker2").order[-1] == 0


def test_error_at_a_raised_solution_is_that_of_the_general_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    linear = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    problem = Quadratic(gram=root @ root.mT, linear=linear)
    factor = problem.solution(0.3)
    expected = problem.squared_error(factor, 100.0)
    assert problem.squared_error_at_solution(factor, 0.3, 100.0) == pytest.approx(expected, rel=1e-9)
