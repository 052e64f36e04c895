"""Numbers as people read them."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qaf_core
from qaf_core.text import units

CORE = Path(qaf_core.__file__).parent
# Where numbers stand for people. What machines read (targets and budgets, typed again) and files that run
# without this package write their own.
SHOWN = [
    path
    for folder in (CORE / "cli", CORE / "review", CORE / "pipeline" / "check", CORE.parent / "dashboard")
    for path in sorted(folder.rglob("*.py"))
]
BY_HAND = re.compile(r"\{[^{}]*:[^{}]*\.\d[efg%]\}\s?(?:%|×|[kMGT]?B\b|ms\b|points\b|pp\b)|\{[^{}]*:\.\d%\}")
TYPED_AGAIN = {"axes.py": 3}


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


def test_ranks_and_bits_of_several_factors() -> None:
    assert units.bits_text((3, 2, 3)) == units.bits_text([3, 2, 3]) == "3, 2, 3"
    assert units.bits_text((4, 4)) == units.bits_text(4) == "4"
    assert units.rank_text([24, 32]) == "24 × 32"


def test_small_percentages_do_not_look_like_nothing() -> None:
    assert units.percent_text(0.9034) == "90.3 %"
    assert units.percent_text(0.9036) == "90.4 %"
    assert units.percent_text(-0.02) == "−2.0 %"
    assert units.percent_text(-0.00001) == "> −0.01 %"
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
    [(2.0, "2 J"), (1.27e-3, "1.27 mJ"), (8.3e-4, "830 µJ"), (4e-9, "4 nJ"), (2e-12, "0.002 nJ")],
)
def test_energies(joules: float, text: str) -> None:
    assert units.energy_text(joules) == text


def test_points_take_digits() -> None:
    assert units.points_text(-0.00804, 2) == "−0.80"
    assert units.points_text(math.inf) == "–"


def test_multiples_and_times_of_inference() -> None:
    assert [units.factor_text(times) for times in (13.94, 1.5, 128.2, math.nan)] == [
        "13.9×", "1.50×", "128×", "–",
    ]  # fmt: skip
    assert [units.milliseconds_text(ms) for ms in (0.0123, 0.274, 12.34, 1204.4, math.nan)] == [
        "0.012 ms", "0.27 ms", "12.3 ms", "1,204 ms", "–",
    ]  # fmt: skip


def test_minus_is_a_minus_sign() -> None:
    assert units.decimal_text(-0.254, 2) == "−0.25"
    assert units.decimal_text(-0.001, 2) == "0.00"
    assert units.decimal_text(12345.6, 0) == "12,346"
    assert units.with_prefix(-1500, "B") == "−1.50 kB"


@pytest.mark.parametrize(
    ("values", "unit", "form", "divisor"),
    [
        ((26_200, 360_000), "B", "%.1f kB", 1e3), ((77_000, 44_700_000), "B", "%.3f MB", 1e6),
        ((1e-3, 2e-3), "J", "%.2f mJ", 1e-3), ((0.27, 12.0), "ms", "%.2f ms", 1.0),
        ((3.1e9, 9e9), "BOPs", "%.2f GBOPs", 1e9),
        ((None, math.nan), "B", "%.2f B", 1.0), ((), "B", "%.2f B", 1.0),
    ],
)  # fmt: skip
def test_a_column_has_one_unit(
    values: tuple[float | None, ...], unit: str, form: str, divisor: float
) -> None:
    found = units.column_unit(values, unit)
    assert (found.form, found.divisor) == (form, divisor)


def texts_with_values(path: Path) -> Iterator[str]:
    """Templates and f-strings as they are written, but not those of charts, which format themselves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "%{" not in node.value:
            yield node.value


def test_no_screen_and_no_command_formats_a_unit_by_hand() -> None:
    found = {}
    for path in SHOWN:
        told = [text for text in texts_with_values(path) if BY_HAND.search(text)]
        if len(told) > TYPED_AGAIN.get(path.name, 0):
            found[str(path.relative_to(CORE.parent))] = told
    assert found == {}
