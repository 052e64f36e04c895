"""Where images come from, as the user names it: `builtin`, a path, or `torchvision:NAME:ROOT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qaf_core.data.archives import unpack_cached
from qaf_core.data.images import shown_name
from qaf_core.data.splitting import Split
from qaf_core.errors import DataError

BUILTIN = "builtin"
_PREFIX = "torchvision"
#: torchvision's data sets that are plain folders; they are read as such.
FOLDER_SETS = ("ImageFolder", "ImageNet")
#: Names of sub-folders that are parts of a data set, not classes.
_TRAINING_PARTS = ("train", "training")
_EVALUATION_PARTS = ("val", "valid", "validation", "test", "testing")
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
    """

    name: str
    evaluation: Path
    training: Path

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
    path = Path(data).expanduser() if place is None else place.root
    name = shown_name(path.name)
    if not path.exists():
        raise DataError(f"data not found: {path}", expected=ACCEPTED, remedy="check the path")
    if path.is_file() and path.suffix.lower() == ".zip":
        if cache is None:
            raise DataError(f"archive {name} has no workspace to be unpacked in", remedy="unpack it")
        path = unpack_cached(path, cache / "archives")
    training, evaluation = _parts(path) if path.is_dir() else (path, path)
    return FilePlace(name=name, evaluation=evaluation, training=training)


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders to train with and to evaluate on; twice the folder itself when it is not divided so."""
    inside = {
        entry.name.casefold(): entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    }
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
    return data if data == BUILTIN else str(_expanded(data).absolute())


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
    """Whether data are this file or folder, or lie below it."""
    try:
        place = torchvision_place(data)
        path = _expanded(data) if place is None else place.root
        return data != BUILTIN and path.resolve().is_relative_to(folder.resolve())
    except (DataError, OSError, RuntimeError):
        return False


def _expanded(data: str) -> Path:
    try:
        return Path(data).expanduser()
    except RuntimeError:  # an unknown ~user
        return Path(data)
