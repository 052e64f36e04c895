"""Images in arrays: `.npz` files, and the checks that every array of images passes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qaf_core.data.formats.folder import match_classes
from qaf_core.data.images.image_set import ImageSet, shown_name
from qaf_core.data.images.targets import accepted_data, checked_targets, npz_arrays
from qaf_core.data.models.class_names import find_classes
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.text.said import say

LARGEST_BYTES = 8 * 2**30
LARGEST_RATIO, RATIO_FROM_BYTES = 200, 256 * 2**20  # images hardly ever pack so well


def load_npz(path: Path, source: ModelSource, *, labelled: bool = True, white: int | None = None) -> ImageSet:
    """The images and labels, masks or boxes of an `.npz` file.

    Args:
        path: The file; its array `classes` may name the classes in its own order.
        source: The model the images are for.
        labelled: Labels or targets are needed; otherwise x alone will do.
        white: The class that 255 in masks means, `UNLABELLED` for none; None where the masks must tell.

    Raises:
        DataError: When the file cannot be read, lacks an array, or does not fit the model.
    """
    name = shown_name(path.name)
    try:
        _check_unpacked_size(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = npz_arrays(source.task)
            missing = [key for key in ("x", *keys) if key not in archive.files]
            bare = bool(missing) and "x" not in missing and not labelled
            if missing and not bare:
                raise DataError(
                    say("{name} lacks array {missing}", name=name, missing=" and ".join(missing)),
                    got=", ".join(archive.files[:6]) or say("no arrays"),
                    expected=accepted_data(source.task),
                )
            images, arrays = archive["x"], {} if bare else {key: archive[key] for key in keys}
            names = archive["classes"] if "classes" in archive.files else None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            say("{name} cannot be read as .npz", name=name),
            got=_first_line(error),
            remedy="save it with numpy.savez",
        ) from error
    if bare:
        _check_images(name, images, source)
        labels = np.zeros(len(images), np.int64)
        return ImageSet(name=name, images=images, labels=labels, classes=source.classes)
    if source.task != "classification":
        _check_images(name, images, source)
        targets = checked_targets(name, arrays, len(images), source, white)
        labels = np.zeros(len(images), np.int64)
        return ImageSet(name=name, images=images, labels=labels, classes=source.classes, targets=targets)
    if names is None:
        return check_arrays(name, images, arrays["y"], source.classes, source)
    classes = tuple(str(label) for label in names.reshape(-1))
    if not any(
        number is not None
        for number in find_classes(classes, source.classes, say("classes of {name}", name=name))
    ):
        return check_arrays(name, images, arrays["y"], classes, source)
    numbers = np.array(match_classes(classes, source, say("classes of {name}", name=name)))
    _check_labels(name, arrays["y"], len(images), classes)
    return check_arrays(name, images, numbers[arrays["y"]], source.classes, source)


def _check_unpacked_size(path: Path) -> None:
    """Refuse what unpacks to more than fits in memory, before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    allowed = min(LARGEST_BYTES, max(RATIO_FROM_BYTES, path.stat().st_size * LARGEST_RATIO))
    if size > allowed:
        raise DataError(
            say("{name} unpacks to too much", name=shown_name(path.name)),
            got=say("{packed:,} bytes that unpack to {size:,}", packed=path.stat().st_size, size=size),
            expected=say("at most {most:,}", most=allowed),
            remedy="give the images as a folder: it is read piece by piece",
        )


def check_arrays(
    name: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: tuple[str, ...],
    source: ModelSource,
) -> ImageSet:
    """An ImageSet, once everything about it fits the model.

    Args:
        name: What is read, for messages.
        images: (N, H, W, C) uint8.
        labels: (N,) integers.
        classes: Their names.
        source: The model.

    Raises:
        DataError: When a shape, a type, a label or the number of classes is wrong.
    """
    _check_images(name, images, source)
    _check_labels(name, labels, len(images), source.classes)
    if len(classes) != len(source.classes):
        raise DataError(
            say("{name} has another number of classes than {source}", name=name, source=source.id),
            got=len(classes),
            expected=len(source.classes),
        )
    return ImageSet(name=name, images=images, labels=labels.astype(np.int64), classes=classes)


def _check_images(name: str, images: npt.NDArray[Any], source: ModelSource) -> None:
    channels, height, width = source.input_shape
    if images.ndim != 4:
        raise DataError(
            say("images of {name} have the wrong shape", name=name),
            got=images.shape,
            expected=f"(N, {height}, {width}, {channels})",
        )
    if len(images) == 0:
        raise DataError(say("{name} is empty", name=name), got=say("0 images"), expected="1 or more")
    if images.shape[1:] != (height, width, channels):
        turned = images.shape[1:] == (channels, height, width)
        raise DataError(
            say("images of {name} do not fit {source}", name=name, source=source.id),
            got=images.shape,
            expected=f"(N, {height}, {width}, {channels})",
            remedy="put the channels last" if turned else None,
        )
    if images.dtype != np.uint8:
        raise DataError(
            say("images of {name} have the wrong type", name=name),
            got=images.dtype,
            expected="uint8 pixels, 0 to 255, not normalised",
        )


def _check_labels(name: str, labels: npt.NDArray[Any], count: int, classes: tuple[str, ...]) -> None:
    if labels.shape != (count,):
        raise DataError(
            say("labels of {name} have the wrong shape", name=name), got=labels.shape, expected=f"({count},)"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(
            say("labels of {name} have the wrong type", name=name), got=labels.dtype, expected="integers"
        )
    last = len(classes) - 1
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            say("{count} labels of {name} are out of range", count=len(wrong), name=name),
            got=say("{labels} at image {first}", labels=int(labels[first]), first=first),
            expected=say("0 to {last} for the {last2} classes", last=last, last2=last + 1),
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
