"""A shipped network with images, to try things on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qaf_core.data.load import load_images, to_batches
from qaf_core.data.models.catalogue import build_network, find_model
from qaf_core.data.weights.load import load_weights, read_weights
from qaf_core.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A trained network, and images (N, C, H, W) as it takes them in.

    Attributes:
        model: In evaluation mode.
        calibration: Images to fit with.
        images, labels: Others to evaluate on, and their class numbers (N,).
        classes: The names of the classes.
    """

    model: nn.Module
    calibration: Tensor
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_sample(name: str = "digits/cnn", limit: int | None = None) -> Sample:
    """A shipped classifier with its images.

    Args:
        name: `digits/cnn`, `inspection/resnet20`, `inspection/resnet18` or `inspection/vgg`.
        limit: At most this many images to fit with, and to evaluate on.

    Raises:
        ModelError: If there is no such classifier.
        DataError: If limit is below 1.
    """
    source = find_model(name)
    if source.weights is None or not source.shipped or source.task != "classification":
        raise ModelError("no shipped classifier", got=name, expected="digits/cnn, inspection/resnet20 …")
    model = build_network(source)
    load_weights(model, read_weights(source.weights), source.weights.name, name)
    batches = [
        list(to_batches(load_images("builtin", source, split=split, limit=limit), source))
        for split in ("calibration", "evaluation")
    ]
    (calibration, _), (images, labels) = (map(torch.cat, zip(*rows, strict=True)) for rows in batches)
    return Sample(
        model=model.float().eval(),
        calibration=calibration,
        images=images,
        labels=labels,
        classes=source.classes,
    )
