"""Images that are not learnt from and judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.pipeline.divergence import class_scores, cross_entropy, divergence
from qaf_core.pipeline.finetune.augment import mixed

MOST_BATCH, LEAST_BATCH = 64, 8
BATCH_PIXELS = 2**19  # of a batch, where images are large
VALIDATION_SHARE, LEAST_HELD, MOST_HELD = 8, 64, 512
HELD_PIXELS = 2**20  # of all held-back images, where they are large: judging must not take the time
MIXED_VIEWS = 1  # of every held-back image, beside it as it is
SAME_ANSWERS = 0.8  # of the original on images changed in a way that is safe


class Images(Protocol):
    """Normalised images, read when they are asked for; a tensor ``(N, C, H, W)`` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """Some of them, ``(n, C, H, W)``."""
        ...


def split(images: Images) -> tuple[Tensor, Tensor]:
    """Numbers of the images to learn from, and of those that judge.

    Raises:
        DataError: If there are too few images to hold some back.
    """
    count = len(images)
    if count < 2:
        raise DataError("too few images to fine-tune on", got=count, expected="at least 2")
    pixels = images[torch.zeros(1, dtype=torch.int64)][0, 0].numel()
    most = max(LEAST_HELD, min(MOST_HELD, HELD_PIXELS // pixels))
    apart = max(min(VALIDATION_SHARE, count), -(-count // most))
    held_out = torch.arange(count) % apart == apart - 1
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def batch_size(batch: Tensor) -> int:
    """How many images like those of a batch are learnt from at a time."""
    return max(LEAST_BATCH, min(MOST_BATCH, BATCH_PIXELS // batch[0, 0].numel()))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Mean losses on held-back images: ``plain`` as they are, ``mean`` with mixed ones among them."""

    plain: float
    mean: float


class Validation:
    """Images that are not learnt from, as they are and mixed with each other.

    Few images are near a border between classes; mixed ones are, and make the measure steadier. But what
    is gained on mixed images alone is no gain: a state must also be no worse on the images as they are.

    Args:
        images: All images.
        held_out: Numbers of those that judge.
        labels: Of all images, or None.
    """

    def __init__(self, images: Images, held_out: Tensor, labels: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.split(held_out, batch_size(images[held_out[:1]]))
        self.plain = [images[numbers] for numbers in chosen]
        self.labels = None if labels is None else [labels[numbers] for numbers in chosen]
        self.mixed = [
            mixed(batch, generator) for batch in self.plain for _ in range(MIXED_VIEWS) if len(batch) > 1
        ]
        self.count = sum(map(len, (*self.plain, *self.mixed)))

    def verdict(self, original: nn.Module, model: nn.Module) -> Verdict:
        """How far the model is from the original and from the labels, the mean over the images."""
        plain = divergence(original, model, self.plain) + self._cross_entropy(model)
        total = plain + divergence(original, model, self.mixed)
        return Verdict(plain=plain / sum(map(len, self.plain)), mean=total / self.count)

    @torch.inference_mode()
    def _cross_entropy(self, model: nn.Module) -> float:
        if self.labels is None:
            return 0.0
        return sum(
            float(cross_entropy(class_scores(model(batch)), labels)) * len(batch)
            for batch, labels in zip(self.plain, self.labels, strict=True)
        )

    @torch.inference_mode()
    def is_safe(self, original: nn.Module, change: Callable[[Tensor], Tensor]) -> bool:
        """Whether the original takes images changed so for the same; so it is without one class an image."""
        same = total = 0
        for batch in self.plain:
            scores, others = class_scores(original(batch)), class_scores(original(change(batch)))
            if scores is None or others is None or scores.dim() != 2:
                return True
            same, total = same + int((scores.argmax(1) == others.argmax(1)).sum()), total + len(batch)
        return same >= SAME_ANSWERS * total
