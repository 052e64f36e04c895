"""Boxes around objects: mean average precision, by pycocotools, the reference implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.pipeline.intervals import FloatArray, bootstrap_interval
from qaf_core.pipeline.results import Evaluation
from qaf_core.pipeline.tasks.base import Arrays, check_finite, class_name, needed
from qaf_core.pipeline.tasks.matching import Matches, match_boxes
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet

CONFIDENT = 0.5  # score from which a box counts for the agreement
RESAMPLES = 300  # each costs a pass over all boxes


class Detection:
    """Predictions: ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)``, ``counts (N,)`` boxes of each image.

    Boxes are left, top, right and bottom in pixels, image after image. The targets are the same without
    scores. The value is the mean over classes of the average precision at an IoU of 0.5 (``map50``); the mean
    over IoU thresholds from 0.5 to 0.95 is told beside it (``map``).
    """

    name = "detection"

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        """The boxes a torchvision detector finds: its outputs are one mapping an image."""
        outputs = model(images)
        if not isinstance(outputs, list) or len(outputs) != len(images):
            raise DataError(
                "the network does not put out a list of boxes per image",
                got=type(outputs).__name__,
                expected="one mapping with boxes, labels and scores an image, as torchvision's detectors do",
            )
        for output in outputs:
            _check_boxes(output)
        return {
            "boxes": _joined([output["boxes"] for output in outputs]).astype(np.float32),
            "labels": _joined([output["labels"] for output in outputs]).astype(np.int32),
            "scores": _joined([output["scores"] for output in outputs]).astype(np.float32),
            "counts": np.array([len(output["scores"]) for output in outputs], np.int32),
        }

    def collate(self, images: ImageSet) -> Arrays:
        """The boxes."""
        return {key: needed(images, key, say("boxes")) for key in ("boxes", "labels", "counts")}

    def metric(self, predictions: Arrays, targets: Arrays, classes: Sequence[str]) -> Evaluation:
        """mAP at 0.5 with a bootstrap interval, by class, and mAP over all thresholds."""
        matches = match_boxes(predictions, targets)
        n = len(targets["counts"])
        by_class = matches.average_precision[:, 0]
        return Evaluation(
            metric="map50",
            value=_mean(by_class),
            n=n,
            ci95=bootstrap_interval(lambda drawn: matches.resampled(drawn), n, RESAMPLES),
            per_class={
                class_name(classes, label): float(value)
                for label, value in zip(matches.labels, by_class, strict=True)
            },
            extra={"map": _mean(matches.average_precision.mean(axis=1))},
        )

    def compare(
        self, original: Arrays, compressed: Arrays, targets: Arrays
    ) -> tuple[float, tuple[float, float]]:
        """mAP at 0.5 lost."""
        before, after = match_boxes(original, targets), match_boxes(compressed, targets)

        def lost(drawn: FloatArray) -> FloatArray:
            return before.resampled(drawn) - after.resampled(drawn)

        drop = _mean(before.average_precision[:, 0]) - _mean(after.average_precision[:, 0])
        return drop, bootstrap_interval(lost, len(targets["counts"]), RESAMPLES)

    def agreement(self, original: Arrays, compressed: Arrays) -> float:
        """Share of the confident boxes that have a partner: same class, IoU of at least 0.5 (F1 score)."""
        before, after = _confident(original), _confident(compressed)
        total = len(before["scores"]) + len(after["scores"])
        if total == 0:
            return 1.0
        matches: Matches = match_boxes(after, before)
        return 2 * sum(int(row.hits[0].sum()) for row in matches.classes) / total


def _check_boxes(output: Any) -> None:
    keys = ("boxes", "labels", "scores")
    if not isinstance(output, Mapping) or not all(isinstance(output.get(key), Tensor) for key in keys):
        raise DataError(
            "the network does not put out boxes, labels and scores",
            got=", ".join(map(str, output)) if isinstance(output, Mapping) else type(output).__name__,
            expected=", ".join(keys),
        )
    boxes, labels, scores = (output[key] for key in keys)
    if boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
        raise DataError(
            "the network's boxes, labels and scores do not go together",
            got=f"{tuple(boxes.shape)}, {tuple(labels.shape)}, {tuple(scores.shape)}",
            expected="(D, 4), (D,), (D,)",
        )
    check_finite(boxes, say("boxes"))
    check_finite(scores, say("scores"))


def _joined(parts: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    return torch.cat(list(parts)).cpu().numpy()


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _confident(predictions: Arrays) -> Arrays:
    """The boxes with a score of at least ``CONFIDENT``."""
    chosen = predictions["scores"] >= CONFIDENT
    image = np.repeat(np.arange(len(predictions["counts"])), predictions["counts"])
    return {
        **{key: predictions[key][chosen] for key in ("boxes", "labels", "scores")},
        "counts": np.bincount(image[chosen], minlength=len(predictions["counts"])),
    }
