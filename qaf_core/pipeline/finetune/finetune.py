"""Fine-tuning: a compressed network learns from its original, and from labels where there are any.

Scales, biases and the normalisations beside the chains are learnt (``scales``), or the codes too
(``codes``). The loss is the divergence of the outputs, and of the layers' outputs, from the original's
(:mod:`qaf_core.pipeline.divergence`; distillation as in Hinton et al. 2015, arXiv 1503.02531), with labels
the cross-entropy of the class scores besides. Images are moved and mirrored where the original takes them
for the same still, and half of the batches are mixed (mixup; arXiv 1710.09412): there the original alone
tells what is right. Some images are never learnt from and judge: the best state by that measure is kept,
which may be the one it began with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, RunCancelled
from qaf_core.pipeline.divergence import class_scores, cross_entropy, divergence, training_loss
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.augment import flipped, mixed, shifted
from qaf_core.pipeline.finetune.options import CODES, FinetuneOptions
from qaf_core.pipeline.finetune.trainable import TrainableNetwork
from qaf_core.text.said import say

MOST_BATCH, LEAST_BATCH = 64, 8
BATCH_PIXELS = 2**19  # of a batch, where images are large
VALIDATION_SHARE, LEAST_HELD, MOST_HELD = 8, 64, 512
HELD_PIXELS = 2**20  # of all held-back images, where they are large: judging must not take the time
GAIN_RATE = 1e-3  # learning rate of the logarithms of scales, and of biases in units of their size
CODE_RATE = 5e-3  # of codes, in steps of the grid
FALL = 0.01  # the learning rate's last share of its first
WARM_UP = 0.05  # share of the steps in which it rises
LARGEST_NORM = 1.0  # of the gradient, per parameter group
MIXED_SHARE = 0.5  # of the batches
MIXED_VIEWS = 1  # of every held-back image, beside it as it is
SAME_ANSWERS = 0.8  # of the original on images changed in a way that is safe


class FinetuneStatus(StrEnum):
    """Why a fine-tuning ended."""

    COMPLETED = "completed"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    DIVERGED = "diverged"


class Images(Protocol):
    """Normalised images, read when they are asked for; a tensor ``(N, C, H, W)`` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """Some of them, ``(n, C, H, W)``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Mean losses on held-back images: ``plain`` as they are, ``mean`` with mixed ones among them."""

    plain: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What fine-tuning came to; the network itself was changed in place.

    Attributes:
        before, after: Mean loss on the held-back images: the divergence from the original, with labels the
            cross-entropy besides; ``after`` is never above ``before``.
        best_epoch: The pass whose state was kept; 0: nothing was gained, nothing changed.
        epochs: Passes done.
        status: Why it ended.
        seconds: Wall-clock time.
        images: How many it was given, held-back ones among them.
        labelled: Whether labels were learnt from.
        flips, crops: Whether images were mirrored and moved.
    """

    before: float
    after: float
    best_epoch: int
    epochs: int
    status: FinetuneStatus
    seconds: float
    images: int
    labelled: bool
    flips: bool
    crops: bool


def finetune_network(
    original: nn.Module,
    compressed: nn.Module,
    images: Images,
    options: FinetuneOptions | None = None,
    *,
    labels: Tensor | None = None,
    progress: Progress | None = None,
) -> Finetuning:
    """Let a compressed network learn from its original; the network is changed in place.

    Args:
        original: Its outputs count as right; not changed.
        compressed: With chains in place of layers, as compressed or as loaded from a packed file.
        images: Normalised ``(N, C, H, W)``.
        options: What is learnt, and for how long.
        labels: The images' classes ``(N,)``; None to learn from the original alone.
        progress: Told of every pass (event ``finetune``: ``epoch``, 0 for the network as it came; ``loss``,
            the mean of what was learnt from in it; ``held_back``, the mean loss on held-back images;
            ``best`` so far; ``fraction`` done; ``elapsed_seconds``). Asked between steps whether to stop: the
            best so far is kept.

    Raises:
        DataError: If there are too few images to hold some back.
    """
    options = options or FinetuneOptions()
    original, compressed = original.eval(), compressed.eval()
    training, held_out = _split(images)
    validation = Validation(images, held_out, labels)
    with TrainableNetwork(compressed, trains_codes=options.trains == CODES) as network:
        run = _Training(
            original=original, network=network, images=images, training=training, labels=labels,
            validation=validation, options=options, progress=progress or Progress(),
        )  # fmt: skip
        result = run.carry_out()
    return result


def _split(images: Images) -> tuple[Tensor, Tensor]:
    """Numbers of the images to learn from, and of those that judge."""
    count = len(images)
    if count < 2:
        raise DataError("too few images to fine-tune on", got=count, expected="at least 2")
    pixels = images[torch.zeros(1, dtype=torch.int64)][0, 0].numel()
    most = max(LEAST_HELD, min(MOST_HELD, HELD_PIXELS // pixels))
    apart = max(min(VALIDATION_SHARE, count), -(-count // most))
    held_out = torch.arange(count) % apart == apart - 1
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def _batch_size(batch: Tensor) -> int:
    """How many images like those of a batch are learnt from at a time."""
    return max(LEAST_BATCH, min(MOST_BATCH, BATCH_PIXELS // batch[0, 0].numel()))


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
        chosen = torch.split(held_out, _batch_size(images[held_out[:1]]))
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


class _Training:
    """One fine-tuning from its first pass to the state that is kept."""

    def __init__(
        self, *, original: nn.Module, network: TrainableNetwork, images: Images, training: Tensor,
        labels: Tensor | None, validation: Validation, options: FinetuneOptions, progress: Progress,
    ) -> None:  # fmt: skip
        self._original, self._network, self._options = original, network, options
        self._images, self._training, self._labels, self._jury = images, training, labels, validation
        self._progress = progress
        self._message = say("Learning from the original on {count:,} images", count=len(images))
        self._generator = torch.Generator().manual_seed(options.seed)
        self._flips = self._allows(options.flips, lambda batch: batch.flip(3))
        self._crops = self._allows(
            options.crops, lambda batch: shifted(batch, torch.Generator().manual_seed(0))
        )
        self._gains = [*network.gains(), *network.norms()]
        self._codes = list(network.codes())
        groups = [{"params": self._gains, "lr": GAIN_RATE}]
        if self._codes:
            groups.append({"params": self._codes, "lr": CODE_RATE})
        self._rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self._optimizer = torch.optim.Adam(groups)
        self._began = time.monotonic()
        self._fraction = 0.0

    def _allows(self, setting: bool | None, change: Callable[[Tensor], Tensor]) -> bool:
        return self._jury.is_safe(self._original, change) if setting is None else setting

    def carry_out(self) -> Finetuning:
        """Learn; then leave the network in the best state."""
        self._progress.stage("finetuning", self._message, 0.0)
        trained = [*self._gains, *self._codes]
        flags = [parameter.requires_grad for parameter in trained]
        for parameter in trained:
            parameter.requires_grad_(True)
        first = self._judge()
        before = best = first.mean
        kept, best_epoch, epoch, status = self._state(), 0, 0, FinetuneStatus.COMPLETED
        self._report(0, None, before, best)
        try:
            for epoch in range(1, self._options.epochs + 1):
                loss = self._learn(epoch - 1)
                verdict = self._judge()
                if not math.isfinite(loss) or not math.isfinite(verdict.mean):
                    status = FinetuneStatus.DIVERGED
                    break
                if verdict.mean < best and verdict.plain <= first.plain:
                    best, best_epoch, kept = verdict.mean, epoch, self._state()
                self._report(epoch, loss, verdict.mean, best)
                if self._late():
                    status = FinetuneStatus.TIME_LIMIT
                    break
        except RunCancelled:
            status, epoch = FinetuneStatus.CANCELLED, epoch - 1
        self._restore(kept)
        if best_epoch:
            self._network.write_back()
        for parameter, flag in zip(trained, flags, strict=True):
            parameter.requires_grad_(flag)
        return Finetuning(
            before=before, after=best, best_epoch=best_epoch, epochs=epoch,
            status=status, seconds=time.monotonic() - self._began, images=len(self._images),
            labelled=self._labels is not None, flips=self._flips, crops=self._crops,
        )  # fmt: skip

    def _learn(self, epoch: int) -> float:
        """One pass; the mean loss."""
        total, steps = 0.0, 0
        order = self._training[torch.randperm(len(self._training), generator=self._generator)]
        batches = torch.split(order, _batch_size(self._images[order[:1]]))
        for index, chosen in enumerate(batches):
            self._progress.check()
            self._set_rates((epoch + index / len(batches)) / self._options.epochs)
            loss = self._loss(chosen)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self._gains, LARGEST_NORM)
            if self._codes:
                nn.utils.clip_grad_norm_(self._codes, LARGEST_NORM)
            self._optimizer.step()
            self._network.stay_in_reach()
            total, steps = total + float(loss.detach()), steps + 1
            if self._late():
                break
        return total / steps

    def _set_rates(self, done: float) -> None:
        """A warm-up, then a cosine down to ``FALL``; where time runs ahead of the passes it counts."""
        limit = self._options.time_limit_seconds
        spent = 0.0 if limit is None else (time.monotonic() - self._began) / limit
        self._fraction = min(max(done, spent, self._fraction), 1.0)
        share = min(self._fraction / WARM_UP, 1.0)
        cosine = FALL + (1 - FALL) * (1 + math.cos(math.pi * self._fraction)) / 2
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share * cosine

    def _late(self) -> bool:
        limit = self._options.time_limit_seconds
        return limit is not None and time.monotonic() - self._began >= limit

    def _loss(self, chosen: Tensor) -> Tensor:
        """What is made small on some images, each mirrored and moved by chance, or all mixed."""
        batch = self._images[chosen]
        if self._flips:
            batch = flipped(batch, self._generator)
        if self._crops:
            batch = shifted(batch, self._generator)
        if len(batch) > 1 and float(torch.rand((), generator=self._generator)) < MIXED_SHARE:
            return training_loss(self._original, self._network.model, mixed(batch, self._generator))
        labels = None if self._labels is None else self._labels[chosen]
        return training_loss(self._original, self._network.model, batch, labels)

    def _judge(self) -> Verdict:
        return self._jury.verdict(self._original, self._network.model)

    def _report(self, epoch: int, loss: float | None, held_back: float, best: float) -> None:
        fraction = max(self._fraction, epoch / self._options.epochs)
        self._progress.send(
            "finetune", epoch=epoch, loss=loss, held_back=held_back, best=best, fraction=fraction,
            elapsed_seconds=time.monotonic() - self._began,
        )  # fmt: skip
        self._progress.stage("finetuning", self._message, fraction)

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in (*self._gains, *self._codes)]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip((*self._gains, *self._codes), state, strict=True):
            parameter.copy_(value)
