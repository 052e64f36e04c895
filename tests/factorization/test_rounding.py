"""Integer least squares, against exhaustive search, a plain loop, and by what must never get worse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qaf_core.factorization.rounding import (
    BLOCK,
    cholesky_with_lift,
    coordinate_descent,
    feedback_matrix,
    gptq_round,
    round_rows,
    solve_gram,
)
from qaf_core.quantization.grid import FLOAT, Grid

seeds = st.integers(0, 2000)
widths = st.sampled_from([2, 3, 4, 8])


def problem(
    seed: int, rows: int, columns: int, *, spread: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A target ``(rows, columns)`` and a Gram whose columns are the more alike the larger ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64)
    inputs = inputs + spread * torch.randn(3 * columns, 1, generator=generator, dtype=torch.float64)
    target = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return target.to(dtype), (inputs.mT @ inputs / (3 * columns)).to(dtype)


def objective(codes: Tensor, target: Tensor, gram: Tensor, scales: Tensor) -> Tensor:
    """``diag((A - T) G (A - T)ᵀ)``, one number per row, in float64."""
    difference = (codes.double() * scales.double() - target.double()).expand_as(target)
    return ((difference @ gram.double()) * difference).sum(dim=1)


def on_grid(codes: Tensor, bits: int) -> bool:
    low, high = Grid.of(bits).low, Grid.of(bits).high
    return torch.equal(codes, codes.round()) and low <= float(codes.min()) and float(codes.max()) <= high


def best_codes(target: Tensor, gram: Tensor, scale: float, bits: int) -> np.ndarray:
    """The lowest objective of each row over every combination of codes."""
    low, high = Grid.of(bits).low, Grid.of(bits).high
    grid = np.array(list(itertools.product(range(low, high + 1), repeat=target.shape[1])), dtype=float)
    lowest = []
    for row in target.double().numpy():
        difference = grid * scale - row
        lowest.append(np.einsum("np,pq,nq->n", difference, gram.double().numpy(), difference).min())
    return np.array(lowest)


def plain_feedback(target: Tensor, gram: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Error feedback one column after another as in the GPTQ paper: with G⁻¹ and no blocks."""
    low, high = Grid.of(bits).low, Grid.of(bits).high
    full = scales.expand_as(target)
    order = torch.argsort(gram.diagonal() * full.square().mean(dim=0), descending=True).tolist()
    permuted = gram[order][:, order]
    upper = torch.linalg.cholesky(torch.linalg.inv(permuted), upper=True)
    values, codes = target[:, order].clone(), torch.zeros_like(target)
    for i, column in enumerate(order):
        code = (values[:, i] / full[:, column]).round().clamp(low, high)
        error = (values[:, i] - code * full[:, column]) / upper[i, i]
        values[:, i:] -= error[:, None] * upper[i, i:]
        codes[:, column] = code
    return codes


@given(seeds, widths, st.integers(1, 9), st.integers(1, 12))
def test_codes_are_on_the_grid(seed: int, bits: int, rows: int, columns: int) -> None:
    target, gram = problem(seed, rows, columns, dtype=torch.float32)
    scales = Grid.of(bits).fit_scales(target, dims=(0,))
    codes = gptq_round(target, gram, scales, bits)
    assert on_grid(codes, bits)
    assert on_grid(coordinate_descent(codes, target, gram, scales, bits, sweeps=3), bits)
    row_codes, row_scales = round_rows(target, gram, bits)
    assert on_grid(row_codes, bits)
    assert row_scales.shape == (rows, 1)
    assert float(row_scales.min()) > 0


@given(seeds, widths)
def test_a_diagonal_gram_leaves_nothing_to_feed_back(seed: int, bits: int) -> None:
    target, _ = problem(seed, 7, 9)
    gram = torch.diag(torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1)
    scales = Grid.of(bits).fit_scales(target, dims=(0,))
    plain = Grid.of(bits).round(target, scales)
    assert torch.equal(gptq_round(target, gram, scales, bits), plain)
    assert torch.equal(coordinate_descent(plain, target, gram, scales, bits, sweeps=2), plain)


@pytest.mark.parametrize(("bits", "columns"), [(2, 2), (2, 4), (3, 3), (3, 4)])
def test_against_every_combination_of_codes(bits: int, columns: int) -> None:
    met, totals = 0, np.zeros(2)
    for seed in range(12):
        target, gram = problem(seed, 5, columns)
        scale = float(Grid.of(bits).fit_scales(target, dims=(0, 1)))
        scales = target.new_full((1, 1), scale)
        lowest = best_codes(target, gram, scale, bits)
        codes = gptq_round(target, gram, scales, bits)
        codes = coordinate_descent(codes, target, gram, scales, bits, sweeps=5)
        found = objective(codes, target, gram, scales).numpy()
        assert (found >= lowest * (1 - 1e-9) - 1e-12).all()
        totals += found.sum(), lowest.sum()
        met += int((found <= lowest * (1 + 1e-9) + 1e-12).sum())
    assert met >= 0.8 * 12 * 5
    assert totals[0] <= 1.1 * totals[1]


@pytest.mark.parametrize("columns", [BLOCK - 1, BLOCK, 130])
@pytest.mark.parametrize("bits", [2, 4])
def test_blocks_change_nothing(columns: int, bits: int) -> None:
    target, gram = problem(columns, 11, columns)
    scales = Grid.of(bits).fit_scales(target, dims=(0,))
    codes = gptq_round(target, gram, scales, bits)
    expected = plain_feedback(target, gram, scales, bits)
    # The lift of the diagonal moves a value by a millionth: a code next to a half may differ.
    assert int((codes != expected).sum()) <= 0.01 * codes.numel()
    torch.testing.assert_close(
        objective(codes, target, gram, scales).sum(),
        objective(expected, target, gram, scales).sum(),
        rtol=0.01,
        atol=0.0,
    )


@pytest.mark.parametrize("columns", [BLOCK, 130])
def test_descent_in_blocks_is_descent_one_by_one(columns: int) -> None:
    target, gram = problem(1, 6, columns)
    scales, (low, high) = Grid.of(3).fit_scales(target, dims=(0,)), (Grid.of(3).low, Grid.of(3).high)
    codes = Grid.of(3).round(target, scales)
    expected = codes.clone()
    for _ in range(2):
        for j in range(columns):
            slope = (expected * scales - target) @ gram[:, j]
            expected[:, j] = (expected[:, j] - slope / (gram[j, j] * scales[0, j])).round().clamp(low, high)
    assert torch.equal(coordinate_descent(codes, target, gram, scales, 3, sweeps=2), expected)


@given(seeds, widths, st.floats(0.0, 5.0), st.integers(1, 80))
def test_descent_never_raises_the_error_of_any_row(seed: int, bits: int, spread: float, columns: int) -> None:
    target, gram = problem(seed, 4, columns, spread=spread)
    scales = Grid.of(bits).fit_scales(target, dims=(0,))
    codes, before = Grid.of(bits).round(target, scales), None
    for _ in range(3):
        after = objective(codes, target, gram, scales)
        assert before is None or bool((after <= before * (1 + 1e-9)).all())
        before, codes = after, coordinate_descent(codes, target, gram, scales, bits, sweeps=1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feedback_beats_plain_rounding_where_columns_are_alike(bits: int, dtype: torch.dtype) -> None:
    target, gram = problem(3, 50, 40, spread=2.0, dtype=dtype)
    scales = Grid.of(bits).fit_scales(target, dims=(0,))
    plain = objective(Grid.of(bits).round(target, scales), target, gram, scales).sum()
    fed_back = objective(gptq_round(target, gram, scales, bits), target, gram, scales).sum()
    assert float(fed_back) < 0.8 * float(plain)


@given(seeds, st.sampled_from([2, 3, 4, 6, 8]), st.floats(0.0, 10.0), st.integers(1, 20))
def test_rounded_rows_are_never_worse_than_plainly_rounded_ones(
    seed: int, bits: int, spread: float, columns: int
) -> None:
    target, gram = problem(seed, 6, columns, spread=spread)
    codes, scales = round_rows(target, gram, bits)
    plain_scales = Grid.of(bits).fit_scales(target, dims=(1,), importance=gram.diagonal()[None, :])
    plain = objective(Grid.of(bits).round(target, plain_scales), target, gram, plain_scales)
    assert bool((objective(codes, target, gram, scales) <= plain * (1 + 1e-9) + 1e-15).all())


@given(seeds, st.sampled_from([2, 4]))
def test_rounded_rows_do_not_depend_on_each_other(seed: int, bits: int) -> None:
    target, gram = problem(seed, 5, 7)
    codes, scales = round_rows(target, gram, bits)
    backward_codes, backward_scales = round_rows(target.flip(0), gram, bits)
    assert torch.equal(backward_codes.flip(0), codes)
    torch.testing.assert_close(backward_scales.flip(0), scales)


def test_exact_rows_are_found() -> None:
    codes = torch.randint(-8, 8, (20, 30), generator=torch.Generator().manual_seed(0)).double()
    codes[:, 0], codes[:, 1] = -8, 7
    row_scales = torch.logspace(-3, 2, 20, dtype=torch.float64)[:, None]
    _, gram = problem(0, 1, 30)
    found, scales = round_rows(codes * row_scales, gram, 4)
    assert torch.equal(found, codes)
    torch.testing.assert_close(scales, row_scales)


def test_solve_gram_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    wanted = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    expected, *_ = np.linalg.lstsq(inputs.numpy(), wanted.numpy())
    found = solve_gram(inputs.mT @ inputs, wanted.mT @ inputs)
    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-4, atol=1e-6)


def test_feedback_matrix_is_the_scaled_cholesky_factor_of_the_inverse() -> None:
    _, gram = problem(5, 1, 12, spread=3.0)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    torch.testing.assert_close(feedback_matrix(gram), upper / upper.diagonal()[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("columns", [8, 150])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_singular_grams_of_any_size_are_taken(rank: int, columns: int, size: float) -> None:
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(rank, columns, generator=generator) * size**0.5
    target = torch.randn(6, columns, generator=generator)
    gram = inputs.mT @ inputs
    assert bool(torch.isfinite(cholesky_with_lift(gram)).all())
    scales = Grid.of(4).fit_scales(target, dims=(0,))
    codes = gptq_round(target, gram, scales, 4)
    assert on_grid(codes, 4)
    assert on_grid(coordinate_descent(codes, target, gram, scales, 4, sweeps=2), 4)
    row_codes, row_scales = round_rows(target, gram, 4)
    assert on_grid(row_codes, 4)
    assert bool((row_scales > 0).all())
    if rank:
        plain = objective(Grid.of(4).round(target, scales), target, gram, scales).sum()
        assert float(objective(codes, target, gram, scales).sum()) < 0.5 * float(plain)


def test_dead_columns_do_not_disturb_the_living() -> None:
    target, gram = problem(2, 6, 10)
    gram[:, 7:], gram[7:] = 0.0, 0.0
    scales = Grid.of(4).fit_scales(target, dims=(0,))
    codes = gptq_round(target, gram, scales, 4)
    living = gptq_round(target[:, :7], gram[:7, :7], scales[:, :7], 4)
    assert torch.equal(codes[:, :7], living)
    assert torch.equal(codes[:, 7:], Grid.of(4).round(target[:, 7:], scales[:, 7:]))


def test_floating_point_is_left_alone() -> None:
    target, gram = problem(0, 4, 5)
    scales = torch.full((1, 5), 2.0, dtype=torch.float64)
    values = gptq_round(target, gram, scales, FLOAT.bits)
    assert torch.equal(values * scales, target)
    assert torch.equal(coordinate_descent(values, target, gram, scales, FLOAT.bits, sweeps=3), values)
    codes, row_scales = round_rows(target, gram, FLOAT.bits)
    assert torch.equal(codes * row_scales, target)


@settings(max_examples=15)
@given(seed=seeds, bits=widths)
def test_no_gram_is_that_of_the_identity(seed: int, bits: int) -> None:
    target, _ = problem(seed, 6, 40)
    expected = round_rows(target, torch.eye(40, dtype=target.dtype), bits)
    found = round_rows(target, None, bits)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
