"""What runs differ by from one they are compared with, image by image, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qaf_core.pipeline.intervals import paired_interval
from qaf_core.runs.evidence.answers import Answers
from qaf_core.runs.listing import RunRow
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import points_text


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A run's metric minus the reference's on the same images.

    Attributes:
        value: A fraction.
        low, high: Its 95 % interval; None where both cannot be paired image by image.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """``worse``, ``better``, ``same`` (chance explains it), or ``unknown``."""
        if self.low is None or self.high is None:
            return "unknown"
        return "worse" if self.high < 0 else "better" if self.low > 0 else "same"

    def text(self, _: Translate = untranslated) -> str:
        """As ``−1.2 (−2.0 to −0.4)``: in points."""
        text = points_text(self.value)
        if self.low is None or self.high is None:
            return text
        ends = _("{low} to {high}").format(low=points_text(self.low), high=points_text(self.high))
        return f"{text} ({ends})"

    def sentence(self, _: Translate = untranslated) -> str:
        """What it means."""
        return verdict_labels(_)[self.verdict]


def verdict_labels(_: Translate = untranslated) -> dict[str, str]:
    """What a difference says, by ``Difference.verdict``."""
    return {
        "worse": _("worse: chance does not explain it"),
        "better": _("better: chance does not explain it"),
        "same": _("no difference shown"),
        "unknown": _("not paired: unknown"),
    }


def against_original(rows: Sequence[RunRow]) -> dict[str, Difference]:
    """By run, as it was measured when the run ended."""
    differences = {}
    for row in rows:
        if row.drop is not None:
            low = None if row.drop_high is None else -row.drop_high
            high = None if row.drop_low is None else -row.drop_low
            differences[row.id] = Difference(value=-row.drop, low=low, high=high)
    return differences


def against_run(
    rows: Sequence[RunRow], reference: RunRow, answers: Mapping[str, Answers]
) -> dict[str, Difference]:
    """By run, against another run on the same images (Agresti and Min 2005).

    Args:
        rows: Runs with a metric.
        reference: What they are compared with.
        answers: Of classifiers, by run; without them a difference has no interval.
    """
    differences, base = {}, answers.get(reference.id)
    for row in rows:
        if row.value is None or reference.value is None:
            continue
        own = answers.get(row.id)
        if base is None or own is None or (own.data, own.n) != (base.data, base.n):
            differences[row.id] = Difference(value=row.value - reference.value)
            continue
        gained = int(np.bitwise_count(own.right & ~base.right).sum())
        lost = int(np.bitwise_count(base.right & ~own.right).sum())
        low, high = paired_interval(gained, lost, own.n)
        differences[row.id] = Difference(value=(gained - lost) / own.n, low=float(low), high=float(high))
    return differences
