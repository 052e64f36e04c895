"""What every task has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.pipeline.intervals import Z95
from qaf_core.pipeline.results import Evaluation
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from qaf_core.data.load import ImageSet

#: Predictions or targets of some images, by name; how the images share the rows is the task's own affair.
Arrays = Mapping[str, NDArray[Any]]


class Task(Protocol):
    """What a network is for: how its outputs are read, and how good they are.

    Attributes:
        name: What ``ModelSource.task`` says.
    """

    @property
    def name(self) -> str: ...

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        """The model's predictions for one normalised batch ``(B, C, H, W)``.

        The arrays of several batches are joined along their first axis.

        Raises:
            DataError: If the outputs are not what the task reads, or not finite.
        """
        ...

    def collate(self, images: ImageSet) -> Arrays:
        """What the predictions for these images are compared with.

        Raises:
            DataError: If the images come without it.
        """
        ...

    def metric(self, predictions: Arrays, targets: Arrays, classes: Sequence[str]) -> Evaluation:
        """How good the predictions are, with a 95 % interval; ``agreement`` stays None."""
        ...

    def compare(
        self, original: Arrays, compressed: Arrays, targets: Arrays
    ) -> tuple[float, tuple[float, float]]:
        """What of the metric is lost, original minus compressed, and its 95 % interval on the same images."""
        ...

    def agreement(self, original: Arrays, compressed: Arrays) -> float:
        """How far the two networks predict the same, 0 to 1, whatever is right."""
        ...


@torch.inference_mode()
def predict(
    task: Task,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    on_batch: Callable[[int], None] | None = None,
) -> Arrays:
    """Predictions of all batches.

    Args:
        task: Reads the model's outputs.
        model: Put in evaluation mode.
        batches: Pairs of normalised images and anything; the second is not read.
        on_batch: Called with the number of images done so far.

    Raises:
        DataError: If there are no images, or the outputs are not what the task reads.
    """
    model.eval()
    parts: list[Arrays] = []
    done = 0
    for images, _ in batches:
        try:
            parts.append(task.forward(model, images))
        except NotFiniteError as error:
            raise DataError(
                say("the network puts out {what} that are not finite", what=error.what),
                got=say(
                    "NaN or infinity among images {first} to {last}", first=done, last=done + len(images) - 1
                ),
                remedy="look at its weights and at the images",
            ) from error
        done += len(images)
        if on_batch is not None:
            on_batch(done)
    if not parts:
        raise DataError("no images to evaluate on", got=0, expected="at least one image")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


class NotFiniteError(ValueError):
    """Outputs of one batch hold NaN or infinity; ``predict`` says among which images."""

    def __init__(self, what: Said) -> None:
        super().__init__(str(what))
        self.what = what


def check_finite(values: Tensor, what: Said) -> None:
    """Raise ``NotFiniteError`` where values are NaN or infinite.

    Args:
        values: Outputs of a network.
        what: Their name in the plural, for the message.
    """
    if not bool(torch.isfinite(values).all()):
        raise NotFiniteError(what)


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has none."""
    return classes[index] if index < len(classes) else str(index)


def needed(images: ImageSet, key: str, what: Said) -> NDArray[Any]:
    """A target of an image set.

    Raises:
        DataError: If the set has none of this name.
    """
    if key not in images.targets:
        raise DataError(
            say("{images} comes without {what}", images=images.name, what=what),
            remedy=say("give images with {what}", what=what),
        )
    return images.targets[key]


class ScoredTask(ABC):
    """A task whose metric is the mean of one score an image; three methods are left to write.

    Attributes:
        name: What ``ModelSource.task`` says.
        metric_name: Short name of the score.
    """

    name: str
    metric_name: str

    @abstractmethod
    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        """As :meth:`Task.forward`, one row an image."""

    @abstractmethod
    def collate(self, images: ImageSet) -> Arrays:
        """As :meth:`Task.collate`."""

    @abstractmethod
    def scores(self, predictions: Arrays, targets: Arrays) -> NDArray[np.float64]:
        """One score an image ``(N,)``, higher is better."""

    def metric(self, predictions: Arrays, targets: Arrays, classes: Sequence[str]) -> Evaluation:
        """The mean score, with the interval of a mean."""
        scores = self.scores(predictions, targets)
        value, ci95 = _mean_and_interval(scores)
        return Evaluation(metric=self.metric_name, value=value, n=len(scores), ci95=ci95)

    def compare(
        self, original: Arrays, compressed: Arrays, targets: Arrays
    ) -> tuple[float, tuple[float, float]]:
        """The mean difference of the scores, with the interval of a mean of pairs."""
        return _mean_and_interval(self.scores(original, targets) - self.scores(compressed, targets))

    def agreement(self, original: Arrays, compressed: Arrays) -> float:
        """Share of images with exactly the same prediction."""
        same = [
            (original[key] == compressed[key]).reshape(len(original[key]), -1).all(axis=1) for key in original
        ]
        return float(np.logical_and.reduce(same).mean())


def _mean_and_interval(values: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    mean, n = float(values.mean()), len(values)
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, (mean - half, mean + half)
