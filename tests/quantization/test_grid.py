"""Scales and codes, against PyTorch's quantizers and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.quantization.grid import ACTIVATION_GRID, FLOAT, GRIDS, Grid

WIDTHS = [bits for bits, grid in GRIDS.items() if not grid.is_float]
every_width = pytest.mark.parametrize("bits", WIDTHS)


def values_of(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian values with a few outliers, as weights have."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=dtype)
    return torch.where(torch.rand(*shape, generator=generator) < 0.05, 4 * values, values)


def error_of(values: Tensor, scales: Tensor, bits: int, dims: tuple[int, ...]) -> Tensor:
    return (Grid.of(bits).round(values, scales) * scales - values).square().sum(dim=dims, keepdim=True)


@every_width
def test_codes_agree_with_torch_per_channel(bits: int) -> None:
    values = values_of(bits, 40, 6)
    scales = 2.0 ** torch.arange(
        -6.0, 0.0
    )  # powers of two: no quotient falls on one side here, on the other there
    low, high = Grid.of(bits).low, Grid.of(bits).high
    zeros = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(values, scales, zeros, 1, low, high)
    assert torch.equal(Grid.of(bits).round(values, scales) * scales, expected)


@given(st.integers(0, 1000), st.floats(0.01, 2.0))
def test_codes_agree_with_torch_per_tensor(seed: int, scale: float) -> None:
    values = values_of(seed, 300)
    expected = torch.fake_quantize_per_tensor_affine(values, scale, 0, -128, 127) / scale
    codes = Grid.of(8).round(values, torch.tensor(scale))
    between = (values / scale).frac().abs()
    clear = (between - 0.5).abs() > 1e-4  # torch multiplies by 1 / scale: halves may fall either way
    assert torch.equal(codes[clear], expected.round()[clear])


@given(st.integers(0, 1000), st.sampled_from(WIDTHS))
def test_codes_are_whole_numbers_on_the_grid_and_stay(seed: int, bits: int) -> None:
    values = values_of(seed, 20, 5)
    scales = Grid.of(bits).fit_scales(values, dims=(0,))
    codes = Grid.of(bits).round(values, scales)
    low, high = Grid.of(bits).low, Grid.of(bits).high
    assert torch.equal(codes, codes.round())
    assert low <= float(codes.min())
    assert float(codes.max()) <= high
    assert torch.equal(Grid.of(bits).round(codes * scales, scales), codes)


@given(st.integers(0, 1000), st.sampled_from(WIDTHS), st.integers(-30, 30))
def test_scales_grow_with_the_values(seed: int, bits: int, exponent: int) -> None:
    values, factor = values_of(seed, 16, 4), 2.0**exponent
    scales = Grid.of(bits).fit_scales(values, dims=(0,))
    assert torch.equal(Grid.of(bits).fit_scales(factor * values, dims=(0,)), factor * scales)


@given(st.integers(0, 1000), st.sampled_from(WIDTHS))
def test_scales_do_not_depend_on_the_sign_of_a_symmetric_set(seed: int, bits: int) -> None:
    values = values_of(seed, 16, 3)
    both = torch.cat([values, -values])
    torch.testing.assert_close(
        Grid.of(bits).fit_scales(both, dims=(0,)), Grid.of(bits).fit_scales(-both, dims=(0,))
    )


@given(st.integers(0, 1000), st.sampled_from(WIDTHS))
def test_fitted_scales_are_never_worse_than_those_of_the_largest_value(seed: int, bits: int) -> None:
    values = values_of(seed, 12, 8, dtype=torch.float64)
    fitted = error_of(values, Grid.of(bits).fit_scales(values, dims=(0,)), bits, (0,))
    for code in (Grid.of(bits).low, Grid.of(bits).high):
        largest = values.abs().amax(dim=0, keepdim=True) / abs(code)
        assert bool((fitted <= error_of(values, largest, bits, (0,)) * (1 + 1e-9)).all())


@given(st.integers(0, 1000), st.sampled_from(WIDTHS))
def test_fitted_scales_are_about_as_good_as_an_exhaustive_search(seed: int, bits: int) -> None:
    values = values_of(seed, 200, dtype=torch.float64)
    fitted = float(error_of(values, Grid.of(bits).fit_scales(values, dims=(0,)), bits, (0,)))
    reach = float(values.abs().max()) / 2 ** (bits - 1)
    best = min(
        float(error_of(values, torch.tensor([reach * share], dtype=torch.float64), bits, (0,)))
        for share in torch.linspace(0.1, 2.0, 300).tolist()
    )
    assert fitted <= 1.2 * best


@every_width
@pytest.mark.parametrize("code", ["low", "high"])
def test_values_on_a_grid_are_met_exactly(bits: int, code: str) -> None:
    low, high = Grid.of(bits).low, Grid.of(bits).high
    codes = torch.randint(low + 1, high + 1, (50, 4), generator=torch.Generator().manual_seed(bits)).double()
    codes[0] = low if code == "low" else high
    values = codes * torch.tensor([0.3, 1.0, 7e-5, 2e6], dtype=torch.float64)
    scales = Grid.of(bits).fit_scales(values, dims=(0,))
    assert torch.equal(Grid.of(bits).round(values, scales), codes)
    torch.testing.assert_close(Grid.of(bits).round(values, scales) * scales, values, rtol=1e-12, atol=0.0)


@given(st.integers(0, 1000), st.sampled_from(WIDTHS))
def test_importance_draws_the_scale_to_what_counts(seed: int, bits: int) -> None:
    values = values_of(seed, 4, 30, dtype=torch.float64)
    importance = values_of(seed + 1, 1, 30, dtype=torch.float64).square()
    low, high = Grid.of(bits).low, Grid.of(bits).high

    def weighted(scales: Tensor) -> Tensor:
        difference = (values / scales).round().clamp(low, high) * scales - values
        return (importance * difference.square()).sum(dim=1)

    drawn = weighted(Grid.of(bits).fit_scales(values, dims=(1,), importance=importance))
    assert bool((drawn <= weighted(Grid.of(bits).fit_scales(values, dims=(1,))) * (1 + 1e-12)).all())


def test_zeros_and_the_smallest_numbers_get_usable_scales() -> None:
    values = torch.zeros(4, 3)
    values[:, 1], values[:, 2] = 1e-44, 3e-30
    scales = Grid.of(4).fit_scales(values, dims=(0,))
    assert scales[0, :2].tolist() == [1.0, 1.0]
    assert 0 < float(scales[0, 2]) < 1e-29
    assert bool(torch.isfinite(Grid.of(4).round(values, scales)).all())


def test_scales_are_kept_along_the_shared_dimensions() -> None:
    values = values_of(0, 3, 4, 5)
    assert Grid.of(4).fit_scales(values, dims=(0, 2)).shape == (1, 4, 1)
    assert Grid.of(4).fit_scales(values, dims=(-1,)).shape == (3, 4, 1)
    torch.testing.assert_close(
        Grid.of(4).fit_scales(values, dims=(0, 1, 2)).reshape(1),
        Grid.of(4).fit_scales(values.reshape(-1), dims=(0,)),
    )


def test_large_tensors_are_searched_in_parts_with_the_same_outcome() -> None:
    values = values_of(1, 300, 2000)
    in_parts = Grid.of(4).fit_scales(values, dims=(1,))
    torch.testing.assert_close(
        in_parts, torch.cat([Grid.of(4).fit_scales(row[None], dims=(1,)) for row in values])
    )


def test_floating_point_is_left_alone() -> None:
    values = values_of(2, 5, 3)
    scales = Grid.of(FLOAT.bits).fit_scales(values, dims=(0,))
    assert torch.equal(scales, torch.ones(1, 3))
    assert torch.equal(Grid.of(FLOAT.bits).round(values, scales), values)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_the_noise_table_is_what_fitted_scales_leave_of_a_gaussian(bits: int) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Max's quantizer has one level more or less than these codes have: at two bits that shows.
    tolerance = 1.6 if bits == 2 else 1.2
    found = float(error_of(values, Grid.of(bits).fit_scales(values, dims=(0,)), bits, (0,))) / len(values)
    assert 1 / tolerance < found / Grid.of(bits).relative_noise < tolerance


def test_the_noise_table_falls_about_fourfold_a_bit() -> None:
    falls = [Grid.of(bits).relative_noise / Grid.of(bits + 1).relative_noise for bits in WIDTHS[:-1]]
    assert all(3.0 < fall < 4.0 for fall in falls)
    assert math.isclose(Grid.of(FLOAT.bits).relative_noise, 0.0)


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -4])
def test_a_grid_is_known_by_its_bits(bits: int) -> None:
    assert all(grid.bits == width and Grid.of(width) is grid for width, grid in GRIDS.items())
    with pytest.raises(SolverError, match="out of range"):
        Grid.of(bits)


@pytest.mark.parametrize("zero", [0, 37, 255])
def test_activations_are_clipped_to_what_their_codes_hold(zero: int) -> None:
    steps = values_of(zero, 4000) * 300
    expected = torch.fake_quantize_per_tensor_affine(steps, 1.0, zero, 0, 255)
    assert torch.equal(ACTIVATION_GRID.clip_(steps, zero), expected)
