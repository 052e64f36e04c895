"""Numbers as people read them: with a unit, a true minus sign and three significant digits.

Screens, charts, reports and the command line write their numbers with these and format none by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_DECIMAL_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
MISSING = "–"


def with_prefix(value: float, unit: str) -> str:
    """``1_064_000_000, "MACs"`` becomes ``1.06 GMACs`` (decimal prefixes)."""
    if not math.isfinite(value):
        return MISSING
    for factor, prefix in _DECIMAL_PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}".rstrip()


def rank_text(rank: object) -> str:
    """A rank as people write it: ``134``, ``24 × 32``, or nothing."""
    if rank is None:
        return ""
    if isinstance(rank, (list, tuple)):
        return " × ".join(str(r) for r in rank)
    return str(rank)


def bits_text(bits: object) -> str:
    """Bits as people write them: ``4``, or ``4, 4, 8`` where each factor has its own."""
    if bits is None:
        return ""
    if isinstance(bits, (list, tuple)):
        return ", ".join(str(b) for b in bits) if len(set(bits)) > 1 else str(bits[0])
    return str(bits)


def size_text(size_bytes: float) -> str:
    """Bytes in decimal units: ``44.7 MB``."""
    return with_prefix(size_bytes, "B")


def energy_text(joules: float) -> str:
    """Joules with a decimal prefix: ``1.27 mJ``, ``830 µJ``."""
    for factor, prefix in _SMALL_PREFIXES:
        if abs(joules) >= factor * 0.9995:
            return with_prefix(joules / factor, f"{prefix}J")
    return with_prefix(joules * 1e9, "nJ")


def count_text(value: float) -> str:
    """A count with a decimal prefix and no unit: ``11.2 M``."""
    return with_prefix(value, "").rstrip()


def percent_text(fraction: float, digits: int = 1) -> str:
    """A fraction as percent: ``0.9035`` becomes ``90.4 %`` (a digit more below 0.1 %)."""
    if not math.isfinite(fraction):
        return MISSING
    percent = 100 * fraction
    if percent != 0 and abs(percent) < 10**-digits:
        least = 10 ** -(digits + 1)
        if abs(percent) < least:
            return f"< {least:g} %" if percent > 0 else f"> −{least:g} %"
        digits += 1
    sign = "−" if percent < 0 else ""
    return f"{sign}{abs(percent):.{digits}f} %"


def points_text(fraction: float, digits: int = 1) -> str:
    """A difference of two fractions in percentage points, signed: ``−2.0``, ``+1.1``, ``±0.0``."""
    if not math.isfinite(fraction):
        return MISSING
    value = round(100 * fraction, digits)
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return f"{sign}{abs(value):.{digits}f}"


def decimal_text(value: float, digits: int) -> str:
    """A number with this many decimals and a true minus sign: ``−0.25``."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def milliseconds_text(milliseconds: float) -> str:
    """A time of inference: ``0.27 ms``, ``12.3 ms``, ``1,204 ms``."""
    return f"{_three_digits(milliseconds)} ms" if math.isfinite(milliseconds) else MISSING


def times_text(before: float, after: float) -> str:
    """How many times smaller: ``14.4×``; a dash where there is nothing to divide by."""
    return MISSING if after <= 0 else factor_text(before / after)


def factor_text(times: float) -> str:
    """A multiple: ``13.9×``."""
    return f"{_three_digits(times)}×" if math.isfinite(times) else MISSING


def duration_text(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``48 s``, ``3 min 05 s`` or ``1 h 12 min``."""
    if not math.isfinite(seconds):
        return MISSING
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95 or value == int(value):
        return decimal_text(value, 0)
    if magnitude < 0.0995:
        return f"{value:.2g}".replace("-", "−")
    return decimal_text(value, 1 if magnitude >= 9.995 else 2)


@dataclass(frozen=True, kw_only=True)
class ColumnUnit:
    """The one unit of a column of a table, so that its numbers can be compared and sorted.

    Attributes:
        divisor: By which numbers are divided to stand in the unit.
        unit: With its prefix, such as ``kB``.
        decimals: How many the smallest number needs, three at most.
    """

    divisor: float
    unit: str
    decimals: int

    @property
    def form(self) -> str:
        """As ``%.1f kB``, for tables that format numbers themselves."""
        return f"%.{self.decimals}f {self.unit}"


def column_unit(values: Iterable[float | None], unit: str) -> ColumnUnit:
    """The unit that fits the largest number of a column.

    Args:
        values: Its numbers; what is missing or not finite does not count.
        unit: Without a prefix: ``B``, ``BOPs``, ``J``; ``ms`` takes none.
    """
    known = [abs(value) for value in values if value and math.isfinite(value)] or [1.0]
    plain = ((1.0, ""),)
    prefixes = plain if unit == "ms" else (*_DECIMAL_PREFIXES, *(_SMALL_PREFIXES if unit == "J" else plain))
    divisor, prefix = next((pair for pair in prefixes if max(known) >= 0.9995 * pair[0]), prefixes[-1])
    least = min(known) / divisor
    decimals = 3 if least < 0.0995 else 2 if least < 9.95 else 1 if least < 99.5 else 0
    return ColumnUnit(divisor=divisor, unit=prefix + unit, decimals=decimals)
