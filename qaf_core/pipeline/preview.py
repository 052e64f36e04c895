"""A few images with what the original network says about them, as plain JSON for screens without torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from qaf_core.data.images.image_set import one_of_each, shown_name
from qaf_core.data.load import ImageSet, to_batches
from qaf_core.data.models.outputs import plain_scores
from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.marks import (
    GROUND,
    MARKED_TASKS,
    SEGMENTATION,
    UNLABELLED,
    judge,
    mark,
    of_image,
    picture_address,
)
from qaf_core.pipeline.tasks import find_task
from qaf_core.pipeline.tasks.base import Arrays, predict
from qaf_core.pipeline.thumbnails import image_address

IMAGES = 9
CLASSIFICATION = "classification"
_NAMED = 3


def preview_predictions(
    model: nn.Module, source: ModelSource, image_set: ImageSet, count: int = IMAGES, turn: int = 0
) -> list[dict[str, Any]]:
    """A few images of as many classes as possible, with labels and the network's predictions.

    Args:
        model: The original network.
        source: How it is fed, and its classes.
        image_set: Labelled images.
        count: At most so many.
        turn: Which example of each class, where it has so many.

    Returns:
        Of a classifier rows with ``image`` (a data address), ``label``, ``predicted``, ``right``,
        ``confidence`` and ``top``, the best classes as [name, probability]. Of masks and boxes rows with
        ``image``, on which they are drawn, ``label``, ``right``, ``task`` and ``found``: what of it is right,
        missed and invented. None of other tasks.
    """
    if source.task in MARKED_TASKS:
        return _marked_rows(model, source, image_set, count, turn)
    if source.task != CLASSIFICATION:
        return []
    chosen = np.array(one_of_each(image_set.labels.tolist(), count, turn), np.intp)
    if not len(chosen):
        return []
    subset = image_set.take(chosen, image_set.name)
    with torch.inference_mode():
        logits = torch.cat(
            [
                plain_scores(model.eval()(images), len(images), by_pixel=False)
                for images, _ in to_batches(subset, source, len(chosen))
            ]
        )
    shares = logits.double().nan_to_num().softmax(dim=1)
    best = shares.topk(min(_NAMED, shares.shape[1]), dim=1)
    rows = []
    for pixels, label, values, indices in zip(
        image_set.read(chosen), subset.labels, best.values.tolist(), best.indices.tolist(), strict=True
    ):
        top = [[_name(source, index), value] for index, value in zip(indices, values, strict=True)]
        rows.append(
            {
                "image": image_address(pixels),
                "label": _name(source, int(label)),
                "predicted": top[0][0],
                "right": indices[0] == int(label),
                "confidence": values[0],
                "top": top,
            }
        )
    return rows


def _marked_rows(
    model: nn.Module, source: ModelSource, image_set: ImageSet, count: int, turn: int
) -> list[dict[str, Any]]:
    task = find_task(source.task)
    truths = [of_image(task.name, task.collate(image_set), place) for place in range(len(image_set))]
    classes = [_classes_in(task.name, truth) for truth in truths]
    chosen = np.array(one_of_each([min(one, default=-1) for one in classes], count, turn), np.intp)
    if not len(chosen):
        return []
    subset = image_set.take(chosen, image_set.name)
    with torch.inference_mode():
        answers = predict(task, model, to_batches(subset, source, len(chosen)))
    rows = []
    for place, (image, pixels) in enumerate(zip(chosen, image_set.read(chosen), strict=True)):
        answer, truth = of_image(task.name, answers, place), truths[image]
        marks = judge(task.name, answer, truth)
        rows.append(
            {
                "image": picture_address(mark(pixels, task.name, answer, truth)),
                "label": ", ".join(_name(source, index) for index in classes[image]),
                "right": marks.faultless,
                "task": task.name,
                "found": asdict(marks),
            }
        )
    return rows


def _classes_in(task: str, truth: Arrays) -> list[int]:
    """The classes that one image shows, in their order."""
    if task != SEGMENTATION:
        return [int(label) for label in np.unique(truth["labels"])]
    return [int(value) for value in np.unique(truth["masks"]) if value not in (GROUND, UNLABELLED)]


def _name(source: ModelSource, index: int) -> str:
    return shown_name(source.classes[index]) if index < len(source.classes) else str(index)
