"""Found boxes against true ones: matched and scored by pycocotools, and its curves again for drawn images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.pipeline.intervals import FloatArray
from qaf_core.pipeline.tasks.base import Arrays

MOST_BOXES = 100  # of an image, the highest scores; as COCO counts
_EVERY_SIZE = [0.0, 1e10]
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """The found boxes of one class, highest score first.

    Attributes:
        image: ``(D,)`` the image each is in.
        hits: ``(T, D)`` whether it has a true box of its own, by IoU threshold.
        objects: ``(N,)`` true boxes of each image.
    """

    image: NDArray[np.intp]
    hits: NDArray[np.bool_]
    objects: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """All classes that have true boxes.

    Attributes:
        labels: Their numbers, ascending.
        classes: Their boxes.
        average_precision: ``(K, T)`` by class and IoU threshold, as pycocotools counts it.
    """

    labels: tuple[int, ...]
    classes: tuple[ClassMatches, ...]
    average_precision: FloatArray

    def resampled(self, drawn: FloatArray) -> FloatArray:
        """mAP at the lowest IoU threshold when images count as often as drawn.

        Args:
            drawn: ``(R, N)``.

        Returns:
            ``(R,)``; classes without a true box among the drawn images are left out, NaN if none has any.
        """
        total, present = np.zeros(len(drawn)), np.zeros(len(drawn))
        for row in self.classes:
            value = _weighted_precision(row, drawn)
            total += np.nan_to_num(value)
            present += np.isfinite(value)
        with np.errstate(invalid="ignore"):
            mean: FloatArray = total / present
        return mean


def match_boxes(predicted: Arrays, true: Arrays) -> Matches:
    """Match found boxes to true ones, class by class and image by image.

    Args:
        predicted: ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)`` and ``counts (N,)``.
        true: The same without scores.
    """
    labels = tuple(sorted({int(label) for label in true["labels"]}))
    images = len(true["counts"])
    if not labels:
        return Matches(labels=(), classes=(), average_precision=np.zeros((0, 10)))
    evaluator = _run_pycocotools(predicted, true, labels, images)
    precision = evaluator.eval["precision"][:, :, :, 0, 0]  # (T, recalls, K)
    rows = [evaluator.evalImgs[start : start + images] for start in range(0, len(labels) * images, images)]
    return Matches(
        labels=labels,
        classes=tuple(_collect(part) for part in rows),
        average_precision=precision.mean(axis=1).T,
    )


def _run_pycocotools(predicted: Arrays, true: Arrays, labels: Sequence[int], images: int) -> Any:
    """Its evaluator, done; what it prints is dropped."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for boxes in (true, predicted):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": number} for number in range(images)],
                "categories": [{"id": label} for label in labels],
                "annotations": _annotations(boxes),
            }
            coco.createIndex()
            sets.append(coco)
        evaluator = COCOeval(*sets, iouType="bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [_EVERY_SIZE], ["all"]
        evaluator.params.maxDets = [MOST_BOXES]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _annotations(boxes: Arrays) -> list[dict[str, Any]]:
    """Boxes in pycocotools' form: left, top, width and height; numbers from 1, since 0 means no match."""
    corners = boxes["boxes"].astype(np.float64)
    sizes = np.clip(corners[:, 2:] - corners[:, :2], 0, None)
    image = np.repeat(np.arange(len(boxes["counts"])), boxes["counts"])
    scores = boxes.get("scores", np.ones(len(corners)))
    return [
        {
            "id": row + 1,
            "image_id": int(image[row]),
            "category_id": int(boxes["labels"][row]),
            "bbox": [*corners[row, :2].tolist(), *sizes[row].tolist()],
            "area": float(sizes[row].prod()),
            "iscrowd": 0,
            "score": float(scores[row]),
        }
        for row in range(len(corners))
    ]


def _collect(images: Sequence[dict[str, Any] | None]) -> ClassMatches:
    """One class of all images, its boxes sorted by score as pycocotools sorts them."""
    rows = [(number, row) for number, row in enumerate(images) if row is not None]
    scores = np.concatenate([np.asarray(row["dtScores"], np.float64) for _, row in rows])
    order = np.argsort(-scores, kind="mergesort")
    image = np.concatenate([np.full(len(row["dtScores"]), number, np.intp) for number, row in rows])
    objects = np.zeros(len(images))
    for number, row in rows:
        objects[number] = len(row["gtIds"])
    return ClassMatches(
        image=image[order],
        hits=np.concatenate([row["dtMatches"] > 0 for _, row in rows], axis=1)[:, order],
        objects=objects,
    )


def _weighted_precision(row: ClassMatches, drawn: FloatArray) -> FloatArray:
    """Average precision at the lowest threshold ``(R,)``, every image counted as often as drawn."""
    objects = drawn @ row.objects
    result = np.where(objects > 0, 0.0, np.nan)
    if not len(row.image):
        return result
    for draw in np.flatnonzero(objects > 0):
        weights = drawn[draw, row.image]
        hits = np.cumsum(weights * row.hits[0])
        precision = hits / (np.cumsum(weights) + np.spacing(1))
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        result[draw] = envelope[np.searchsorted(hits / objects[draw], _RECALLS, side="left")].mean()
    return result
