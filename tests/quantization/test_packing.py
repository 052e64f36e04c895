"""Packed codes: they come back, without gaps, in the layout the file format names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.quantization.grid import GRIDS, Grid
from qaf_core.quantization.packing import pack_codes, unpack_codes

WIDTHS = [bits for bits, grid in GRIDS.items() if not grid.is_float]


@st.composite
def codes_of_some_width(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.sampled_from(WIDTHS))
    low, high = Grid.of(bits).low, Grid.of(bits).high
    return bits, draw(st.lists(st.integers(low, high), max_size=70))


@given(codes_of_some_width())
def test_codes_come_back_and_fill_exactly_the_bytes_they_need(case: tuple[int, list[int]]) -> None:
    bits, values = case
    packed = pack_codes(torch.tensor(values, dtype=torch.int8), Grid.of(bits))
    assert packed.dtype == torch.uint8
    assert packed.shape == (Grid.of(bits).packed_bytes(len(values)),)
    assert unpack_codes(packed, Grid.of(bits), len(values)).tolist() == values


@given(codes_of_some_width())
def test_the_layout_is_one_little_endian_number(case: tuple[int, list[int]]) -> None:
    bits, values = case
    number = sum((value % 2**bits) << (bits * index) for index, value in enumerate(values))
    expected = number.to_bytes(Grid.of(bits).packed_bytes(len(values)), "little")
    assert bytes(pack_codes(torch.tensor(values, dtype=torch.int64), Grid.of(bits)).tolist()) == expected


@given(st.integers(0, 10_000), st.sampled_from(WIDTHS))
def test_the_size_is_the_bits_rounded_up_to_bytes(count: int, bits: int) -> None:
    assert 0 <= Grid.of(bits).packed_bytes(count) * 8 - count * bits < 8


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float32, torch.float64])
def test_any_shape_and_type_of_whole_numbers_is_read_in_row_major_order(dtype: torch.dtype) -> None:
    codes = torch.tensor([[-4, 3, 0], [1, -1, 2]], dtype=dtype)
    assert unpack_codes(pack_codes(codes.mT, Grid.of(3)), Grid.of(3), 6).tolist() == [-4, 1, 3, -1, 0, 2]


def test_bytes_beyond_the_last_code_are_not_read() -> None:
    packed = torch.cat(
        [pack_codes(torch.tensor([1, -2, 3]), Grid.of(5)), torch.tensor([255, 255], dtype=torch.uint8)]
    )
    assert unpack_codes(packed, Grid.of(5), 3).tolist() == [1, -2, 3]


def test_too_few_bytes_are_told() -> None:
    with pytest.raises(ValueError, match="9 codes of 4 bits need 5 bytes, got 4"):
        unpack_codes(torch.zeros(4, dtype=torch.uint8), Grid.of(4), 9)
