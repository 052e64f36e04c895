"""Factors stand for the tensor their definition says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qaf_core.factorization.factors import Factors, as_stored_codes
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.quantization.grid import FLOAT

ROWS, COLUMNS, HEIGHT, WIDTH = 6, 5, 3, 2
SHAPES: dict[str, tuple[list[tuple[int, ...]], tuple[int, ...], Any]] = {
    "cp": ([(ROWS, 4), (COLUMNS, 4), (HEIGHT * WIDTH, 4)], (ROWS, COLUMNS, HEIGHT, WIDTH), 4),
    "svd": ([(ROWS, 4), (COLUMNS * HEIGHT * WIDTH, 4)], (ROWS, COLUMNS, HEIGHT, WIDTH), 4),
    "spatial": ([(ROWS * WIDTH, 4), (COLUMNS * HEIGHT, 4)], (ROWS, COLUMNS, HEIGHT, WIDTH), 4),
    "tucker2": ([(ROWS, 4), (4, 3, HEIGHT * WIDTH), (COLUMNS, 3)], (ROWS, COLUMNS, HEIGHT, WIDTH), (4, 3)),
    "dense": ([(ROWS, COLUMNS * HEIGHT * WIDTH)], (ROWS, COLUMNS, HEIGHT, WIDTH), None),
}
EINSUM = {
    "cp": "ir,jr,kr->ijk",
    "svd": "ir,jr->ij",
    "spatial": "oxr,iyr->oiyx",
    "tucker2": "ip,pqk,jq->ijk",
    "dense": "ij->ij",
}


def random_factors(structure: str, scale_shapes: str = "ones") -> Factors:
    generator = torch.Generator().manual_seed(1)
    shapes, weight_shape, _ = SHAPES[structure]
    codes = tuple(torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8) for shape in shapes)
    scales = tuple(
        torch.rand(scale_shape(shape, scale_shapes), generator=generator) + 0.1 for shape in shapes
    )
    return Factors(
        structure=structure, weight_shape=weight_shape, codes=codes, scales=scales, bits=(4,) * len(codes)
    )


def scale_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    if kind == "columns":
        return (1, shape[1], *(1 for _ in shape[2:]))
    if kind == "rows":
        return (shape[0], *(1 for _ in shape[1:]))
    return shape if kind == "all" else (1,) * len(shape)


@pytest.mark.parametrize("scales", ["ones", "columns", "rows", "all"])
@pytest.mark.parametrize("structure", SHAPES)
def test_reconstruction_is_the_defining_sum(structure: str, scales: str) -> None:
    factors = random_factors(structure, scales)
    values: list[Tensor] = [
        codes.double() * scale.double() for codes, scale in zip(factors.codes, factors.scales, strict=True)
    ]
    if structure == "spatial":
        values = [values[0].reshape(ROWS, WIDTH, -1), values[1].reshape(COLUMNS, HEIGHT, -1)]
    expected = torch.einsum(EINSUM[structure], *values).reshape(factors.weight_shape)
    rebuilt = factors.reconstruct()
    assert rebuilt.shape == factors.weight_shape
    assert rebuilt.dtype == torch.float32
    torch.testing.assert_close(rebuilt.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("structure", SHAPES)
def test_rank_and_letters_go_with_the_structure(structure: str) -> None:
    factors = random_factors(structure)
    assert factors.rank == SHAPES[structure][2]
    assert factors.names == STRUCTURES[structure].factors
    assert len(factors.names) == len(factors.values())


def test_a_1x1_convolution_keeps_its_shape() -> None:
    matrix = replace(random_factors("svd"), weight_shape=(ROWS, COLUMNS * HEIGHT * WIDTH))
    convolution = Factors(
        structure="svd",
        weight_shape=(ROWS, COLUMNS * HEIGHT * WIDTH, 1, 1),
        codes=matrix.codes,
        scales=matrix.scales,
        bits=matrix.bits,
    )
    torch.testing.assert_close(convolution.reconstruct()[:, :, 0, 0], matrix.reconstruct())


def test_codes_are_stored_as_bytes_and_floats_as_they_are() -> None:
    values = torch.tensor([-128.0, 0.0, 127.0])
    assert as_stored_codes(values, 8).dtype == torch.int8
    assert as_stored_codes(values, 8).tolist() == [-128, 0, 127]
    assert torch.equal(as_stored_codes(values / 3, FLOAT.bits), values / 3)
