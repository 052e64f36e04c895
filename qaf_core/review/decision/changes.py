"""What compression changed for whom: of classifiers, counted from the answers of both networks.

Plain counting with numpy; a test compares every count with scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import QafError
from qaf_core.review.decision.measured import PairedDifference, Share
from qaf_core.review.decision.numbers import CLASSIFICATION, class_index, one_sided_errors
from qaf_core.review.decision.verdict import RISK
from qaf_core.runs.evidence.predictions import PairedPredictions

BINS = 10

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """One class before and after.

    Attributes:
        n: Its images.
        before, after: How many of them the original and the compressed network get right.
        lost, gained: How many only the original, and only the compressed network gets right.
        low, high: Interval of the accuracy lost; all classes' intervals hold together with 95 %. None where
            the class has no image.
    """

    name: str
    n: int
    before: int
    after: int
    lost: int
    gained: int
    low: float | None
    high: float | None

    @property
    def drop(self) -> float | None:
        """Accuracy lost, a fraction; None without images."""
        return (self.lost - self.gained) / self.n if self.n else None


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """Missed defects or false alarms, before and after.

    Attributes:
        n: Images on which the error can happen.
        before, after: How often it does.
        before_ci, after_ci: Exact 95 % intervals of the shares.
        rise, rise_ci: What the compressed network has more, a fraction of ``n``, with its paired interval.
    """

    n: int
    before: int
    after: int
    before_ci: tuple[float, float]
    after_ci: tuple[float, float]
    rise: float
    rise_ci: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """One image to which the two networks answer differently.

    Attributes:
        index: Its place among the evaluation images.
        label, before, after: Names of the true class and of both answers.
        before_confidence, after_confidence: What softmax makes of the best score; None if not kept.
    """

    index: int
    label: str
    before: str
    after: str
    before_confidence: float | None
    after_confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often answers of a confidence are right.

    Attributes:
        counts: Answers in each of ``BINS`` bins of confidence from 0 to 1.
        confidence, accuracy: Means in each bin; NaN in an empty one.
        ece: Expected calibration error: the mean distance of the two, weighted by counts (Naeini 2015).
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    ece: float


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What compression changed for whom.

    Attributes:
        confusion_before, confusion_after: ``(K, K)`` images by true class (row) and answer (column).
        per_class: In the order of the classes.
        missed, false_alarms: Where a class means "nothing found".
        changed: Images whose answer changed, the surest new answer first.
        reliability: Of both networks; None where confidences are not kept.
    """

    classes: tuple[str, ...]
    confusion_before: Counts
    confusion_after: Counts
    per_class: tuple[ClassChange, ...]
    missed: OneSided | None
    false_alarms: OneSided | None
    changed: tuple[ChangedAnswer, ...]
    reliability: tuple[Reliability, Reliability] | None


def compare_answers(paired: PairedPredictions, ok_class: str | None = None) -> Changes:
    """Count what changed between two classifiers.

    Args:
        paired: Their answers.
        ok_class: The class that means "nothing found", or None.

    Raises:
        QafError: If they are no classifiers, or there is no such class.
    """
    if paired.task != CLASSIFICATION:
        raise QafError("answers that are no classes", got=paired.task, expected=CLASSIFICATION)
    ok = None if ok_class is None else class_index(paired, ok_class)
    if ok_class is not None and ok is None:
        raise QafError("unknown class", got=ok_class, expected=", ".join(paired.classes)[:200])
    count = len(paired.classes)
    confidences = [answers.get("confidence") for answers in (paired.original, paired.compressed)]
    return Changes(
        classes=paired.classes,
        confusion_before=_confusion(paired, "original", count),
        confusion_after=_confusion(paired, "compressed", count),
        per_class=_per_class(paired),
        missed=None if ok is None else _one_sided(paired, ok, missed=True),
        false_alarms=None if ok is None else _one_sided(paired, ok, missed=False),
        changed=_changed(paired),
        reliability=None
        if any(values is None for values in confidences)
        else (_reliability(paired, "original"), _reliability(paired, "compressed")),
    )


def _confusion(paired: PairedPredictions, network: str, count: int) -> Counts:
    labels, answers = paired.targets["labels"], getattr(paired, network)["ranked"][:, 0]
    cells = np.bincount(labels * count + answers, minlength=count * count)
    return cells.reshape(count, count).astype(np.int64)


def _per_class(paired: PairedPredictions) -> tuple[ClassChange, ...]:
    labels = paired.targets["labels"]
    before = paired.original["ranked"][:, 0] == labels
    after = paired.compressed["ranked"][:, 0] == labels
    occurring = max(1, len(np.unique(labels)))
    rows = []
    for index, name in enumerate(paired.classes):
        chosen = labels == index
        n, first, second = int(chosen.sum()), before[chosen], after[chosen]
        lost, gained = int((first & ~second).sum()), int((~first & second).sum())
        difference = PairedDifference(lost=lost, gained=gained, n=n)
        low, high = difference.interval(RISK / occurring) if n else (None, None)
        rows.append(
            ClassChange(
                name=name, n=n, before=int(first.sum()), after=int(second.sum()), lost=lost, gained=gained,
                low=low, high=high,
            )
        )  # fmt: skip
    return tuple(rows)


def _one_sided(paired: PairedPredictions, ok: int, *, missed: bool) -> OneSided | None:
    before, after = (one_sided_errors(paired, network, ok, missed) for network in ("original", "compressed"))
    n = len(after)
    if not n:
        return None
    rise = PairedDifference(lost=int((after & ~before).sum()), gained=int((before & ~after).sum()), n=n)
    return OneSided(
        n=n,
        before=int(before.sum()),
        after=int(after.sum()),
        before_ci=Share(count=int(before.sum()), n=n).interval(RISK),
        after_ci=Share(count=int(after.sum()), n=n).interval(RISK),
        rise=rise.value,
        rise_ci=rise.interval(RISK),
    )


def _changed(paired: PairedPredictions) -> tuple[ChangedAnswer, ...]:
    labels = paired.targets["labels"]
    before, after = paired.original["ranked"][:, 0], paired.compressed["ranked"][:, 0]
    places = np.flatnonzero(before != after)
    sure = _confidence(paired, "compressed")
    if sure is not None:
        places = places[np.argsort(-sure[places], kind="stable")]
    sure_before = _confidence(paired, "original")

    def name(index: Any) -> str:
        return paired.classes[index] if index < len(paired.classes) else str(index)

    return tuple(
        ChangedAnswer(
            index=int(place),
            label=name(int(labels[place])),
            before=name(int(before[place])),
            after=name(int(after[place])),
            before_confidence=None if sure_before is None else float(sure_before[place]),
            after_confidence=None if sure is None else float(sure[place]),
        )
        for place in places
    )


def _confidence(paired: PairedPredictions, network: str) -> NDArray[np.float32] | None:
    values = getattr(paired, network).get("confidence")
    return None if values is None else values[:, 0]


def _reliability(paired: PairedPredictions, network: str) -> Reliability:
    answers = getattr(paired, network)
    sure = answers["confidence"][:, 0].astype(np.float64)
    right = (answers["ranked"][:, 0] == paired.targets["labels"]).astype(np.float64)
    place = np.minimum((sure * BINS).astype(np.intp), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, BINS) / counts
        accuracy = np.bincount(place, right, BINS) / counts
    gaps = np.abs(np.bincount(place, sure, BINS) - np.bincount(place, right, BINS))
    return Reliability(
        counts=tuple(map(int, counts)),
        confidence=tuple(map(float, confidence)),
        accuracy=tuple(map(float, accuracy)),
        ece=float(gaps.sum() / max(1, len(sure))),
    )
