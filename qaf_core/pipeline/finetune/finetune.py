"""Fine-tuning: a compressed network learns from its original, and from labels where there are any.

Scales, biases and the normalisations beside the chains are learnt (``scales``), or the codes too
(``codes``). The loss is the divergence of the outputs, and above all of the layers' outputs, from the
original's (:mod:`qaf_core.pipeline.divergence`; distillation as in Hinton et al. 2015, arXiv 1503.02531),
with labels the cross-entropy of the class scores besides. Images are moved and mirrored where the original
takes them for the same still, and half of the batches are mixed (mixup; arXiv 1710.09412): there the original
alone tells what is right. Some images are never learnt from and judge: the best state by that measure is
kept, which may be the one it began with.

Codes are learnt off their grids first. Then layer after layer is set on its grid again
(:mod:`.grid_setting`), while those behind it go on learning and make up for it. Only a network whose codes
are all on their grids can be kept. (Codes rounded in every step, straight-through, hardly move at a small
rate and wander at a large one; rounded each by itself in the end they lose what was learnt.)
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from qaf_core.errors import RunCancelled
from qaf_core.network.graph.capture import capture
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.pipeline.divergence import training_loss
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.augment import flipped, mixed, shifted
from qaf_core.pipeline.finetune.grid_setting import GridSetting, run_order
from qaf_core.pipeline.finetune.options import CODES, SETTING_AT_STOP_SECONDS, FinetuneOptions
from qaf_core.pipeline.finetune.trainable import TrainableNetwork
from qaf_core.pipeline.finetune.validation import Images, Validation, Verdict, batch_size, split
from qaf_core.text.said import say

GAIN_RATE = 1e-3  # learning rate of the logarithms of scales, and of biases in units of their size
CODE_RATE = 2e-2  # of codes, in steps of the grid
FALL = 0.01  # the learning rate's last share of its first
WARM_UP = 0.05  # share of the steps in which it rises
FAR = 1.5  # times the loss it began with: then the rates are too high for this network,
BACK_OFF, BACK_OFF_UNTIL = 0.25, 0.3  # fall to this share, as long as no more of the time has passed
LARGEST_NORM = 1.0  # of the gradient, per parameter group
MIXED_SHARE = 0.5  # of the batches
SET_FROM, SET_TO = 0.45, 0.85  # of the learning, in which codes are set on their grids
SETTING_IMAGES, SETTING_PIXELS = 768, 2**22  # that a chain is calibrated on, and of all where they are large
SETTING_SHARE = 0.15  # of all work: as much for walks to chains, for solves, and for fits of outputs
WALK_WORK = 0.3  # of an image on a walk to a chain, against learning from it
LEAST_SECONDS = 1e-3  # for the solves of a group


class FinetuneStatus(StrEnum):
    """Why a fine-tuning ended."""

    COMPLETED = "completed"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What fine-tuning came to; the network itself was changed in place.

    Attributes:
        before, after: Mean loss on the held-back images: the divergence from the original, with labels the
            cross-entropy besides; ``after`` is never above ``before``.
        best_epoch: The pass whose state was kept; 0: nothing was gained, nothing changed.
        epochs: Passes done, a last one that time or a stop cut short among them.
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
    inventory: Sequence[LayerInfo] = (),
    progress: Progress | None = None,
) -> Finetuning:
    """Let a compressed network learn from its original; the network is changed in place.

    Args:
        original: Its outputs count as right; not changed.
        compressed: With chains in place of layers, as compressed or as loaded from a packed file.
        images: Normalised ``(N, C, H, W)``.
        options: What is learnt, and for how long.
        labels: The images' classes ``(N,)``; None to learn from the original alone.
        inventory: The original's rows: which layers lie behind a choice by value, and how much memory what
            they are calibrated on takes.
        progress: Told of every pass, but of those after which it begins again with lower rates (event
            ``finetune``: ``epoch``, 0 for the network as it came; ``loss``, the mean of what was learnt from
            in it; ``held_back``, the mean loss on held-back images; ``on_grid``, whether all codes were on
            their grids then; ``best`` so far, of these; ``fraction`` done; ``elapsed_seconds``). Asked
            between steps whether to stop: codes off their grids are set on them then, and the best is kept.

    Raises:
        DataError: If there are too few images to hold some back.
        ModelError: If the original cannot be captured.
    """
    options, progress = options or FinetuneOptions(), progress or Progress()
    training, held_out = split(images)
    original = capture(original, tuple(images[held_out[:1]].shape[1:])).eval()
    validation = Validation(images, held_out, labels)
    with TrainableNetwork(compressed.eval(), trains_codes=options.trains == CODES) as network:
        run = _Training(
            original=original, network=network, validation=validation, options=options, progress=progress,
            lessons=_Lessons(images=images, numbers=training, labels=labels), inventory=inventory,
        )  # fmt: skip
        return run.carry_out()


@dataclass(frozen=True, kw_only=True)
class _Lessons:
    """What is learnt from: of the images those with these numbers, and all images' labels or None."""

    images: Images
    numbers: Tensor
    labels: Tensor | None


class _Training:
    """One fine-tuning from its first pass to the state that is kept."""

    def __init__(
        self, *, original: nn.Module, network: TrainableNetwork, lessons: _Lessons, validation: Validation,
        options: FinetuneOptions, progress: Progress, inventory: Sequence[LayerInfo],
    ) -> None:  # fmt: skip
        self._original, self._network, self._options = original, network, options
        self._images, self._training, self._labels = lessons.images, lessons.numbers, lessons.labels
        self._validation, self._progress = validation, progress
        self._layers = {info.name: info for info in inventory}
        self._message = say("Learning from the original on {count:,} images", count=len(lessons.images))
        self._generator = torch.Generator().manual_seed(options.seed)
        self._flips = self._allows(options.flips, lambda batch: batch.flip(3))
        self._crops = self._allows(
            options.crops, lambda batch: shifted(batch, torch.Generator().manual_seed(0))
        )
        self._off_grid = self._find_off_grid()
        self._groups: list[list[str]] | None = None  # of chains to be set, once their time has come
        self._optimizer = torch.optim.Adam(
            [{"params": [], "lr": GAIN_RATE}, {"params": [], "lr": CODE_RATE}], foreach=True
        )
        self._began = time.monotonic()
        self._fraction, self._setting_seconds = 0.0, 0.0
        self._seen = self._judged = 0  # images learnt from, now and when last judged
        self._gains: list[nn.Parameter] = []
        self._codes: list[nn.Parameter] = []
        self._find_parameters()
        self._start, self._rate = _values([*self._gains, *self._codes]), 1.0
        self._first = self._judge()
        self._best, self._best_epoch = self._first.mean, 0
        self._kept: list[Tensor] | None = None

    def _allows(self, setting: bool | None, change: Callable[[Tensor], Tensor]) -> bool:
        return self._validation.is_safe(self._original, change) if setting is None else setting

    def carry_out(self) -> Finetuning:
        """Learn; then leave the network in the best state."""
        self._progress.stage("finetuning", self._message, 0.0)
        epoch, status = 0, FinetuneStatus.COMPLETED
        self._report(0, None, self._first.mean)
        try:
            for epoch in range(1, self._options.epochs + 1):
                loss = self._learn(epoch - 1)
                if math.isfinite(loss) and (self._late() or epoch == self._options.epochs):
                    self._set_chains(self._off_grid)
                verdict = self._judge()
                if self._begins_again(verdict):
                    continue
                if not math.isfinite(loss) or not math.isfinite(verdict.mean):
                    status = FinetuneStatus.DIVERGED
                    break
                self._keep_if_best(epoch, verdict)
                self._report(epoch, loss, verdict.mean)
                if self._late():
                    status = FinetuneStatus.TIME_LIMIT
                    break
        except RunCancelled:
            status = FinetuneStatus.CANCELLED
            self._finish_early(epoch)
            epoch = max(epoch - 1, self._best_epoch)
        if self._kept is not None:
            _restore(self._gains, self._kept)
            self._network.accept()
        return Finetuning(
            before=self._first.mean, after=self._best, best_epoch=self._best_epoch, epochs=epoch,
            status=status, seconds=time.monotonic() - self._began, images=len(self._images),
            labelled=self._labels is not None, flips=self._flips, crops=self._crops,
        )  # fmt: skip

    def _begins_again(self, verdict: Verdict) -> bool:
        """Go back to where it began, with lower rates, where the first passes led far away."""
        near = math.isfinite(verdict.mean) and verdict.mean <= FAR * self._first.mean
        if near or self._fraction > BACK_OFF_UNTIL or self._setting_seconds or self._late():
            return False
        self._rate *= BACK_OFF
        _restore([*self._gains, *self._codes], self._start)
        self._optimizer.state.clear()
        self._progress.stage("finetuning", self._message, self._fraction)
        return True

    def _keep_if_best(self, epoch: int, verdict: Verdict) -> None:
        better = verdict.mean < self._best and verdict.plain <= self._first.plain
        if better and not self._off_grid:
            self._best, self._best_epoch, self._kept = verdict.mean, epoch, _values(self._gains)

    def _finish_early(self, epoch: int) -> None:
        """Set what is off the grid as it is now, in little time, and judge."""
        self._off_grid = self._find_off_grid()
        if not self._seen or (self._seen == self._judged and not self._off_grid):
            return
        self._progress = self._progress.to_the_end()
        self._set_chains(self._off_grid, SETTING_AT_STOP_SECONDS)
        verdict = self._judge()
        if math.isfinite(verdict.mean):
            self._keep_if_best(epoch, verdict)
            self._report(epoch, None, verdict.mean)

    def _find_off_grid(self) -> list[str]:
        """Chains whose codes are off their grids, front to back."""
        names = self._network.off_grid()
        place = {name: index for index, name in enumerate(run_order(self._original))}
        return sorted(names, key=lambda name: place.get(name, len(place)))

    def _find_parameters(self) -> None:
        """Take up what there is to learn now; codes that have been set no longer are."""
        self._gains = [*self._network.gains(), *self._network.norms()]
        self._codes = list(self._network.codes())
        for group, parameters in zip(self._optimizer.param_groups, (self._gains, self._codes), strict=True):
            group["params"] = parameters
            for parameter in parameters:
                parameter.requires_grad_(True)
        known = {id(parameter) for parameter in (*self._gains, *self._codes)}
        for former in [one for one in self._optimizer.state if id(one) not in known]:
            del self._optimizer.state[former]

    def _learn(self, epoch: int) -> float:
        """One pass; the mean loss."""
        total, steps = 0.0, 0
        order = self._training[torch.randperm(len(self._training), generator=self._generator)]
        batches = torch.split(order, batch_size(self._images[order[:1]]))
        for index, chosen in enumerate(batches):
            self._progress.check()
            self._set_rates((epoch + index / len(batches)) / self._options.epochs)
            self._set_due_chains()
            loss = self._loss(chosen)
            total, steps = total + float(loss.detach()), steps + 1
            if not math.isfinite(total):
                break
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            for parameters in (self._gains, self._codes):
                nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            self._optimizer.step()
            self._seen += len(chosen)
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
        for group, rate in zip(self._optimizer.param_groups, (GAIN_RATE, CODE_RATE), strict=True):
            group["lr"] = self._rate * rate * share * cosine

    def _set_due_chains(self) -> None:
        """Set those chains on their grids whose time has come: evenly from ``SET_FROM`` to ``SET_TO``."""
        if not self._off_grid or self._fraction < SET_FROM:
            return
        if self._groups is None:
            self._groups = self._grouped()
        done = (self._fraction - SET_FROM) / (SET_TO - SET_FROM)
        due = min(int(done * len(self._groups)) + 1, len(self._groups))
        if self._setting_seconds_left() <= 0.0:
            due = len(self._groups)
        self._set_chains([name for group in self._groups[:due] for name in group if name in self._off_grid])

    def _grouped(self) -> list[list[str]]:
        """The chains in as many groups as there is time to walk to, front to back.

        Those that read the same tensor stay together: calibrated on the same images they go on reading it on
        the same grid, so that the layer before them can put out whole numbers.
        """
        images = min(self._setting_images(), len(self._training))
        affordable = SETTING_SHARE * self._seen / self._fraction / (WALK_WORK * images)
        units: dict[object, list[str]] = {}
        for name in self._off_grid:
            units.setdefault(self._network.first_quantizer(name) or name, []).append(name)
        together = list(units.values())
        groups = max(1, min(len(together), int(affordable)))
        ends = [round(len(together) * index / groups) for index in range(groups + 1)]
        return [
            list(itertools.chain.from_iterable(together[low:high])) for low, high in itertools.pairwise(ends)
        ]

    def _setting_images(self) -> int:
        pixels = self._images[self._training[:1]][0, 0].numel()
        return max(min(SETTING_IMAGES, SETTING_PIXELS // pixels), 2)

    def _setting_seconds_left(self) -> float:
        """For solves and fits of the chains still to be set."""
        limit = self._options.time_limit_seconds
        return math.inf if limit is None else 2 * SETTING_SHARE * limit - self._setting_seconds

    def _set_chains(self, names: Sequence[str], seconds: float | None = None) -> None:
        """Set chains on their grids; nothing is done where what was learnt is not finite.

        Args:
            names: Some of those off their grids.
            seconds: For their solves, and as much for fits; None for their share of what is left.
        """
        finite = all(bool(values.isfinite().all()) for values in (*self._gains, *self._codes))
        if not names or not finite:
            return
        if seconds is None and math.isfinite(left := self._setting_seconds_left()):
            seconds = max(left / 2 * len(names) / len(self._off_grid), LEAST_SECONDS)
        message = say("Setting {layer} on its grid", layer=names[0])
        self._progress.stage("finetuning", message, self._fraction)
        began = time.monotonic()
        order = self._training[torch.randperm(len(self._training), generator=self._generator)]
        chosen = order[: self._setting_images()]
        size = min(batch_size(self._images[chosen[:1]]), max(len(chosen) // 8, 1))
        batches = [self._changed(batch) for batch in torch.split(chosen, size)]
        setting = GridSetting(original=self._original, layers=self._layers, progress=self._progress)
        setting.set(self._network, names, batches, seconds)
        self._off_grid = self._find_off_grid()
        self._find_parameters()
        self._setting_seconds += time.monotonic() - began
        self._progress.stage("finetuning", self._message, self._fraction)

    def _late(self) -> bool:
        limit = self._options.time_limit_seconds
        return limit is not None and time.monotonic() - self._began >= limit

    def _changed(self, chosen: Tensor) -> Tensor:
        """Some images, each mirrored and moved by chance."""
        batch = self._images[chosen]
        if self._flips:
            batch = flipped(batch, self._generator)
        return shifted(batch, self._generator) if self._crops else batch

    def _loss(self, chosen: Tensor) -> Tensor:
        """What is made small on some images, each changed by chance, or all mixed."""
        batch = self._changed(chosen)
        if len(batch) > 1 and float(torch.rand((), generator=self._generator)) < MIXED_SHARE:
            return training_loss(self._original, self._network.model, mixed(batch, self._generator))
        labels = None if self._labels is None else self._labels[chosen]
        return training_loss(self._original, self._network.model, batch, labels)

    def _judge(self) -> Verdict:
        self._judged = self._seen
        return self._validation.verdict(self._original, self._network.model)

    def _report(self, epoch: int, loss: float | None, held_back: float) -> None:
        fraction = max(self._fraction, epoch / self._options.epochs)
        self._progress.send(
            "finetune", epoch=epoch, loss=loss, held_back=held_back, best=self._best, fraction=fraction,
            on_grid=epoch == 0 or not self._off_grid, elapsed_seconds=time.monotonic() - self._began,
        )  # fmt: skip
        self._progress.stage("finetuning", self._message, fraction)


def _values(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
