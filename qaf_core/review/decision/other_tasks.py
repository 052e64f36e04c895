"""What compression changed for whom, of segmentation and detection: each by its task's own measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import QafError
from qaf_core.pipeline.intervals import bootstrap_interval
from qaf_core.runs.evidence.predictions import Arrays, PairedPredictions
from qaf_core.text.said import say

SEGMENTATION, DETECTION = "segmentation", "detection"
CONFIDENT = 0.5  # score from which a box counts as found
RESAMPLES = 300

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassMeasure:
    """One class before and after, by the task's own measure.

    Attributes:
        n: Images that hold the class.
        before, after: IoU, or average precision at an IoU of 0.5.
        low, high: 95 % bootstrap interval of what is lost; detection has none by class.
        missed_before, missed_after: Objects that no confident box covers; None of segmentation.
        false_before, false_after: Confident boxes without an object; None of segmentation.
    """

    name: str
    n: int
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    missed_before: int | None = None
    missed_after: int | None = None
    false_before: int | None = None
    false_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskChanges:
    """What changed between two networks that put out masks or boxes.

    Attributes:
        metric: Short name of the measure by class, ``iou`` or ``ap50``.
        changed: Places of the images by how much more the compressed network gets wrong, most first, with
            that number: a share of pixels, or objects missed and boxes invented.
    """

    metric: str
    per_class: tuple[ClassMeasure, ...]
    changed: tuple[tuple[int, float], ...]


def compare_task(paired: PairedPredictions) -> TaskChanges:
    """Measure what changed, class by class and image by image.

    Raises:
        QafError: If the task is neither segmentation nor detection.
    """
    if paired.task == SEGMENTATION:
        return _compare_masks(paired)
    if paired.task == DETECTION:
        return _compare_boxes(paired)
    raise QafError(
        "no measure by class for this task",
        got=paired.task,
        expected=say("{one} or {other}", one=SEGMENTATION, other=DETECTION),
    )


def _compare_masks(paired: PairedPredictions) -> TaskChanges:
    from qaf_core.pipeline.tasks.segmentation import class_areas, intersection_over_union

    true = paired.targets["masks"]
    before = class_areas(paired.original["masks"], true)
    after = class_areas(paired.compressed["masks"], true)
    target = before[1]
    rows = []
    every = np.ones((1, len(true)))
    first, second = intersection_over_union(every, *before)[0], intersection_over_union(every, *after)[0]
    for index in np.flatnonzero(target.sum(axis=0)):

        def lost(drawn: FloatArray, index: int = int(index)) -> FloatArray:
            one = [area[:, [index]] for area in before], [area[:, [index]] for area in after]
            scores = [intersection_over_union(drawn, *areas)[:, 0] for areas in one]
            return scores[0] - scores[1]

        low, high = bootstrap_interval(lost, len(true), RESAMPLES)
        rows.append(
            ClassMeasure(
                name=_name(paired, int(index)), n=int((target[:, index] > 0).sum()),
                before=float(first[index]), after=float(second[index]), low=low, high=high,
            )
        )  # fmt: skip
    labelled = np.maximum(target.sum(axis=1), 1)
    worse = (before[2].sum(axis=1) - after[2].sum(axis=1)) / labelled
    return TaskChanges(metric="iou", per_class=tuple(rows), changed=_worst(worse))


def _compare_boxes(paired: PairedPredictions) -> TaskChanges:
    from qaf_core.pipeline.tasks.matching import match_boxes

    every = [match_boxes(boxes, paired.targets) for boxes in (paired.original, paired.compressed)]
    sure = [match_boxes(_confident(boxes), paired.targets) for boxes in (paired.original, paired.compressed)]
    images = len(paired.targets["counts"])
    errors = np.zeros((2, images))
    rows = []
    for place, label in enumerate(every[0].labels):
        missed, false = [], []
        for side, matches in enumerate(sure):
            row = matches.classes[place]
            hits = np.bincount(row.image[row.hits[0]], minlength=images)
            wrong = np.bincount(row.image[~row.hits[0]], minlength=images)
            errors[side] += row.objects - hits + wrong
            missed.append(int((row.objects - hits).sum()))
            false.append(int(wrong.sum()))
        rows.append(
            ClassMeasure(
                name=_name(paired, label), n=int((every[0].classes[place].objects > 0).sum()),
                before=float(every[0].average_precision[place, 0]),
                after=float(every[1].average_precision[place, 0]),
                missed_before=missed[0], missed_after=missed[1], false_before=false[0], false_after=false[1],
            )
        )  # fmt: skip
    return TaskChanges(metric="ap50", per_class=tuple(rows), changed=_worst(errors[1] - errors[0]))


def _confident(predictions: Arrays) -> Arrays:
    """The boxes with a score of at least ``CONFIDENT``."""
    chosen = predictions["scores"] >= CONFIDENT
    image = np.repeat(np.arange(len(predictions["counts"])), predictions["counts"])[chosen]
    kept = {key: predictions[key][chosen] for key in ("boxes", "labels", "scores")}
    return {**kept, "counts": np.bincount(image, minlength=len(predictions["counts"]))}


def _worst(worse: FloatArray) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-worse, kind="stable")
    return tuple((int(place), float(worse[place])) for place in order if worse[place] != 0)


def _name(paired: PairedPredictions, index: int) -> str:
    return paired.classes[index] if index < len(paired.classes) else str(index)
