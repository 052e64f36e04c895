"""A user's own picture files; only the chosen ones are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qaf_core.data.formats.annotated import AnnotatedFolder, open_annotated
from qaf_core.data.formats.folder import list_folder, require_classes
from qaf_core.data.images.decode import read_picture
from qaf_core.data.images.decode_pool import Decoder, ReadPictures, read_pictures
from qaf_core.data.images.image_set import ImageSet, SkippedImage
from qaf_core.data.images.split import Choice
from qaf_core.data.images.targets import UNLABELLED, checked_targets
from qaf_core.data.models.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is asked for, and where decoded pictures go.

    Attributes:
        source: The model the images are for.
        choice: Which of them.
        cache: Folder for decoded pictures and unpacked archives, or None.
        on_read: Told how many of how many pictures are decoded.
        white: The class that 255 in masks means, `UNLABELLED` for none; None where the masks must tell.
    """

    source: ModelSource
    choice: Choice
    cache: Path | None
    on_read: Callable[[int, int], None] | None
    white: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether labels or targets are needed: images that only calibrate may come without."""
        return self.choice.split != "calibration" or self.choice.shared

    def read(
        self, name: str, count: int, total: int, place: Callable[[int], Path], name_of: Callable[[int], str]
    ) -> ReadPictures:
        """Decode picture files.

        Args:
            name: What they are.
            count: How many.
            total: How many there are, of which these were chosen.
            place: Where each lies.
            name_of: What each is called.
        """
        steps = self.source.preprocessing
        return self.decode(name, count, total, lambda number: read_picture(place(number), steps), name_of)

    def decode(
        self, name: str, count: int, total: int, decode: Decoder, name_of: Callable[[int], str]
    ) -> ReadPictures:
        """Read pictures that something else decodes; otherwise as `read`."""
        return read_pictures(
            decode,
            range(count),
            self.source.preprocessing.shape,
            name=name,
            name_of=name_of,
            total=total,
            folder=None if self.cache is None else self.cache / "decoded",
            on_read=self.on_read,
        )


def load_folder(path: Path, name: str, reading: Reading) -> ImageSet:
    """The pictures of a folder, with the labels, masks or boxes of the model's task.

    Only the chosen pictures are opened: a folder may hold far more than fits in memory.

    Args:
        path: The folder.
        name: What to call it.
        reading: What is asked for.

    Raises:
        DataError: When it is not laid out as it must be, or 1 % of the pictures or more cannot be read.
    """
    source, choice = reading.source, reading.choice
    if source.task != "classification":
        if reading.labelled:
            return load_annotated(open_annotated(path, source, reading.white), name, reading)
        # Masks lie beside the images they belong to, and are no images to fit with.
        path = path / "images" if (path / "images").is_dir() else path
    listed = list_folder(path, source, labelled=reading.labelled)
    if choice.split == "evaluation":
        require_classes(name, listed.labels, source)
    chosen, name = choice.among(len(listed.files), name)
    pictures = reading.read(
        name,
        len(chosen),
        len(listed.files),
        lambda number: listed.open_path(int(chosen[number])),
        lambda number: listed.name_of(int(chosen[number])),
    )
    return ImageSet(
        name=with_skipped(name, pictures.skipped),
        images=pictures.pictures,
        labels=listed.labels[chosen][pictures.kept],
        classes=source.classes,
        skipped=pictures.skipped,
    )


def load_annotated(folder: AnnotatedFolder, name: str, reading: Reading) -> ImageSet:
    """Pictures with masks or boxes.

    Args:
        folder: Where they lie.
        name: What to call them.
        reading: What is asked for.

    Raises:
        DataError: When they do not fit the model, or 1 % of the pictures or more cannot be read.
    """
    source = reading.source
    chosen, name = reading.choice.among(len(folder.files), name)
    files = [folder.files[index] for index in chosen]
    pictures = reading.read(
        name, len(files), len(folder.files), files.__getitem__, lambda number: files[number].name
    )
    arrays = folder.arrays([files[index] for index in pictures.kept], source)
    count = len(pictures.kept)
    return ImageSet(
        name=with_skipped(name, pictures.skipped),
        images=pictures.pictures,
        labels=np.zeros(count, np.int64),
        classes=source.classes,
        targets=checked_targets(name, arrays, count, source, UNLABELLED),  # the folder knows what 255 is
        skipped=pictures.skipped,
    )


def with_skipped(name: str, skipped: Sequence[SkippedImage]) -> str:
    """A set's name that tells how many images are left out."""
    return f"{name}, {len(skipped):,} unreadable left out" if skipped else name
