"""Constructed factors are the weight, in the smallest form there is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.errors import SolverError
from qaf_core.factorization.factors import exact_factors
from qaf_core.factorization.structures import STRUCTURES

SIDE = st.integers(1, 9)


@given(outputs=SIDE, inputs=SIDE, height=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 9))
def test_factors_of_a_kernel_are_the_kernel(
    outputs: int, inputs: int, height: int, width: int, seed: int
) -> None:
    weight = torch.randn(outputs, inputs, height, width, generator=torch.Generator().manual_seed(seed))
    for structure in STRUCTURES:
        factors = exact_factors(weight, structure)
        assert torch.equal(factors.reconstruct(), weight)
        assert set(factors.bits) == {32}
    dimensions = (outputs, inputs, height * width)
    assert exact_factors(weight, "cp").rank == outputs * inputs * height * width // max(dimensions)
    assert exact_factors(weight, "tucker2").rank == (outputs, inputs)
    assert exact_factors(weight, "svd").rank == min(outputs, inputs * height * width)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 2, 3, 2)])
@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "dense"])
def test_kernels_of_one_and_three_dimensions_are_met(shape: tuple[int, ...], structure: str) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact_factors(weight, structure).reconstruct(), weight)


@given(outputs=SIDE, inputs=SIDE)
def test_two_factors_have_the_rank_of_the_smaller_side(outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    for shape in ((outputs, inputs), (outputs, inputs, 1, 1)):
        factors = exact_factors(weight.reshape(shape), "svd")
        assert torch.equal(factors.reconstruct(), weight.reshape(shape))
        assert factors.rank == min(outputs, inputs)


def test_a_trained_parameter_is_taken_without_its_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    assert not any(codes.requires_grad for codes in exact_factors(weight, "svd").codes)


@pytest.mark.parametrize(
    ("shape", "structure", "words"),
    [
        ((3, 4, 3, 1, 1, 1), "svd", "structure svd does not take such a weight.*convolution.*linear layer"),
        ((3, 4), "cp", "structure cp does not take such a weight.*convolution"),
        ((3, 4), "tucker2", "structure tucker2 does not take"),
        ((0, 4), "dense", "structure dense does not take"),
        ((3,), "dense", "structure dense does not take"),
        ((3, 4), "qr", "unknown structure; got qr; expected cp, tucker2, svd, spatial, dense"),
    ],
)
def test_weights_and_structures_that_do_not_go_together(
    shape: tuple[int, ...], structure: str, words: str
) -> None:
    with pytest.raises(SolverError, match=words):
        exact_factors(torch.ones(shape), structure)
