"""Images and labels as a Python user has them: arrays, or batches of a `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qaf_core.data.images.targets import UNLABELLED
from qaf_core.errors import DataError
from qaf_core.text.said import say

#: An array (N, C, H, W), or batches of it, or of pairs with labels.
Images = Tensor | NDArray[Any] | Iterable[Any]

BATCH_SIZE = 32
MOST_CALIBRATION_IMAGES = 1024


def each_batch(images: Images) -> Iterator[tuple[Tensor, Any]]:
    """Batches (B, C, H, W), float32 on the CPU, each with what came beside it, or None.

    Raises:
        DataError: If they are no images, or not as a network takes them in.
    """
    if isinstance(images, np.ndarray | Tensor):
        images = torch.split(torch.as_tensor(images), BATCH_SIZE)
    if not isinstance(images, Iterable) or isinstance(images, str | bytes | Mapping):
        raise DataError(
            "these are no images", got=type(images).__name__, expected="a tensor (N, C, H, W), or batches"
        )
    for batch in images:
        parts = batch if isinstance(batch, tuple | list) and batch else (batch,)
        yield _checked(parts[0]), parts[1] if len(parts) > 1 else None


def first_images(images: Images, most: int = MOST_CALIBRATION_IMAGES) -> Tensor:
    """The first images, in one tensor.

    Raises:
        DataError: If there are none, they differ in size, or as in `each_batch`.
    """
    kept: list[Tensor] = []
    for batch, _ in each_batch(images):
        if kept and batch.shape[1:] != kept[0].shape[1:]:
            raise DataError(
                "images differ in size", got=tuple(batch.shape[1:]), expected=tuple(kept[0].shape[1:])
            )
        kept.append(batch)
        if sum(map(len, kept)) >= most:
            break
    if not sum(map(len, kept)):
        raise DataError("there are no calibration images", got=0, expected="at least one")
    return torch.cat(kept)[:most]


def labelled_batches(images: Images, labels: Any = None) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Batches with their class numbers (B,) or masks (B, H, W); labels of None are beside the images.

    Raises:
        DataError: If labels are malformed, or of more or fewer images, or as in `each_batch`.
    """
    all_labels = None if labels is None else _as_labels(labels)
    count = 0
    for batch, beside in each_batch(images):
        targets = _as_labels(beside) if all_labels is None else all_labels[count : count + len(batch)]
        count += len(batch)
        if len(targets) != len(batch):
            raise _differ(count, count - len(batch) + len(targets))
        if targets.ndim == 3 and targets.shape[1:] != batch.shape[-2:]:
            raise DataError(
                "masks are not of the images' size", got=targets.shape[1:], expected=tuple(batch.shape[-2:])
            )
        yield batch, targets
    if all_labels is not None and len(all_labels) != count:
        raise _differ(count, len(all_labels))


def _differ(images: int, labels: int) -> DataError:
    return DataError(
        "images and labels differ in number",
        got=say("{images} images, {labels} labels", images=images, labels=labels),
    )


def _as_labels(values: Any) -> NDArray[np.int64]:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    shaped = array.ndim == 1 or (array.ndim == 3 and array.max(initial=0) <= UNLABELLED)
    if array.dtype.kind not in "iu" or not shaped or array.min(initial=0) < 0:
        raise DataError(
            "labels are malformed",
            got=say("none") if values is None else f"{array.dtype} {array.shape}",
            expected="class numbers (N,) from 0, or masks (N, H, W) from 0 to 255",
        )
    return array.astype(np.int64)


def _checked(batch: Any) -> Tensor:
    images = torch.as_tensor(batch) if isinstance(batch, np.ndarray) else batch
    if not isinstance(images, Tensor) or images.ndim < 2 or not images.is_floating_point():
        isa = isinstance(images, Tensor)
        raise DataError(
            "images are not as a network takes them in",
            got=f"{images.dtype} {tuple(images.shape)}" if isa else type(images).__name__,
            expected="floating-point tensors (N, C, H, W), normalised as in training",
        )
    return images.detach().float().cpu()
