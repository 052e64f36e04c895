"""Accuracy of a network on labelled images, with intervals, and its difference to the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.errors import DataError

Z95 = 1.959963984540054

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One metric of one network on one set of images; all values are fractions.

    Attributes:
        metric: ``top1``.
        value: The metric.
        n: Number of images.
        ci95: Wilson interval of ``value``, 95 %.
        per_class: Accuracy by class name, for the classes that occur.
        agreement: Share of images with the same prediction as the original, or None.
    """

    metric: str = "top1"
    value: float
    n: int
    ci95: tuple[float, float]
    per_class: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "metric": self.metric, "value": self.value, "n": self.n, "ci95": list(self.ci95),
            "per_class": dict(self.per_class), "agreement": self.agreement,
        }  # fmt: skip


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, Z95 * Z95 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[tuple[Tensor, Any]], on_batch: Callable[[int], None] | None = None
) -> IntArray:
    """Predicted classes.

    Args:
        model: Maps ``(B, C, H, W)`` to logits ``(B, classes)``.
        batches: Pairs of images and labels; the labels are not read.
        on_batch: Called with the number of images done so far.

    Returns:
        ``(N,)`` class indices.

    Raises:
        DataError: If there are no images, or the outputs are not finite logits.
    """
    model.eval()
    found: list[IntArray] = []
    done = 0
    for images, _ in batches:
        logits = model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise DataError(
                "the network does not put out one row of class scores per image",
                got=getattr(logits, "shape", type(logits).__name__),
            )
        if not bool(torch.isfinite(logits).all()):
            raise DataError(
                "the network puts out class scores that are not finite",
                got=f"NaN or infinity among images {done} to {done + len(images) - 1}",
                remedy="look at its weights and at the images",
            )
        found.append(logits.argmax(dim=1).cpu().numpy().astype(np.int64))
        done += len(images)
        if on_batch is not None:
            on_batch(done)
    if not found:
        raise DataError("no images to evaluate on", got=0, expected="at least one image")
    return np.concatenate(found)


def evaluate(
    predictions: IntArray,
    labels: IntArray,
    classes: Sequence[str],
    original_predictions: IntArray | None = None,
) -> Evaluation:
    """Top-1 accuracy with its interval, per class, and agreement with the original's predictions.

    Args:
        predictions: ``(N,)``.
        labels: ``(N,)``.
        classes: Names, index by label; an index without a name is shown as the number.
        original_predictions: ``(N,)`` or None.
    """
    right = predictions == labels
    n = len(labels)
    per_class = {
        (classes[index] if index < len(classes) else str(index)): float(right[labels == index].mean())
        for index in sorted({int(label) for label in labels})
    }
    agreement = None if original_predictions is None else float((predictions == original_predictions).mean())
    return Evaluation(
        value=float(right.mean()),
        n=n,
        ci95=wilson_interval(int(right.sum()), n),
        per_class=per_class,
        agreement=agreement,
    )


def paired_drop(original_right: BoolArray, compressed_right: BoolArray) -> tuple[float, tuple[float, float]]:
    """Accuracy lost, and its 95 % interval from the same images.

    Half an image is added to each cell of the table (Agresti & Min 2005).

    Args:
        original_right: ``(N,)`` whether the original was right.
        compressed_right: ``(N,)`` whether the compressed network was right.

    Returns:
        ``original - compressed`` accuracy and (low, high), as fractions.
    """
    n = len(original_right)
    lost = int((original_right & ~compressed_right).sum())
    gained = int((~original_right & compressed_right).sum())
    total, b, c = n + 2.0, lost + 0.5, gained + 0.5
    centre = (b - c) / total
    half = Z95 * math.sqrt(max(b + c - (b - c) ** 2 / total, 0.0)) / total
    return (lost - gained) / n, (max(-1.0, centre - half), min(1.0, centre + half))
