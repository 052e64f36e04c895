"""Numbers as people read them: with a unit and three significant digits."""

from __future__ import annotations

import math

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
        return f"{percent:.{digits + 1}f} %" if abs(percent) >= least else f"< {least:g} %"
    return f"{percent:.{digits}f} %"


def points_text(fraction: float) -> str:
    """A difference of two fractions in percentage points, signed: ``−2.0 points``."""
    if not math.isfinite(fraction):
        return MISSING
    value = round(100 * fraction, 1)
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return f"{sign}{abs(value):.1f}"


def times_text(before: float, after: float) -> str:
    """How many times smaller: ``14.4×``; a dash where there is nothing to divide by."""
    if after <= 0 or not math.isfinite(before / after):
        return MISSING
    return f"{_three_digits(before / after)}×"


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
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
