"""The numbers by which runs are set against each other, and targets for them in people's words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qaf_core.errors import QafError
from qaf_core.review.metrics import metric_label
from qaf_core.text.said import Translate, say, untranslated
from qaf_core.text.units import MISSING, energy_text, milliseconds_text, percent_text, size_text, with_prefix

VALUE, SIZE, DEPLOYED, BOPS = "value", "size_bytes", "deployed_bytes", "bops"
LATENCY, ENERGY, MEMORY, DROP = "latency_ms", "energy_joules", "memory_bytes", "drop"
AXES = (VALUE, SIZE, DEPLOYED, BOPS, LATENCY, ENERGY, MEMORY)  # of charts, as fields of rows and points
_FRACTIONS = (VALUE, DROP)
_UNITS = {
    "%": (VALUE, 0.01), "pp": (DROP, 0.01), "point": (DROP, 0.01), "points": (DROP, 0.01),
    "ポイント": (DROP, 0.01), "s": (LATENCY, 1e3), "ms": (LATENCY, 1.0), "us": (LATENCY, 1e-3),
    "μs": (LATENCY, 1e-3), "J": (ENERGY, 1.0), "mJ": (ENERGY, 1e-3), "uJ": (ENERGY, 1e-6),
    "μJ": (ENERGY, 1e-6), "nJ": (ENERGY, 1e-9), "bops": (BOPS, 1.0), "kbops": (BOPS, 1e3),
    "mbops": (BOPS, 1e6), "gbops": (BOPS, 1e9), "tbops": (BOPS, 1e12), "b": (SIZE, 1.0), "kb": (SIZE, 1e3),
    "mb": (SIZE, 1e6), "gb": (SIZE, 1e9),
}  # fmt: skip
# What a size is of, where it is not of the packed file.
_OF = {
    DEPLOYED: ("deploy", "onnx", "配備"), MEMORY: ("memory", "ram", "メモリ"), LATENCY: (), SIZE: ("packed",),
}  # fmt: skip
_CONDITION = re.compile(
    r"(?P<before>[^\d<>=≥≤]*)(?P<sign>>=|<=|≥|≤|>|<)?\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[A-Za-zμ]+|ポイント)"
    r"(?P<after>.*)"
)
EXAMPLE = "≥ 94 %, ≤ 80 kB, ≤ 5 ms"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One side of a target box.

    Attributes:
        axis: What it limits: one of ``AXES``, or the loss against the original.
        at_least: Whether the number may not be below the limit; else not above it.
        limit: In the axis's unit: a fraction, bytes, bit-operations, milliseconds or joules.
    """

    axis: str
    at_least: bool
    limit: float

    def holds(self, row: Judged) -> bool | None:
        """Whether a run keeps to it, by what was measured; None where it was not."""
        value = getattr(row, self.axis)
        if value is None:
            return None
        return bool(value >= self.limit if self.at_least else value <= self.limit)

    def typed(self) -> str:
        """As it is read again: ``≤ 80 kB``."""
        word = {DEPLOYED: " deployed", MEMORY: " memory"}.get(self.axis, "")
        number = axis_text(self.axis, self.limit)
        if self.axis in (VALUE, LATENCY):  # exactly, and without a comma, which parts conditions
            number = f"{100 * self.limit:.4g} %" if self.axis == VALUE else f"{self.limit:.4g} ms"
        return f"{'≥' if self.at_least else '≤'} {number}{word}"

    def text(self, _: Translate = untranslated) -> str:
        """As ``Size of the packed file ≤ 80 kB``."""
        sign = "≥" if self.at_least else "≤"
        return f"{axis_label(self.axis, None, _)} {sign} {axis_text(self.axis, self.limit)}"


class Judged(Protocol):
    """A run with the numbers of the axes: a row of a list, or a point."""


def read_target(text: str) -> tuple[Condition, ...]:
    """Read a target such as ``≥ 94 %, ≤ 80 kB, ≤ 5 ms``; the unit says what is limited.

    Bytes are those of the packed file, of the deployed one or of memory where that word stands beside them;
    without a sign accuracy is a floor and all else a ceiling.

    Raises:
        QafError: If a part of it cannot be read.
    """
    parts = re.split(r"[,;、\n]|\band\b|&", unicodedata.normalize("NFKC", text))
    return tuple(_read_condition(part.strip()) for part in parts if part.strip())


def box_target(sides: Mapping[str, tuple[float, float]]) -> tuple[Condition, ...]:
    """The target of a drawn box, from its lower and upper side by axis: the better side limits nothing."""
    return tuple(
        Condition(axis=axis, at_least=axis == VALUE, limit=low if axis == VALUE else high)
        for axis, (low, high) in sides.items()
    )


def _read_condition(part: str) -> Condition:
    match = _CONDITION.fullmatch(part)
    unit = match["unit"] if match else ""
    known = _UNITS.get(unit) or _UNITS.get(unit.lower())
    if match is None or known is None:
        raise QafError(
            "this part of the target cannot be read",
            got=part,
            expected=say("a limit with its unit, as in {example}", example=EXAMPLE),
            remedy="units: %, points, kB, MB, ms, mJ, GBOPs; write deployed or memory beside other bytes",
        )
    axis, factor = known
    words = f"{match['before']} {match['after']}".lower()
    if axis == SIZE:
        axis = next((other for other, marks in _OF.items() if any(mark in words for mark in marks)), SIZE)
    floor = axis == VALUE if not match["sign"] else match["sign"] in (">", ">=", "≥")
    if not match["sign"] and ("以上" in words or "以下" in words):
        floor = "以上" in words
    return Condition(axis=axis, at_least=floor, limit=float(match["number"]) * factor)


def passes(row: Judged, target: Sequence[Condition]) -> bool | None:
    """Whether a run keeps to all of a target; None where only what was not measured stands against it."""
    holds = [condition.holds(row) for condition in target]
    return False if False in holds else None if None in holds else True


def axis_label(axis: str, metric: str | None, _: Translate = untranslated) -> str:
    """The name of an axis; of accuracy the metric's."""
    labels = {
        SIZE: _("Size of the packed file"),
        DEPLOYED: _("Size of the deployed file"),
        BOPS: _("Bit-operations per image"),
        LATENCY: _("Latency here (median)"),
        ENERGY: _("Energy of an image (modelled)"),
        MEMORY: _("Peak memory of one inference"),
        DROP: _("Loss against the original"),
    }
    return labels.get(axis) or metric_label(metric, _)


def axis_text(axis: str, value: float | None) -> str:
    """A number of an axis with its unit."""
    if value is None:
        return MISSING
    if axis == DROP:
        return f"{100 * value:.3g} pp"
    if axis == VALUE:
        return percent_text(value)
    if axis == LATENCY:
        return milliseconds_text(value)
    if axis == ENERGY:
        return energy_text(value)
    return with_prefix(value, "BOPs") if axis == BOPS else size_text(value)
