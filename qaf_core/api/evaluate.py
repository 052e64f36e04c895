"""How good a network is on labelled images, and how far a compressed one answers as its original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.api.compress import Compressed
from qaf_core.api.images import Images, labelled_batches
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.images.targets import UNLABELLED
from qaf_core.data.models.outputs import plain_scores
from qaf_core.errors import DataError, ModelError
from qaf_core.network.graph.inference import as_network, example_images, inference
from qaf_core.pipeline.results import Evaluation
from qaf_core.pipeline.tasks import Arrays, find_task, predict
from qaf_core.text.said import say

_TASKS = {1: "classification", 3: "segmentation"}  # by the dimensions of the labels


def evaluate(
    network: nn.Module | Compressed,
    images: Images,
    labels: Any = None,
    *,
    classes: Sequence[str] = (),
) -> Evaluation:
    """Measure a network on labelled images, with a 95 % interval.

    Args:
        network: Any network, or what `compress` made: that is compared with its original on the same images
            too (`agreement`, and in `extra` the `drop` of the metric and the ends of its paired interval).
        images: As the network takes them in, normalised.
        labels: Class numbers (N,), or masks (N, H, W) with 255 where a pixel has no label; None where
            images are batches of pairs (images, labels).
        classes: Names of the classes, for `per_class`; numbers when there are none.

    Raises:
        DataError: If images and labels do not go together, labels or classes are not those of the outputs, or
            the outputs are not class scores.
        ModelError: If it is no network, or does not run on the images.
    """
    networks = (
        [network.network, network.original] if isinstance(network, Compressed) else [as_network(network)]
    )
    answers: list[list[Arrays]] = [[] for _ in networks]
    outputs = 0
    seen: list[NDArray[np.int64]] = []
    for batch, truth in labelled_batches(images, labels):
        seen.append(truth)
        task = find_task(_TASKS[truth.ndim])
        for part, per_batch in zip(networks, answers, strict=True):
            with inference(part):  # afterwards it is in the mode that it was in
                placed = batch.to(example_images(part, (), 1))
                outputs = outputs or _count_outputs(part, placed[:1], by_pixel=truth.ndim == 3)
                per_batch.append(predict(task, part, [(placed, None)]))
        _check_labels(truth, outputs, classes)
    if not seen:
        raise DataError("there are no images to evaluate on", got=0, expected="at least one")
    predictions, *original = (_joined(per_batch) for per_batch in answers)
    targets = task.collate(_image_set(np.concatenate(seen)))
    measured = task.metric(predictions, targets, classes or tuple(map(str, range(outputs))))
    for before in original:
        drop, (low, high) = task.compare(before, predictions, targets)
        extra = {**measured.extra, "drop": drop, "drop_low": low, "drop_high": high}
        measured = replace(measured, agreement=task.agreement(before, predictions), extra=extra)
    return measured


def _count_outputs(network: nn.Module, image: Tensor, *, by_pixel: bool) -> int:
    try:
        answer = network(image)
    except Exception as error:  # the network's own code
        raise ModelError(
            "the network does not run on these images",
            got=f"{type(error).__name__}: {error}",
            expected=say("images it takes in; these are {shape} each", shape=tuple(image.shape[1:])),
        ) from error
    return plain_scores(answer, 1, by_pixel=by_pixel).shape[1]


def _check_labels(labels: NDArray[np.int64], outputs: int, classes: Sequence[str]) -> None:
    labelled = labels[labels != UNLABELLED] if labels.ndim == 3 else labels
    if labelled.max(initial=0) >= outputs:
        raise DataError(
            "a label is beyond the network's outputs",
            got=int(labelled.max()),
            expected=say("0 to {last}", last=outputs - 1),
        )
    if classes and len(classes) != outputs:
        raise DataError(
            "classes and outputs differ in number",
            got=say("{count} names", count=len(classes)),
            expected=outputs,
        )


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _image_set(labels: NDArray[np.int64]) -> ImageSet:
    """Labels or masks as tasks look for them."""
    masks = labels.astype(np.uint8) if labels.ndim == 3 else None
    return ImageSet(
        name="the images",
        images=np.zeros((len(labels), 1, 1, 1), np.uint8),
        labels=labels,
        classes=(),
        targets={} if masks is None else {"masks": masks},
    )
