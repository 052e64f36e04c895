"""The description of a grid takes what it can keep and refuses the rest in words."""

from __future__ import annotations

from typing import Any

import pytest

from qaf_core.errors import SolverError
from qaf_core.quantization.grid import FLOAT, GRIDS
from qaf_core.quantization.spec import GRANULARITIES, QuantSpec

WIDTHS = [bits for bits, grid in GRIDS.items() if not grid.is_float]


@pytest.mark.parametrize("bits", [*WIDTHS, FLOAT.bits])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_supported_grid_can_be_described(bits: int, granularity: str) -> None:
    spec = QuantSpec(bits=bits, granularity=granularity)
    assert spec.bits_of(3) == (bits, bits, bits)


def test_the_default_is_four_bits_and_a_scale_per_rank_component() -> None:
    assert QuantSpec() == QuantSpec(bits=4, granularity="rank", symmetric=True)


def test_each_factor_may_have_its_own_width() -> None:
    assert QuantSpec(bits=(4, 8, FLOAT.bits)).bits_of(3) == (4, 8, FLOAT.bits)


def test_a_width_for_each_of_another_number_of_factors_is_refused() -> None:
    with pytest.raises(SolverError, match="3 for 2 factors"):
        QuantSpec(bits=(4, 4, 4)).bits_of(2)


@pytest.mark.parametrize("bits", [0, 1, 9, 16, 31, -4, True, None, "4", 4.5, (4, 1), [4, 4]])
def test_widths_outside_the_range_are_refused(bits: Any) -> None:
    with pytest.raises(SolverError, match="bit-width out of range.*2 to 8, or 32"):
        QuantSpec(bits=bits)


def test_unknown_granularity_and_zero_points_are_refused() -> None:
    with pytest.raises(SolverError, match="channel.*tensor, rank, rank_row"):
        QuantSpec(granularity="channel")
    with pytest.raises(SolverError, match="zero point"):
        QuantSpec(symmetric=False)
