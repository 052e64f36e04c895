"""Histograms hold every value once."""

from __future__ import annotations

import json
import math

import pytest
import torch

from qaf_core.factorization.factors import Factors
from qaf_core.pipeline.compress.histograms import code_histogram, factor_histograms, value_histogram
from qaf_core.quantization.grid import GRIDS, Grid

WIDTHS = [bits for bits, grid in GRIDS.items() if not grid.is_float]


@pytest.mark.parametrize("size", [1e-20, 1e-9, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_value_is_counted_within_edges_that_rise(size: float, dtype: torch.dtype) -> None:
    values = size * torch.randn(5, 1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = value_histogram(values, bins=40)
    assert sum(found["counts"]) == 5000
    assert len(found["counts"]) == 40
    assert len(found["edges"]) == 41
    assert all(low < high for low, high in zip(found["edges"], found["edges"][1:], strict=False))
    assert found["edges"][0] == -found["edges"][-1]
    assert found["edges"][-1] == pytest.approx(float(values.abs().max()), rel=1e-5)


def test_counts_are_those_of_torch() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    reach = float(values.abs().max())
    expected, _ = torch.histogram(values, bins=60, range=(-reach, reach))
    assert value_histogram(values)["counts"] == expected.int().tolist()


def test_zeros_and_values_that_are_not_finite() -> None:
    assert sum(value_histogram(torch.zeros(7))["counts"]) == 7
    odd = torch.tensor([1.0, math.nan, -2.0, math.inf])
    assert sum(value_histogram(odd)["counts"]) == 2
    assert sum(value_histogram(torch.full((3,), math.nan))["counts"]) == 0


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_counted_on_their_whole_grid(bits: int) -> None:
    low, high = Grid.of(bits).low, Grid.of(bits).high
    codes = torch.tensor([low, high, high, 0], dtype=torch.int8)
    found = code_histogram(codes, bits)
    assert found["codes"] == list(range(low, high + 1))
    counts = dict(zip(found["codes"], found["counts"], strict=True))
    assert counts[low] == 1
    assert counts[high] == 2
    assert counts[0] == 1
    assert sum(found["counts"]) == 4
    assert found["bits"] == bits


def test_each_factor_stands_under_its_letter() -> None:
    factors = Factors(
        structure="svd",
        weight_shape=(4, 3),
        codes=(torch.ones(4, 2, dtype=torch.int8), torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 0.0]])),
        scales=(torch.ones(1, 2), torch.ones(1, 2)),
        bits=(3, 32),
    )
    found = factor_histograms(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), factors)
    assert list(found) == ["weight", "A", "B"]
    assert found["A"]["counts"][found["A"]["codes"].index(1)] == 8
    assert sum(found["B"]["counts"]) == 6
    assert "edges" in found["B"]
    assert json.loads(json.dumps(found)) == found
