"""A few images with what the original network says about them, as plain JSON for screens without torch."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qaf_core.data.images.image_set import one_of_each, shown_name
from qaf_core.data.load import ImageSet, to_batches
from qaf_core.data.models.outputs import plain_scores
from qaf_core.data.models.source import ModelSource

IMAGES = 9
_NAMED = 3
_SIDE_PX = 160
_PNG_SIDE_PX = 64  # up to here a PNG is small enough, and shows every pixel


def preview_predictions(
    model: nn.Module, source: ModelSource, image_set: ImageSet, count: int = IMAGES, turn: int = 0
) -> list[dict[str, Any]]:
    """A few images of as many classes as possible, with labels and the classifier's predictions.

    Args:
        model: The original network.
        source: How it is fed, and its classes.
        image_set: Labelled images.
        count: At most so many.
        turn: Which example of each class, where it has so many.

    Returns:
        Rows with ``image`` (a data address), ``label``, ``predicted``, ``right``, ``confidence`` and ``top``,
        the best classes as [name, probability].
    """
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


def image_address(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, C) as a data address of a small picture."""
    from PIL import Image

    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    kind = "png" if max(picture.size) <= _PNG_SIDE_PX else "jpeg"
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _name(source: ModelSource, index: int) -> str:
    return shown_name(source.classes[index]) if index < len(source.classes) else str(index)
