"""What labelled images show beyond one class each: masks, boxes, or arrays of a task of the user's own.

Targets are named arrays. Segmentation has ``masks (N, H, W)`` uint8: the class of each pixel, 255 where it is
not labelled. Detection has ``boxes (D, 4)`` float32 (left, top, right and bottom in pixels, image after
image), ``labels (D,)`` and ``counts (N,)``, the boxes of each image. Any other task has ``y (N, …)``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qaf_core.data.inspection import dataset
from qaf_core.errors import DataError
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource

Targets = Mapping[str, npt.NDArray[Any]]

#: Value of a mask's pixels that have no label.
UNLABELLED = 255
_ARRAYS = {"segmentation": ("y",), "detection": ("boxes", "labels", "counts")}
_ACCEPTED = {
    "segmentation": say(
        "an .npz with x (N,H,W,C) uint8 and y (N,H,W) class of each pixel, "
        "or a folder with images and masks (.png, a class a pixel) of the same names"
    ),
    "detection": say(
        "an .npz with x (N,H,W,C) uint8, boxes (D,4), labels (D,) and counts (N,), "
        "or a folder with images and a COCO annotations.json"
    ),
}


def accepted_data(task: str) -> Said:
    """What data of this task may look like, for messages."""
    return _ACCEPTED.get(task, say("an .npz with x (N,H,W,C) uint8 and y (N,…)"))


def drawn_targets(drawn: dataset.RenderedImages, task: str) -> Targets:
    """The targets of built-in inspection images."""
    masks = dataset.class_masks(drawn)
    if task == "segmentation":
        return {"masks": masks}
    if task == "detection":
        marked = masks.reshape(len(masks), -1).max(axis=1) > 0
        return {
            "boxes": dataset.defect_boxes(masks)[marked],
            "labels": drawn.labels[marked],
            "counts": marked.astype(np.int64),
        }
    return {}


def take_targets(targets: Targets, chosen: npt.NDArray[np.intp]) -> Targets:
    """The targets of some images, in the order chosen."""
    if "counts" not in targets:
        return {name: values[chosen] for name, values in targets.items()}
    counts = targets["counts"]
    first = np.cumsum(counts) - counts
    rows = [np.arange(first[image], first[image] + counts[image]) for image in chosen]
    boxes = np.concatenate([*rows, np.zeros(0)]).astype(np.intp)
    return {**{key: targets[key][boxes] for key in ("boxes", "labels")}, "counts": counts[chosen]}


def npz_arrays(task: str) -> tuple[str, ...]:
    """Names of the arrays an `.npz` needs beside x."""
    return _ARRAYS.get(task, ("y",))


def checked_targets(
    name: str, arrays: Targets, count: int, source: ModelSource, white: int | None = None
) -> Targets:
    """The arrays of an `.npz` or a folder as targets, once they fit the images and the model.

    Args:
        name: What is read, for messages.
        arrays: As named by `npz_arrays`.
        count: Number of images.
        source: The model.
        white: The class that 255 in masks means, `UNLABELLED` for none; None where the masks must tell.

    Raises:
        DataError: When shape, type, or a class is wrong, or 255 in masks can mean two things.
    """
    if source.task == "segmentation":
        return {"masks": _checked_masks(name, arrays["y"], count, source, white)}
    if source.task == "detection":
        return _checked_boxes(name, arrays, count, source)
    if arrays["y"].ndim == 0 or len(arrays["y"]) != count:
        raise DataError(
            say("y of {name} has the wrong shape", name=name), got=arrays["y"].shape, expected=f"({count}, …)"
        )
    return {"y": arrays["y"]}


def check_white(name: str, values: Collection[int], source: ModelSource) -> None:
    """Refuse masks in which 255 may be a class as well as no label: those that hold it and only 0 beside.

    Args:
        name: What is read, for messages.
        values: All that occur in the masks.
        source: The model.

    Raises:
        DataError: With both readings and how to choose.
    """
    if UNLABELLED not in values or set(values) - {0, UNLABELLED}:
        return
    one = source.classes[1] if len(source.classes) > 1 else "1"
    raise DataError(
        say("masks of {name} can be read in two ways", name=name),
        got=say("no value but 0 and 255") if 0 in values else say("no value but 255"),
        expected=say("class numbers, 0 to {count}", count=len(source.classes) - 1),
        remedy=say(
            "say what 255 is at the end of the path: #255=1 for class 1 ({one}) or the number of another "
            "class, #255=none for pixels without label",
            one=one,
        ),
    )


def require_mask_classes(name: str, masks: npt.NDArray[np.uint8], source: ModelSource) -> None:
    """Check that masks to evaluate on show more than one class: else a constant answer is right everywhere.

    Raises:
        DataError: When all labelled pixels are of one class, and the model tells several apart.
    """
    present = np.flatnonzero(np.bincount(masks.reshape(-1), minlength=UNLABELLED + 1)[:UNLABELLED])
    if len(source.classes) > 1 and len(masks) > 1 and len(present) == 1:
        raise DataError(
            say("masks of {name} are all of one class, which says nothing about accuracy", name=name),
            got=source.classes[int(present[0])],
            expected="pixels of two classes or more to evaluate on",
            remedy="add images of the other classes, or take more images",
        )


def white_class(white: int, source: ModelSource) -> int:
    """The class that 255 is said to mean, or `UNLABELLED`, once the model has it.

    Raises:
        DataError: If it has no such class, or no masks are read for it.
    """
    if source.task != "segmentation":
        raise DataError(
            "#255 at the end of a path is for masks",
            got=say("task {task}", task=source.task),
            remedy="drop it",
        )
    if white != UNLABELLED and white >= len(source.classes):
        raise DataError(
            say("#255={white} names no class of {source}", white=white, source=source.id),
            expected=say("0 to {count}, or none", count=len(source.classes) - 1),
        )
    return white


def _checked_masks(
    name: str, masks: npt.NDArray[Any], count: int, source: ModelSource, white: int | None
) -> npt.NDArray[np.uint8]:
    shape = (count, *source.input_shape[1:])
    if masks.shape != shape:
        raise DataError(
            say("masks of {name} have the wrong shape", name=name), got=masks.shape, expected=shape
        )
    if masks.dtype.kind not in "iub":
        raise DataError(
            say("masks of {name} have the wrong type", name=name), got=masks.dtype, expected="integers"
        )
    last = len(source.classes) - 1
    wrong = ((masks < 0) | (masks > last)) & (masks != UNLABELLED)
    if wrong.any():
        image = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
        raise DataError(
            say("masks of {name} hold classes out of range", name=name),
            got=say("{masks} in image {image}", masks=int(masks[image][wrong[image]][0]), image=image),
            expected=say(
                "0 to {last} for the classes of {source}, or {unlabelled} for pixels without label",
                last=last,
                source=source.id,
                unlabelled=UNLABELLED,
            ),
        )
    checked = masks.astype(np.uint8)
    if white is None:
        check_white(name, set(np.flatnonzero(np.bincount(checked.reshape(-1))).tolist()), source)
    elif white != UNLABELLED:
        checked[checked == UNLABELLED] = white_class(white, source)
    if (checked == UNLABELLED).all():
        raise DataError(
            say("masks of {name} label no pixel", name=name), expected="at least one labelled pixel"
        )
    return checked


def _checked_boxes(name: str, arrays: Targets, count: int, source: ModelSource) -> Targets:
    boxes, labels, counts = (arrays[key] for key in _ARRAYS["detection"])
    if counts.shape != (count,) or counts.dtype.kind not in "iu" or (len(counts) and counts.min() < 0):
        raise DataError(
            say("counts of {name} are malformed", name=name),
            got=f"{counts.dtype} {counts.shape}",
            expected=say("({count},) whole numbers, the boxes of each image", count=count),
        )
    total = int(counts.sum())
    if boxes.shape != (total, 4) or labels.shape != (total,):
        raise DataError(
            say("boxes of {name} do not go with its counts", name=name),
            got=say("boxes {shape}, labels {shape2}", shape=boxes.shape, shape2=labels.shape),
            expected=say("({total}, 4) and ({total},)", total=total),
        )
    if total == 0:
        raise DataError(say("{name} holds no boxes", name=name), expected="at least one box in all")
    if boxes.dtype.kind not in "iuf" or not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise DataError(
            say("boxes of {name} are malformed", name=name),
            expected="left, top, right and bottom in pixels, right > left and bottom > top",
            remedy="COCO's width and height must be added to left and top",
        )
    last = len(source.classes) - 1
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > last:
        raise DataError(
            say("labels of {name} are out of range", name=name),
            got=say("{dtype}, {min} to {max}", dtype=labels.dtype, min=labels.min(), max=labels.max()),
            expected=say("0 to {last} for the classes of {source}", last=last, source=source.id),
        )
    return {
        "boxes": boxes.astype(np.float32),
        "labels": labels.astype(np.int64),
        "counts": counts.astype(np.int64),
    }
