"""Where images come from, as the user names it: `builtin`, a path, or `torchvision:NAME:ROOT`.

A path with masks may end in `#255=none` or `#255=1`: what the value 255 in them means, where that is open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qaf_core.data.formats.zip import unpack_cached
from qaf_core.data.images.image_set import shown_name
from qaf_core.data.images.split import Split
from qaf_core.data.images.targets import UNLABELLED
from qaf_core.errors import DataError
from qaf_core.text.said import say

BUILTIN = "builtin"
_PREFIX = "torchvision"
#: torchvision's data sets that are plain folders; they are read as such.
FOLDER_SETS = ("ImageFolder", "ImageNet")
#: Names of sub-folders that are parts of a data set, not classes.
_TRAINING_PARTS = ("train", "training")
_EVALUATION_PARTS = ("val", "valid", "validation", "test", "testing")
_WHITE = re.compile(r"#255=(none|\d{1,3})")
#: What data may look like, for messages.
ACCEPTED = (
    "builtin, an image folder (one sub-folder a class) or a .zip of one, "
    "an .npz with x (N,H,W,C) uint8 and y (N,), or torchvision:NAME:ROOT"
)


@dataclass(frozen=True, kw_only=True)
class TorchvisionPlace:
    """A data set that torchvision knows, already on disk.

    Attributes:
        name: Its class in `torchvision.datasets`.
        root: The folder it lies in.
    """

    name: str
    root: Path


@dataclass(frozen=True, kw_only=True)
class FilePlace:
    """A file or folder of images.

    Attributes:
        name: What it is called, for people.
        evaluation: Where the images to evaluate on lie.
        training: Where those to calibrate with lie; the same where there is one part only.
        white: The class that 255 in masks means, `UNLABELLED` for none; None where the user does not say.
    """

    name: str
    evaluation: Path
    training: Path
    white: int | None = None

    def part(self, split: Split) -> Path:
        """Where the images for a purpose lie."""
        return self.evaluation if split == "evaluation" else self.training

    @property
    def has_parts(self) -> bool:
        """Whether it holds a part to train with and another to evaluate on."""
        return self.evaluation != self.training


def file_place(data: str, cache: Path | None) -> FilePlace:
    """The file or folder that data names; a zip is unpacked.

    A folder with one sub-folder to train with and one to evaluate on (`train` and `val` or `test`) has two
    parts.

    Args:
        data: A path, or `torchvision:ImageFolder:ROOT`.
        cache: Folder for unpacked archives, or None where there is none.

    Raises:
        DataError: When there is nothing, or the zip is refused.
        OSError: When it cannot be looked at.
    """
    place = torchvision_place(data)
    path = data_path(data) if place is None else place.root
    name = shown_name(path.name)
    if not path.exists():
        raise DataError(say("data not found: {path}", path=path), expected=ACCEPTED, remedy="check the path")
    if path.is_file() and path.suffix.lower() == ".zip":
        if cache is None:
            raise DataError(
                say("archive {name} has no workspace to be unpacked in", name=name), remedy="unpack it"
            )
        path = unpack_cached(path, cache / "archives")
    training, evaluation = _parts(path) if path.is_dir() else (path, path)
    return FilePlace(name=name, evaluation=evaluation, training=training, white=_split_white(data)[1])


def data_path(data: str) -> Path:
    """The path that data names, without what is said of its masks.

    Raises:
        RuntimeError: If it is in the home of an unknown user.
    """
    return Path(_split_white(data)[0]).expanduser()


def _split_white(data: str) -> tuple[str, int | None]:
    """The path, and what 255 in its masks means, if that is said."""
    match = _WHITE.search(data)
    if match is None or match.end() != len(data):
        return data, None
    value = match.group(1)
    return data[: match.start()], UNLABELLED if value == "none" else int(value)


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders to train with and to evaluate on; twice the folder itself when it is not divided so."""
    folders = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    inside = {entry.name.casefold(): entry for entry in folders}
    if len(inside) < len(folders):
        return folder, folder  # `Train` beside `train`: no parts of one set
    training = [inside[name] for name in _TRAINING_PARTS if name in inside]
    evaluation = [inside[name] for name in _EVALUATION_PARTS if name in inside]
    if not training or not evaluation or set(inside) - {*_TRAINING_PARTS, *_EVALUATION_PARTS}:
        return folder, folder
    return training[0], evaluation[0]


def torchvision_place(data: str) -> TorchvisionPlace | None:
    """The torchvision data set that data names, or None when it names something else.

    Raises:
        DataError: When the name or the root is missing.
    """
    prefix, _, rest = data.partition(":")
    if prefix != _PREFIX:
        return None
    name, _, root = rest.partition(":")
    if not name or not root:
        raise DataError(
            "a torchvision data set needs its name and its folder",
            got=data,
            expected="torchvision:NAME:ROOT, as torchvision:CIFAR10:/data",
        )
    return TorchvisionPlace(name=name, root=Path(root).expanduser())


def absolute_data(data: str) -> str:
    """The same place by a name that holds in every working directory.

    Raises:
        DataError: As `torchvision_place`.
    """
    place = torchvision_place(data)
    if place is not None:
        return f"{_PREFIX}:{place.name}:{place.root.absolute()}"
    suffix = data[len(_split_white(data)[0]) :]
    return data if data == BUILTIN else str(_expanded(data).absolute()) + suffix


def missing_path(data: str) -> str | None:
    """The path that data names, if there is nothing.

    Raises:
        DataError: As `torchvision_place`.
    """
    if data == BUILTIN:
        return None
    place = torchvision_place(data)
    path = _expanded(data) if place is None else place.root
    try:
        return None if path.exists() else str(path)
    except OSError:  # no permission, a name too long
        return str(path)


def same_place(first: str, second: str) -> bool:
    """Whether both name the same images."""
    places = torchvision_place(first), torchvision_place(second)
    if all(place is None for place in places):
        return _expanded(first).resolve() == _expanded(second).resolve()
    return absolute_data(first) == absolute_data(second)


def lies_in(data: str, folder: Path) -> bool:
    """Whether data, or weights of which a part is named, are this file or folder, or lie below it."""
    try:
        place = torchvision_place(data)
        full = _expanded(data) if place is None else place.root
        paths = [full, _expanded(data.rpartition("#")[0])] if "#" in data else [full]
        return data != BUILTIN and any(path.resolve().is_relative_to(folder.resolve()) for path in paths)
    except (DataError, OSError, RuntimeError):
        return False


def _expanded(data: str) -> Path:
    try:
        return data_path(data)
    except RuntimeError:  # an unknown ~user
        return Path(_split_white(data)[0])
