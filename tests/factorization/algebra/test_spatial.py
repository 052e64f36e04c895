"""The spatial form of a kernel: k×1, then 1×k."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import draw
from torch import Tensor, nn

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.factors import Factors, exact_factors
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.solve import SolveResult, solve_layer
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.operation import Operation, convolution
from qaf_core.network.modules.quantized import Layer
from qaf_core.quantization.spec import QuantSpec

SHAPE, RANK = (8, 6, 3, 5), 5
QUICK = SolverOptions(start_iterations=60, iterations=4, rounding_rounds=6)


def solve(weight: Tensor, bits: int, rank: int = RANK, **options: Any) -> SolveResult:
    spec = QuantSpec(bits=bits, granularity=options.pop("granularity", "rank"))
    return solve_layer(weight, "spatial", rank, spec, QUICK, **options)


def outer_sum(outer: Tensor, inner: Tensor, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """``Σ_r A[(o, x), r]·B[(i, y), r]``, the definition."""
    rows, columns, height, width = shape
    a, b = outer.reshape(rows, width, -1), inner.reshape(columns, height, -1)
    return torch.einsum("oxr,iyr->oiyx", a, b)


def as_matrix(weight: Tensor) -> Tensor:
    """The kernel with rows (o, x) and columns (i, y)."""
    rows, columns, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(rows * width, columns * height)


def test_the_factors_are_those_of_the_definition() -> None:
    outer, inner = draw(SHAPE[0] * SHAPE[3], RANK), draw(SHAPE[1] * SHAPE[2], RANK, seed=1)
    assert STRUCTURES["spatial"].factor_shapes(SHAPE, RANK) == (outer.shape, inner.shape)
    found = ALGEBRAS["spatial"](SHAPE).reconstruct([outer, inner])
    torch.testing.assert_close(found, outer_sum(outer, inner))


def test_in_floating_point_it_is_the_truncated_svd_of_the_rearranged_kernel() -> None:
    weight = draw(*SHAPE)
    values = torch.linalg.svdvals(as_matrix(weight))
    best = float(values[RANK:].norm() / values.norm())
    for method in ("joint", "sequential"):
        assert solve(weight, 32, method=method).relative_error == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_on_the_grid_and_eight_bits_hardly_change_it(bits: int) -> None:
    result = solve(draw(*SHAPE), bits)
    for codes in result.factors.codes:
        assert codes.dtype == torch.int8
        assert -(2 ** (bits - 1)) <= int(codes.min()) <= int(codes.max()) < 2 ** (bits - 1)
    assert result.factors.rank == RANK
    assert bits < 8 or result.relative_error < 1.02 * result.float_relative_error


@pytest.mark.parametrize(("rank", "bits", "most"), [(1, 4, 1e-5), (3, 8, 0.01)])
def test_a_planted_kernel_is_found(rank: int, bits: int, most: float) -> None:
    """One component on the grid is met exactly; several, which a rotation mixes, in eight bits nearly."""
    generator = torch.Generator().manual_seed(3)
    codes = [torch.randint(-7, 8, (rows, rank), generator=generator).float() for rows in (8 * 5, 6 * 3)]
    weight = outer_sum(*(part * (0.5 + torch.rand(1, rank, generator=generator)) for part in codes))
    assert solve(weight, bits, rank=rank).relative_error < most


@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_each_output_channel_of_each_link_has_one_scale(granularity: str) -> None:
    weight = draw(*SHAPE)
    factors = solve(weight, 4, granularity=granularity).factors
    layer = Layer(weight, draw(8), [convolution(2, padding=(1, 2))])
    chain, values = build_chain(layer, factors), draw(2, 6, 7, 9, seed=4)
    assert [tuple(link.codes.shape) for link in chain.chain] == [(RANK, 6, 3, 1), (8, RANK, 1, 5)]
    assert [link.scales.numel() for link in chain.chain] == [RANK, 8]
    exact = Layer(factors.reconstruct(), layer.bias, layer.operations)
    torch.testing.assert_close(chain(values), exact(values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "operation",
    [
        convolution(2, padding=1),
        convolution(2, stride=(2, 3), padding=(1, 2), dilation=(1, 2)),
        convolution(2, stride=2, padding=1, output_padding=1, transposed=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (4, 9, 2, 5)])
def test_the_chain_of_full_rank_is_the_convolution(operation: Operation, shape: tuple[int, ...]) -> None:
    weight = draw(*shape).double()
    layer = Layer(operation.as_stored(weight), draw(shape[0]).double(), [operation])
    factors = exact_factors(weight, "spatial")
    assert torch.equal(factors.reconstruct(), weight)
    assert factors.rank == STRUCTURES["spatial"].largest_rank(shape)
    values = draw(2, shape[1], 11, 12, seed=5).double()
    torch.testing.assert_close(build_chain(layer, factors)(values), layer(values))


def test_a_moment_counts_errors_where_the_inputs_are() -> None:
    weight = draw(*SHAPE)
    mixed = draw(300, 6 * 15, seed=1) * torch.logspace(-1, 1, 90)
    covariance = mixed.mT @ mixed / 300

    def output_error(factors: Factors) -> float:
        difference = (weight - factors.reconstruct()).flatten(1)
        return float((difference @ covariance * difference).sum())

    plain = solve(weight, 4, granularity="rank_row")
    aware = solve(weight, 4, granularity="rank_row", input_covariance=covariance)
    assert output_error(aware.factors) < output_error(plain.factors)


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3), (8, 6, 3, 3, 3)])
def test_weights_without_two_kernel_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SolverError, match="structure spatial takes convolution weights"):
        solve(draw(*shape), 4)
    assert not STRUCTURES["spatial"].takes(shape)


def test_only_kernels_that_can_be_split_are_offered() -> None:
    takes = STRUCTURES["spatial"].takes
    assert takes((8, 6, 3, 2))
    assert not any(takes((8, 6, *kernel)) for kernel in ((1, 1), (1, 7), (7, 1)))


def test_the_published_method_is_refused() -> None:
    with pytest.raises(SolverError, match="solves CP only"):
        solve(draw(*SHAPE), 4, method="paper")


def test_a_start_of_another_rank_is_taken() -> None:
    weight = nn.Conv2d(6, 8, 3).weight
    wide = solve(weight, 6, rank=9).factors
    result = solve_layer(weight, "spatial", 6, QuantSpec(bits=4), QUICK, start=wide)
    assert result.factors.rank == 6
    assert result.relative_error < 1.0
