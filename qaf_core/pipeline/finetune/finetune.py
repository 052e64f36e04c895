"""Fine-tuning: a compressed network learns from its original, on images without labels.

Scales, biases and the normalisations beside the chains are learnt (``scales``), or the codes too
(``codes``). The loss is the divergence of the outputs, and of the layers' outputs, from the original's
(:mod:`qaf_core.pipeline.divergence`; distillation as in Hinton et al. 2015, arXiv 1503.02531). Images are
shifted, mirrored and mixed (mixup; arXiv 1710.09412): the original tells what is right for any of them. One
image in eight is never learnt from and judges: the best state by that measure is kept, which may be the one
it began with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, RunCancelled
from qaf_core.pipeline.divergence import divergence, training_loss
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.options import CODES, FinetuneOptions
from qaf_core.pipeline.finetune.trainable import TrainableNetwork
from qaf_core.text.said import say

MOST_BATCH = 64
VALIDATION_SHARE = 8
GAIN_RATE = 1e-3  # learning rate of the logarithms of scales, and of biases in units of their size
CODE_RATE = 5e-3  # of codes, in steps of the grid
FALL = 0.01  # the learning rate's last share of its first
WARM_UP = 0.05  # share of the steps in which it rises
LARGEST_SHIFT = 1 / 8  # of the image's side
LARGEST_NORM = 1.0  # of the gradient, per parameter group
MIXED_SHARE = 1.0  # of the batches
MIXED_VIEWS = 2  # of every held-back image, beside it as it is


class FinetuneStatus(StrEnum):
    """Why a fine-tuning ended."""

    COMPLETED = "completed"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Mean divergences on held-back images: ``plain`` as they are, ``mean`` with mixed ones among them."""

    plain: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What fine-tuning came to; the network itself was changed in place.

    Attributes:
        before, after: Mean divergence on the held-back images; ``after`` is never above ``before``.
        best_epoch: The pass whose state was kept; 0: nothing was gained, nothing changed.
        epochs: Passes done.
        status: Why it ended.
        seconds: Wall-clock time.
    """

    before: float
    after: float
    best_epoch: int
    epochs: int
    status: FinetuneStatus
    seconds: float


def finetune_network(
    original: nn.Module,
    compressed: nn.Module,
    images: Tensor,
    options: FinetuneOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Finetuning:
    """Let a compressed network learn from its original; the network is changed in place.

    Args:
        original: Its outputs count as right; not changed.
        compressed: With chains in place of layers, as compressed or as loaded from a packed file.
        images: Normalised ``(N, C, H, W)``, without labels.
        options: What is learnt, and for how long.
        progress: Told of every pass (event ``finetune``: ``epoch``, 0 for the network as it came; ``loss``,
            the mean of what was learnt from in it; ``held_back``, the mean divergence on held-back images;
            ``best`` so far; ``fraction`` done; ``elapsed_seconds``). Asked between steps whether to stop: the
            best so far is kept.

    Raises:
        DataError: If there are too few images to hold some back.
    """
    options = options or FinetuneOptions()
    learnt, validation = _split(images)
    original, compressed = original.eval(), compressed.eval()
    with TrainableNetwork(compressed, trains_codes=options.trains == CODES) as network:
        run = _Training(
            original=original, network=network, images=learnt, validation=validation, options=options,
            progress=progress or Progress(),
        )  # fmt: skip
        result = run.carry_out()
    return result


def _split(images: Tensor) -> tuple[Tensor, Validation]:
    """Images to learn from, and those that judge."""
    if len(images) < 2:
        raise DataError("too few images to fine-tune on", got=len(images), expected="at least 2")
    held = torch.arange(len(images)) % VALIDATION_SHARE == VALIDATION_SHARE - 1
    if not bool(held.any()):
        held[-1] = True
    return images[~held], Validation(list(torch.split(images[held], MOST_BATCH)))


class Validation:
    """Images that are not learnt from, as they are and mixed with each other.

    Few images are near a border between classes; mixed ones are, and make the measure steadier. But what
    is gained on mixed images alone is no gain: a state must also be no worse on the images as they are.
    """

    def __init__(self, plain: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.plain = plain
        self.mixed = [
            mixed(batch, generator) for batch in plain for _ in range(MIXED_VIEWS) if len(batch) > 1
        ]
        self.count = sum(map(len, (*self.plain, *self.mixed)))

    def verdict(self, original: nn.Module, model: nn.Module) -> Verdict:
        """How far the model is from the original, the mean over the images."""
        plain = divergence(original, model, self.plain)
        total = plain + divergence(original, model, self.mixed)
        return Verdict(plain=plain / sum(map(len, self.plain)), mean=total / self.count)


class _Training:
    """One fine-tuning from its first pass to the state that is kept."""

    def __init__(
        self, *, original: nn.Module, network: TrainableNetwork, images: Tensor, validation: Validation,
        options: FinetuneOptions, progress: Progress,
    ) -> None:  # fmt: skip
        self._original, self._network, self._options = original, network, options
        self._images, self._jury = images, validation
        self._progress = progress
        count = len(images) + sum(map(len, validation.plain))
        self._message = say("Learning from the original on {count:,} images", count=count)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._gains = [*network.gains(), *network.norms()]
        self._codes = list(network.codes())
        groups = [{"params": self._gains, "lr": GAIN_RATE}]
        if self._codes:
            groups.append({"params": self._codes, "lr": CODE_RATE})
        self._rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self._optimizer = torch.optim.Adam(groups)
        self._began = time.monotonic()
        self._fraction = 0.0

    def carry_out(self) -> Finetuning:
        """Learn; then leave the network in the best state."""
        self._progress.stage("finetuning", self._message, 0.0)
        trained = [*self._gains, *self._codes]
        asked = [parameter.requires_grad for parameter in trained]
        for parameter in trained:
            parameter.requires_grad_(True)
        first = self._judge()
        before = best = first.mean
        kept, best_epoch, epoch, status = self._state(), 0, 0, FinetuneStatus.COMPLETED
        self._tell(0, None, before, best)
        try:
            for epoch in range(1, self._options.epochs + 1):
                loss = self._learn(epoch - 1)
                found = self._judge()
                if not math.isfinite(loss) or not math.isfinite(found.mean):
                    status = FinetuneStatus.DIVERGED
                    break
                if found.mean < best and found.plain <= first.plain:
                    best, best_epoch, kept = found.mean, epoch, self._state()
                self._tell(epoch, loss, found.mean, best)
                if self._late():
                    status = FinetuneStatus.TIME_LIMIT
                    break
        except RunCancelled:
            status, epoch = FinetuneStatus.CANCELLED, epoch - 1
        self._restore(kept)
        if best_epoch:
            self._network.write_back()
        for parameter, flag in zip(trained, asked, strict=True):
            parameter.requires_grad_(flag)
        return Finetuning(
            before=before, after=best, best_epoch=best_epoch, epochs=epoch,
            status=status, seconds=time.monotonic() - self._began,
        )  # fmt: skip

    def _learn(self, epoch: int) -> float:
        """One pass; the mean loss."""
        total, steps = 0.0, 0
        order = torch.randperm(len(self._images), generator=self._generator)
        batches = torch.split(order, MOST_BATCH)
        for index, chosen in enumerate(batches):
            self._progress.check()
            batch = self._varied(self._images[chosen])
            self._set_rates((epoch + index / len(batches)) / self._options.epochs)
            loss = training_loss(self._original, self._network.model, batch)
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

    def _varied(self, batch: Tensor) -> Tensor:
        """Each image shifted, some mirrored; mixed with others in ``MIXED_SHARE`` of the batches."""
        batch = varied(batch, self._generator)
        if len(batch) > 1 and float(torch.rand((), generator=self._generator)) < MIXED_SHARE:
            batch = mixed(batch, self._generator)
        return batch

    def _judge(self) -> Verdict:
        return self._jury.verdict(self._original, self._network.model)

    def _tell(self, epoch: int, loss: float | None, found: float, best: float) -> None:
        fraction = max(self._fraction, epoch / self._options.epochs)
        self._progress.send(
            "finetune", epoch=epoch, loss=loss, held_back=found, best=best, fraction=fraction,
            elapsed_seconds=time.monotonic() - self._began,
        )  # fmt: skip
        self._progress.stage("finetuning", self._message, fraction)

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in (*self._gains, *self._codes)]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip((*self._gains, *self._codes), state, strict=True):
            parameter.copy_(value)


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each moved by up to an eighth of its side (edges repeated), half of them
    mirrored.
    """
    count, _, height, width = images.shape
    flips = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flips.to(images.device)[:, None, None, None], images.flip(3), images)
    limit = [int(side * LARGEST_SHIFT) for side in (height, width)]
    rows, columns = (
        torch.randint(-most, most + 1, (count, 1), generator=generator) + torch.arange(side)
        for most, side in zip(limit, (height, width), strict=True)
    )
    rows, columns = (
        where.clamp(0, side - 1).to(images.device) for where, side in ((rows, height), (columns, width))
    )
    number = torch.arange(count, device=images.device)
    return images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mixed with another of the batch, by a share drawn evenly for each."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    return torch.lerp(images[other], images, share)
