"""Image folders: which files belong to which class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qaf_core.data.images.decode import IMAGE_SUFFIXES, UndecodableError
from qaf_core.data.images.image_set import shown_name
from qaf_core.data.models.class_names import find_classes
from qaf_core.errors import DataError
from qaf_core.text.said import Said, listing, say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource

MOST_FILES = 5_000_000
_MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The picture files of a folder.

    Attributes:
        root: The folder, without links in its path.
        files: The pictures, class by class and sorted within.
        labels: (N,) the class of each; all 0 where the folder has no class sub-folders.
    """

    root: Path
    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]

    def name_of(self, number: int) -> str:
        """A file's path inside the folder."""
        return self.files[number].relative_to(self.root).as_posix()

    def open_path(self, number: int) -> Path:
        """Where a picture really lies: a link inside the folder is followed, no other.

        Raises:
            UndecodableError: When it is a link that leads out of the folder or nowhere.
        """
        file = self.files[number]
        if not file.is_symlink():
            return file
        try:
            target = file.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise UndecodableError("a link that leads nowhere") from error
        if not target.is_relative_to(self.root):
            raise UndecodableError("a link that leads out of the folder")
        return target


def list_folder(path: Path, source: ModelSource, *, labelled: bool = True) -> ImageFolder:
    """The pictures of a folder with one sub-folder a class; they may lie deeper inside.

    Hidden files and folders, and folders that are links, are passed over.

    Args:
        path: The folder.
        source: The model, for its classes.
        labelled: Classes are needed. Without, pictures may lie anywhere in the folder.

    Raises:
        DataError: When there are no pictures, or the sub-folders do not match the classes.
    """
    root = path.resolve()
    folders = sorted(entry for entry in root.iterdir() if _is_class_folder(entry))
    if not labelled:
        files = tuple(sorted(_pictures_below(root)))
        _require_pictures(root, files)
        return ImageFolder(root=root, files=files, labels=_labels_where_they_match(root, files, source))
    if not folders:
        raise DataError(
            say("image folder {root} has no class sub-folders", root=shown_name(root.name)),
            expected="one sub-folder a class, images inside",
            remedy="sort the images into sub-folders named after their class",
        )
    names = [folder.name for folder in folders]
    label_of = dict(zip(names, match_classes(names, source, say("class folders")), strict=True))
    by_folder = [(folder, sorted(_pictures_below(folder))) for folder in folders]
    files = tuple(file for _, inside in by_folder for file in inside)
    _require_pictures(root, files)
    labels = [label_of[folder.name] for folder, inside in by_folder for _ in inside]
    return ImageFolder(root=root, files=files, labels=np.array(labels, np.int64))


def require_classes(name: str, labels: npt.NDArray[np.int64], source: ModelSource) -> None:
    """Check that images to evaluate on are of more than one class.

    Raises:
        DataError: When they are all of one class, and the model tells several apart.
    """
    if len(source.classes) > 1 and len(labels) > 1 and (labels == labels[0]).all():
        raise DataError(
            say(
                "images of {name} are all of one class, which says nothing about accuracy",
                name=shown_name(name),
            ),
            got=shown_name(source.classes[int(labels[0])]),
            expected="two classes or more to evaluate on",
            remedy="add images of the other classes, or take more images",
        )


def has_class_folders(path: Path) -> bool:
    """Whether a folder has sub-folders that can be classes."""
    return any(map(_is_class_folder, path.iterdir()))


def _is_class_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(".")


def _pictures_below(folder: Path) -> Iterator[Path]:
    count = 0
    for place, inner, files in os.walk(folder):  # does not follow links to folders
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                count += 1
                if count > MOST_FILES:
                    raise DataError(
                        say("image folder {folder} holds too many files", folder=shown_name(folder.name)),
                        expected=say("at most {most:,}", most=MOST_FILES),
                    )
                yield Path(place, name)


def _require_pictures(root: Path, files: Sequence[Path]) -> None:
    if not files:
        raise DataError(
            say("image folder {root} holds no images", root=shown_name(root.name)),
            expected=", ".join(IMAGE_SUFFIXES),
        )


def _labels_where_they_match(root: Path, files: Sequence[Path], source: ModelSource) -> npt.NDArray[np.int64]:
    """Classes by the first sub-folder where its name is a class, else 0: nothing is compared with them."""
    first = [file.relative_to(root).parts[0] for file in files]
    try:
        names = sorted(set(first))
        known = dict(zip(names, find_classes(names, source.classes, say("folders")), strict=True))
    except DataError:
        known = {}
    return np.array([known.get(name) or 0 for name in first], np.int64)


def match_classes(names: Sequence[str], source: ModelSource, what: Said) -> list[int]:
    """The model's class for each of the user's, by name; by order where no name is known and all are there.

    Args:
        names: The user's classes, in their order.
        source: The model.
        what: What bears these names, for messages.

    Raises:
        DataError: When some names are not the model's, or could be two of its classes.
    """
    numbers = find_classes(names, source.classes, what)
    matched = [index for index in numbers if index is not None]
    if len(matched) == len(names):
        return matched
    if not matched and len(names) == len(source.classes):
        return list(range(len(names)))
    unknown = [shown_name(name) for name, index in zip(names, numbers, strict=True) if index is None]
    raise DataError(
        say("{what} do not match {source}", what=what, source=source.id),
        got=listing(unknown, _MOST_NAMED),
        expected=_shortened(source.classes),
        remedy="name each after a class of the model, or have as many as the model, in its order",
    )


def _shortened(names: Sequence[str]) -> Said:
    text = ", ".join(names[:8])
    return say("{names} … ({count} in all)", names=text, count=len(names)) if len(names) > 8 else Said(text)
