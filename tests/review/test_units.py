"""Numbers as people read them."""

import math

import pytest

from qaf_core.review import units


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"), (999, "B", "999 B"), (999.6, "B", "1.00 kB"), (44_700_000, "B", "44.7 MB"),
        (1_064_000_000, "MACs", "1.06 GMACs"), (1.8627e12, "BOPs", "1.86 TBOPs"), (123_456, "", "123 k"),
        (math.nan, "B", "–"),
    ],
)  # fmt: skip
def test_prefix(value: float, unit: str, text: str) -> None:
    assert units.with_prefix(value, unit).rstrip() == text


def test_small_percentages_do_not_look_like_nothing() -> None:
    assert units.percent_text(0.9035) == "90.3 %" or units.percent_text(0.9035) == "90.4 %"
    assert units.percent_text(0.0) == "0.0 %"
    assert units.percent_text(0.0004) == "0.04 %"
    assert units.percent_text(0.00001) == "< 0.01 %"


def test_points_carry_their_sign() -> None:
    assert units.points_text(-0.0204) == "−2.0"
    assert units.points_text(0.011) == "+1.1"
    assert units.points_text(-0.0001) == "±0.0"


def test_times_and_durations() -> None:
    assert units.times_text(44.7e6, 3.1e6) == "14.4×"
    assert units.times_text(1, 0) == "–"
    assert [units.duration_text(s) for s in (0.4, 9.96, 48, 59.7, 185, 4320)] == [
        "0.4 s", "10 s", "48 s", "1 min 00 s", "3 min 05 s", "1 h 12 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("joules", "text"),
    [(2.0, "2 J"), (1.27e-3, "1.27 mJ"), (8.3e-4, "830 µJ"), (4e-9, "4 nJ"), (2e-12, "0.00 nJ")],
)
def test_energies(joules: float, text: str) -> None:
    assert units.energy_text(joules) == text
