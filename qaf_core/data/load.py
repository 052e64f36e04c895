"""Images and labels for a model: built-in, the user's own, or torchvision's, checked before they are used."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qaf_core.data.formats.builtin import load_builtin
from qaf_core.data.formats.files import Reading, load_folder
from qaf_core.data.formats.folder import has_class_folders, require_classes
from qaf_core.data.formats.npz import load_npz
from qaf_core.data.formats.sources import (
    ACCEPTED,
    BUILTIN,
    FOLDER_SETS,
    file_place,
    same_place,
    torchvision_place,
)
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.images.split import SPLIT_SEED, SPLITS, Choice, Split, keep_apart
from qaf_core.data.images.targets import accepted_data, require_mask_classes, white_class
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    import torch

__all__ = [
    "BATCH_SIZE", "ImageSet", "Split", "has_labels", "has_parts", "load_images", "load_pair", "to_batches",
]  # fmt: skip

BATCH_SIZE = 32  # larger ones leave the processor's caches and run up to four times slower


def load_images(
    data: str,
    source: ModelSource,
    *,
    split: Split,
    limit: int | None = None,
    seed: int = 0,
    shared: bool = False,
    cache: Path | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Load images for a model and check that they fit it.

    Args:
        data: `builtin`; an image folder with one sub-folder a class, or a `.zip` of one; an `.npz` with
            x (N, H, W, C) uint8 and y (N,); or `torchvision:NAME:ROOT`. Data with a part to train with and
            one to evaluate on give the first for calibration. A path with masks may end in `#255=none` or
            `#255=1`: what 255 in them means, where they hold nothing but 0 and 255.
        source: The model the images are for.
        split: What they are used for. The built-in sets have separate images for each.
        limit: At most this many images, a seeded random subset; None takes all (of a built-in set, the
            default count).
        seed: Chooses the calibration images; the evaluation images of a run never depend on it.
        shared: The user's data serve calibration and evaluation alike: split them into two disjoint parts.
        cache: Folder for unpacked archives and decoded pictures; without, archives are refused and pictures
            go to the system's temporary folder.
        on_read: Told how many of how many pictures have been decoded; may raise to stop.

    Raises:
        DataError: When the data cannot be found, read, or do not fit the model, or the images to evaluate on
            or their masks are all of one class.
    """
    if limit is not None and limit < 1:
        raise DataError("number of images is too small", got=limit, expected="1 or more")
    if split not in SPLITS:
        raise DataError("unknown split", got=split, expected=", ".join(SPLITS))
    if data == BUILTIN:
        return load_builtin(source, split, limit, seed)
    choice = Choice(split=split, limit=limit, seed=seed if split == "calibration" else 0, shared=shared)
    reading = Reading(source=source, choice=choice, cache=cache, on_read=on_read)
    try:
        images = _load_user_data(data, reading)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown ~user
        raise DataError(
            say("data cannot be read: {data}", data=data), got=_first_line(error), expected=ACCEPTED
        ) from error
    if split == "evaluation" and source.task == "classification":
        require_classes(images.name, images.labels, source)
    if split == "evaluation" and source.task == "segmentation":
        require_mask_classes(images.name, images.targets["masks"], source)
    return images


def load_pair(
    data: str,
    calibration: str | None,
    source: ModelSource,
    *,
    evaluation_limit: int | None = None,
    calibration_limit: int | None = 1024,
    seed: int = 0,
    cache: Path | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Load the evaluation and the calibration images of a run, which never overlap.

    Images with the same pixels as an evaluation image do not calibrate, wherever they come from.

    Args:
        data: Evaluation data, as in `load_images`.
        calibration: Calibration data. When it is None or the same as data, data that bring no separate
            images for it are split in two disjoint parts.
        source: The model the images are for.
        evaluation_limit: At most this many evaluation images.
        calibration_limit: At most this many calibration images.
        seed: Chooses the calibration images.
        cache, on_read: As in `load_images`.

    Returns:
        The evaluation set, then the calibration set; their `split` says how they were told apart.

    Raises:
        DataError: When either cannot be found, read, or does not fit the model.
    """
    same = calibration is None or same_place(data, calibration)
    shared = same and not has_parts(data, cache)
    evaluation = load_images(
        data,
        source,
        split="evaluation",
        limit=evaluation_limit,
        shared=shared,
        cache=cache,
        on_read=on_read,
    )
    chosen = load_images(
        data if calibration is None else calibration,
        source,
        split="calibration",
        limit=calibration_limit,
        seed=seed,
        shared=shared,
        cache=cache,
        on_read=on_read,
    )
    how = say("split by seed {seed}", seed=SPLIT_SEED) if shared else say("given separately")
    return keep_apart(evaluation, chosen, say("separate parts of the data") if same and not shared else how)


def has_parts(data: str, cache: Path | None) -> bool:
    """Whether data brings images of their own for calibration and for evaluation.

    Args:
        data, cache: As in `load_images`.

    Raises:
        DataError: When a torchvision data set is named without its root, or a zip is refused.
    """
    if data == BUILTIN:
        return True
    known = torchvision_place(data)
    if known is not None and known.name not in FOLDER_SETS:
        from qaf_core.data.formats.torchvision import KNOWN_SETS

        return known.name not in KNOWN_SETS or KNOWN_SETS[known.name].has_parts
    try:
        return file_place(data, cache).has_parts
    except (OSError, RuntimeError):
        return False  # loading says what is wrong


def has_labels(data: str, source: ModelSource, cache: Path | None) -> bool:
    """Whether images for a classifier bring their classes: a folder in sub-folders, an `.npz` as y.

    Args:
        data, source, cache: As in `load_images`.

    Raises:
        DataError: When there is nothing, or a zip is refused.
    """
    known = None if data == BUILTIN else torchvision_place(data)
    if source.task != "classification":
        return False
    if data == BUILTIN or (known is not None and known.name not in FOLDER_SETS):
        return True
    try:
        path = file_place(data, cache).training
        if path.is_dir():
            return has_class_folders(path)
        with zipfile.ZipFile(path) as arrays:
            return "y.npy" in arrays.namelist()
    except (OSError, RuntimeError, zipfile.BadZipFile):
        return False  # loading says what is wrong


def to_batches(
    image_set: ImageSet, source: ModelSource, batch_size: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised batches: float32 images (B, C, H, W) and int64 labels (B,).

    The images lie channels-last in memory: convolutions on a CPU run up to twice as fast then.
    """
    import torch

    start = 0
    for chunk in image_set.in_chunks(batch_size):
        labels = image_set.labels[start : start + len(chunk)]
        start += len(chunk)
        yield source.preprocessing.normalise(chunk), torch.from_numpy(labels.copy())


# --- user data


def _load_user_data(data: str, reading: Reading) -> ImageSet:
    source, choice = reading.source, reading.choice
    known = torchvision_place(data)
    if known is not None and known.name not in FOLDER_SETS:
        from qaf_core.data.formats.torchvision import load_torchvision_set

        return load_torchvision_set(known, reading)
    place = file_place(data, reading.cache)
    path = place.part(choice.split)
    if place.white is not None:
        reading = replace(reading, white=white_class(place.white, source))
    if path.is_dir():
        return load_folder(path, place.name, reading)
    if path.suffix.lower() == ".npz":
        images = load_npz(path, source, labelled=reading.labelled, white=reading.white)
        return images.take(*choice.among(len(images), images.name))
    accepted = (
        Said(ACCEPTED)
        if source.task == "classification"
        else say("builtin, {others}", others=accepted_data(source.task))
    )
    raise DataError(
        say("data file {place} has an unknown format", place=place.name),
        got=path.suffix or say("no suffix"),
        expected=accepted,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
