"""Canonical polyadic algebra, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import draw_double as draw
from torch import Tensor

from qaf_core.factorization.algebra.cp import Canonical, khatri_rao

ROWS, COLUMNS, KERNEL, RANK = 7, 6, 5, 4


def make(moment: Tensor | None = None) -> Canonical:
    return Canonical(draw(ROWS, COLUMNS, KERNEL), RANK, moment)


def random_factors() -> list[Tensor]:
    return [draw(size, RANK, seed=size) for size in (ROWS, COLUMNS, KERNEL)]


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_gram_and_mttkrp_of_cp_are_their_sums(mode: int) -> None:
    problem, factors = make(), random_factors()
    first, second = (factors[other] for other in range(3) if other != mode)
    letters = "ijk".replace("ijk"[mode], "")
    quadratic = problem.quadratic(factors, mode)
    sums = f"ijk,{letters[0]}r,{letters[1]}r->{'ijk'[mode]}r"
    torch.testing.assert_close(quadratic.linear, torch.einsum(sums, problem.target, first, second))
    torch.testing.assert_close(quadratic.gram, torch.einsum("mr,ms,nr,ns->rs", first, first, second, second))
    assert quadratic.row_gram is None


def test_rows_of_the_input_side_are_coupled_by_the_moment() -> None:
    inputs = draw(20, COLUMNS, seed=9)
    moment = inputs.mT @ inputs
    problem, factors = make(moment), random_factors()
    quadratic = problem.quadratic(factors, 1)
    assert quadratic.row_gram is moment
    expected = torch.einsum("js,isk,ir,kr->jr", moment, problem.target, factors[0], factors[2])
    torch.testing.assert_close(quadratic.linear, expected)


def test_khatri_rao_is_the_columnwise_kronecker_product() -> None:
    left, right = draw(4, 3, seed=1), draw(5, 3, seed=2)
    expected = np.stack([np.kron(left[:, r], right[:, r]) for r in range(3)], axis=1)
    np.testing.assert_allclose(khatri_rao(left, right).numpy(), expected)


def test_a_start_is_the_same_in_single_precision() -> None:
    exact = Canonical(draw(ROWS, COLUMNS, KERNEL), RANK).random_start(torch.Generator().manual_seed(0))
    single = Canonical(draw(ROWS, COLUMNS, KERNEL).float(), RANK).random_start(
        torch.Generator().manual_seed(0)
    )
    for a, b in zip(exact, single, strict=True):
        torch.testing.assert_close(a.float(), b)


@pytest.mark.parametrize("order", [2, 3])
def test_the_lift_is_what_independent_noise_adds_to_the_gram(order: int) -> None:
    sizes, noise = (ROWS, COLUMNS, KERNEL)[:order], [0.05, 0.1, 0.2][:order]
    problem, factors = Canonical(draw(*sizes), RANK), random_factors()[:order]
    plain = problem.quadratic(factors, 0).gram.diagonal()
    generator = torch.Generator().manual_seed(0)
    mean, rounds = torch.zeros_like(plain), 2000
    for _ in range(rounds):
        noisy = [
            factor * (1 + share**0.5 * torch.randn(factor.shape, generator=generator, dtype=factor.dtype))
            for factor, share in zip(factors, noise, strict=True)
        ]
        mean += problem.quadratic(noisy, 0).gram.diagonal() / rounds
    torch.testing.assert_close(mean, (1 + problem.damping(noise, 0)) * plain, rtol=0.03, atol=0.0)
