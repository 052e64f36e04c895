"""One class a pixel: mean intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.data.images.targets import UNLABELLED
from qaf_core.data.models.outputs import plain_scores
from qaf_core.errors import DataError
from qaf_core.pipeline.intervals import FloatArray, bootstrap_interval
from qaf_core.pipeline.results import Evaluation
from qaf_core.pipeline.tasks.base import Arrays, check_finite, class_name, needed
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet

_CHUNK = 64  # images counted together


class Segmentation:
    """Predictions and targets: ``masks (N, H, W)`` uint8, the class of each pixel; 255 in a target: none.

    The value is the mean over the classes that occur in the targets of intersection over union, each counted
    over all images together, as usual (Everingham et al. 2010).
    """

    name = "segmentation"

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        """The best class of each pixel; coarser scores are interpolated to the size of the images."""
        scores = plain_scores(model(images), len(images), by_pixel=True)
        if scores.shape[1] > UNLABELLED:
            raise DataError(
                "the network does not put out class scores for every pixel",
                got=tuple(scores.shape),
                expected=say("(images, 2 to {unlabelled} classes, height, width)", unlabelled=UNLABELLED),
            )
        check_finite(scores, say("class scores"))
        if scores.shape[-2:] != images.shape[-2:]:
            scores = functional.interpolate(
                scores, size=images.shape[-2:], mode="bilinear", align_corners=False
            )
        return {"masks": scores.argmax(dim=1).cpu().numpy().astype(np.uint8)}

    def collate(self, images: ImageSet) -> Arrays:
        """The masks."""
        return {"masks": needed(images, "masks", say("masks"))}

    def metric(self, predictions: Arrays, targets: Arrays, classes: Sequence[str]) -> Evaluation:
        """Mean IoU with a bootstrap interval, IoU by class, and the share of pixels that are right."""
        predicted, true, both = class_areas(predictions["masks"], targets["masks"])
        every = np.ones((1, len(both)))
        occurring = np.flatnonzero(true.sum(axis=0))
        by_class = intersection_over_union(every, predicted, true, both)[0]
        return Evaluation(
            metric="miou",
            value=float(_mean_iou(every, predicted, true, both)[0]),
            n=len(both),
            ci95=bootstrap_interval(lambda drawn: _mean_iou(drawn, predicted, true, both), len(both)),
            per_class={class_name(classes, int(index)): float(by_class[index]) for index in occurring},
            extra={"pixel_accuracy": float(both.sum() / max(true.sum(), 1))},
        )

    def compare(
        self, original: Arrays, compressed: Arrays, targets: Arrays
    ) -> tuple[float, tuple[float, float]]:
        """Mean IoU lost."""
        before = class_areas(original["masks"], targets["masks"])
        after = class_areas(compressed["masks"], targets["masks"])

        def lost(drawn: FloatArray) -> FloatArray:
            return _mean_iou(drawn, *before) - _mean_iou(drawn, *after)

        n = len(targets["masks"])
        return float(lost(np.ones((1, n)))[0]), bootstrap_interval(lost, n)

    def agreement(self, original: Arrays, compressed: Arrays) -> float:
        """Mean IoU of the two networks' masks over the classes that either puts out.

        Not the share of equal pixels: where most is background, that stays near one whatever is lost.
        """
        predicted, true, both = (
            area.sum(axis=0) for area in class_areas(compressed["masks"], original["masks"])
        )
        either = predicted + true - both
        return float((both[either > 0] / either[either > 0]).mean())


def class_areas(predicted: NDArray[Any], true: NDArray[Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Pixels of each image by class: found, true and both, each ``(N, K)``; unlabelled ones do not count."""
    labelled = true[true != UNLABELLED]
    count = 1 + max(int(predicted.max(initial=0)), int(labelled.max(initial=0)))
    areas = np.zeros((3, len(true), count))
    for start in range(0, len(true), _CHUNK):
        part, target = predicted[start : start + _CHUNK], true[start : start + _CHUNK]
        image = np.arange(len(part))[:, None, None] * count
        counted = target != UNLABELLED
        for row, (classes, chosen) in enumerate(
            ((part, counted), (target, counted), (target, counted & (part == target)))
        ):
            cells = (image + classes.astype(np.intp))[chosen]
            areas[row, start : start + _CHUNK] = np.bincount(cells, minlength=len(part) * count).reshape(
                len(part), count
            )
    return areas[0], areas[1], areas[2]


def intersection_over_union(
    drawn: FloatArray, predicted: FloatArray, true: FloatArray, both: FloatArray
) -> FloatArray:
    """IoU by class ``(R, K)`` of each draw ``(R, N)``; NaN where a class does not occur in the targets."""
    common, target = drawn @ both, drawn @ true
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(target > 0, common / (drawn @ predicted + target - common), np.nan)


def _mean_iou(drawn: FloatArray, predicted: FloatArray, true: FloatArray, both: FloatArray) -> FloatArray:
    """Mean IoU of each draw ``(R,)``; NaN where no pixel is labelled."""
    shares = intersection_over_union(drawn, predicted, true, both)
    occurring = np.isfinite(shares)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = np.where(occurring, shares, 0.0).sum(axis=1) / occurring.sum(axis=1)
    return mean
