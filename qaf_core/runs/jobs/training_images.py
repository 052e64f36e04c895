"""The images that a fine-tuning learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qaf_core.data.formats.sources import BUILTIN
from qaf_core.data.images.split import without_copies
from qaf_core.data.load import ImageSet, has_labels, load_images
from qaf_core.errors import DataError
from qaf_core.runs.jobs.images import load_evaluation_images
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from torch import Tensor

    from qaf_core.data.models.source import ModelSource
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.jobs.inputs import Subject
    from qaf_core.runs.store.request import RunRequest

MOST_IMAGES, MOST_BYTES = 200_000, 4 * 2**30  # decoded


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Images prepared for a model as they are asked for.

    Attributes:
        pictures: The images.
        source: The model.
        labelled: Whether their labels are to be learnt from.
        notes: What is to be said of them, one sentence each.
    """

    pictures: ImageSet
    source: ModelSource
    labelled: bool
    notes: tuple[Said, ...] = ()

    @property
    def labels(self) -> Tensor | None:
        """The classes ``(N,)``, or None."""
        return torch.from_numpy(self.pictures.labels.copy()) if self.labelled else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        return self.source.preprocessing.normalise(self.pictures.read(indices.numpy()))


def load_training_images(
    request: RunRequest, subject: Subject, workspace: Path, progress: Progress
) -> TrainingImages:
    """What ``request.finetune`` says is learnt from: ``data``, or built-in images, or those that calibrated.

    Args:
        request: Its ``finetune`` may hold ``data`` and ``labels`` (None: learn from labels where there are
            any).
        subject: What the run works on.
        workspace: What is unpacked or decoded is kept there.
        progress: Told of the reading.

    Raises:
        DataError: If there are none, they do not fit the model, or are those to evaluate on.
    """
    finetune = request.finetune or {}
    data, labels = finetune.get("data"), finetune.get("labels")
    if data is None and (request.data != BUILTIN or request.calibration is not None):
        if labels:
            raise DataError(
                "the images that calibrate are learnt from without labels",
                remedy="name labelled images with --train-data",
            )
        return TrainingImages(pictures=subject.calibration_set, source=subject.source, labelled=False)
    data = BUILTIN if data is None else str(data)

    def report_read(done: int, total: int) -> None:
        progress.step("loading", say("Reading {total:,} images to learn from", total=total), done / total)

    source, cache = subject.source, workspace / "cache"
    labelled = has_labels(data, source, cache) if labels is None else bool(labels)
    if labelled and source.task != "classification":
        raise DataError(
            say("{model} learns without labels", model=source.id), got=source.task, expected="a classifier"
        )
    most = min(MOST_IMAGES, MOST_BYTES // math.prod(source.input_shape))
    pictures = load_images(
        data,
        source,
        split="train" if labelled or data == BUILTIN else "calibration",
        limit=None if data == BUILTIN else most,
        seed=1,
        cache=cache,
        on_read=report_read,
    )
    if data == BUILTIN:
        return TrainingImages(pictures=pictures, source=source, labelled=labelled)
    images = subject.images
    if images is None:
        images = load_evaluation_images(request, source, workspace)
    pictures, copies = without_copies(
        pictures,
        images,
        fault=say("every training image is also an evaluation image"),
        remedy=say("name other images with --train-data"),
    )
    note = say(
        "{copies:,} of the images to learn from are evaluation images and were left out.", copies=copies
    )
    return TrainingImages(
        pictures=pictures, source=source, labelled=labelled, notes=(note,) if copies else ()
    )
