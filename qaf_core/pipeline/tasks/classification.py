"""One class an image: top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from qaf_core.data.models.outputs import plain_scores
from qaf_core.pipeline.intervals import paired_drop, wilson_interval
from qaf_core.pipeline.results import Evaluation
from qaf_core.pipeline.tasks.base import Arrays, check_finite, class_name
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet

RANKS = 5


class Classification:
    """Predictions: ``ranked (N, 5)``, the best classes, best first, and ``confidence (N, 5)``, what softmax
    makes of their scores. Targets: ``labels (N,)``.

    Top-5 is told where there are more than five classes.
    """

    name = "classification"

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        """The five best classes of each image (fewer where there are fewer)."""
        logits = plain_scores(model(images), len(images), by_pixel=False)
        check_finite(logits, say("class scores"))
        best = logits.argmax(dim=1, keepdim=True)  # of equal scores the first class, as everywhere
        rest = logits.scatter(1, best, -float("inf")).topk(min(RANKS, logits.shape[1]) - 1, dim=1).indices
        ranked = torch.cat([best, rest], dim=1)
        confidence = logits.double().softmax(dim=1).gather(1, ranked)
        return {
            "ranked": ranked.cpu().numpy().astype(np.int32),
            "confidence": confidence.cpu().numpy().astype(np.float32),
        }

    def collate(self, images: ImageSet) -> Arrays:
        """The labels."""
        return {"labels": images.labels}

    def metric(self, predictions: Arrays, targets: Arrays, classes: Sequence[str]) -> Evaluation:
        """Top-1 accuracy with its Wilson interval, per class, and top-5."""
        ranked, labels = predictions["ranked"], targets["labels"]
        right = ranked[:, 0] == labels
        per_class = {
            class_name(classes, index): float(right[labels == index].mean())
            for index in sorted({int(label) for label in labels})
        }
        within = float((ranked == labels[:, None]).any(axis=1).mean())
        return Evaluation(
            metric="top1",
            value=float(right.mean()),
            n=len(labels),
            ci95=wilson_interval(int(right.sum()), len(labels)),
            per_class=per_class,
            extra={"top5": within} if len(classes) > RANKS else {},
        )

    def compare(
        self, original: Arrays, compressed: Arrays, targets: Arrays
    ) -> tuple[float, tuple[float, float]]:
        """Top-1 accuracy lost."""
        labels = targets["labels"]
        return paired_drop(original["ranked"][:, 0] == labels, compressed["ranked"][:, 0] == labels)

    def agreement(self, original: Arrays, compressed: Arrays) -> float:
        """Share of images with the same best class."""
        return float((original["ranked"][:, 0] == compressed["ranked"][:, 0]).mean())
