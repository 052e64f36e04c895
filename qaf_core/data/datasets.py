"""Images and labels: the built-in sets, `.npz` files and image folders, all checked before they are used."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qaf_core.data import inspection
from qaf_core.data.annotated import IMAGE_SUFFIXES, Fit, open_annotated
from qaf_core.data.models import ModelSource
from qaf_core.data.targets import (
    Targets,
    accepted_data,
    checked_targets,
    drawn_targets,
    npz_arrays,
    take_targets,
)
from qaf_core.errors import DataError

if TYPE_CHECKING:
    import torch

Split = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)

#: Images taken from a built-in set when no limit is given.
DEFAULT_COUNTS: dict[Split, int] = {"train": 12_000, "calibration": 1024, "evaluation": 2000}

INSPECTION_SEEDS: dict[Split, int] = {"train": 1, "evaluation": 3, "calibration": 1000}
_DIGITS_PARTS: dict[Split, slice] = {
    "evaluation": slice(0, 449),
    "calibration": slice(449, 799),
    "train": slice(799, 1797),
}
_MAX_IMAGE_BYTES = 8 * 2**30
_CALIBRATION_SHARE = 0.25  # of user data that serve both purposes
_ACCEPTED = "builtin, an image folder (one sub-folder a class), or an .npz with x (N,H,W,C) uint8 and y (N,)"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images as they come from the camera.

    Attributes:
        name: What they are, for people, with the part taken.
        images: (N, H, W, C) uint8.
        labels: (N,) int64, indices into classes; all 0 where images have no single class.
        classes: Class names.
        targets: Masks, boxes or what else a task needs, as in `qaf_core.data.targets`.
    """

    name: str
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    targets: Targets = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, chosen: npt.NDArray[np.intp], name: str) -> ImageSet:
        """Some of the images, with all that belongs to them."""
        return replace(
            self,
            name=name,
            images=self.images[chosen],
            labels=self.labels[chosen],
            targets=take_targets(self.targets, chosen),
        )


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Which of a user's images to take."""

    split: Split
    limit: int | None
    seed: int
    shared: bool

    def among(self, count: int, name: str) -> tuple[npt.NDArray[np.intp], str]:
        """Ascending indices into count images, and the name of the choice."""
        chosen = np.arange(count)
        if self.shared and self.split != "train":
            if count < 2:
                raise DataError(
                    f"{name} is too small to be split", got=f"{count} image", expected="2 or more"
                )
            # The two parts are disjoint and the same on every call.
            order = np.random.default_rng((count, 17)).permutation(count)
            share = max(1, round(count * _CALIBRATION_SHARE))
            chosen = order[:share] if self.split == "calibration" else order[share:]
            name = f"{name}, {self.split} part"
        if self.limit is not None and self.limit < len(chosen):
            name = f"{name}, subset of {len(chosen):,}"
            chosen = np.random.default_rng((self.seed, count)).permutation(chosen)[: self.limit]
        return np.sort(chosen), name


def load_images(
    data: str,
    source: ModelSource,
    *,
    split: Split,
    limit: int | None = None,
    seed: int = 0,
    shared: bool = False,
) -> ImageSet:
    """Load images for a model and check that they fit it.

    Args:
        data: `builtin`, an image folder (one sub-folder a class), or an `.npz` with x (N, H, W, C) uint8 and
            y (N,).
        source: The model the images are for.
        split: What they are used for. The built-in sets have separate images for each.
        limit: At most this many images, a seeded random subset; None takes all (of a built-in set, the
            default count).
        seed: Chooses the calibration images; the evaluation images of a run never depend on it.
        shared: The user's data serve calibration and evaluation alike: split them into two disjoint parts.

    Raises:
        DataError: When the data cannot be found, read, or do not fit the model.
    """
    if limit is not None and limit < 1:
        raise DataError("number of images is too small", got=limit, expected="1 or more")
    if split not in SPLITS:
        raise DataError("unknown split", got=split, expected=", ".join(SPLITS))
    if data == "builtin":
        return _load_builtin(source, split, limit, seed)
    choice = _Choice(split=split, limit=limit, seed=seed if split == "calibration" else 0, shared=shared)
    try:
        return _load_user_data(Path(data).expanduser(), source, choice)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown ~user
        raise DataError(f"data cannot be read: {data}", got=_first_line(error), expected=_ACCEPTED) from error


def load_pair(
    data: str,
    calibration: str | None,
    source: ModelSource,
    *,
    evaluation_limit: int | None = None,
    calibration_limit: int | None = 1024,
    seed: int = 0,
) -> tuple[ImageSet, ImageSet]:
    """Load the evaluation and the calibration images of a run, which never overlap.

    Args:
        data: Evaluation data, as in `load_images`.
        calibration: Calibration data. When it is None or the same as data, user data are split in two
            disjoint parts; the built-in sets always have separate images.
        source: The model the images are for.
        evaluation_limit: At most this many evaluation images.
        calibration_limit: At most this many calibration images.
        seed: Chooses the calibration images.

    Returns:
        The evaluation set, then the calibration set.

    Raises:
        DataError: When either cannot be found, read, or does not fit the model.
    """
    shared = data != "builtin" and (calibration is None or _same_place(data, calibration))
    evaluation = load_images(data, source, split="evaluation", limit=evaluation_limit, shared=shared)
    chosen = data if calibration is None else calibration
    return evaluation, load_images(
        chosen, source, split="calibration", limit=calibration_limit, seed=seed, shared=shared
    )


def to_batches(
    image_set: ImageSet, source: ModelSource, batch_size: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised batches: float32 images (B, C, H, W) and int64 labels (B,).

    The images lie channels-last in memory: convolutions on a CPU run up to twice as fast then.
    """
    import torch

    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    for start in range(0, len(image_set), batch_size):
        pixels = torch.from_numpy(image_set.images[start : start + batch_size].astype(np.float32))
        images = pixels.div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)
        yield images, torch.from_numpy(image_set.labels[start : start + batch_size].copy())


# --- built-in


def _load_builtin(source: ModelSource, split: Split, limit: int | None, seed: int) -> ImageSet:
    if source.default_data == "inspection":
        return _load_inspection(source, split, limit or DEFAULT_COUNTS[split], seed)
    if source.default_data == "digits":
        chosen_seed = seed if split == "calibration" else 0
        return _load_digits(source, _Choice(split=split, limit=limit, seed=chosen_seed, shared=False))
    raise DataError(
        f"{source.id} has no built-in images", expected=_ACCEPTED, remedy="name your own images with --data"
    )


def _load_inspection(source: ModelSource, split: Split, count: int, seed: int) -> ImageSet:
    stream = INSPECTION_SEEDS[split] + (seed if split == "calibration" else 0)
    drawn = inspection.render(count, stream)
    found = _checked(
        f"built-in inspection set, {split}", drawn.images, drawn.labels, inspection.CLASSES, source
    )
    return replace(found, targets=drawn_targets(drawn, source.task), classes=source.classes)


def _load_digits(source: ModelSource, choice: _Choice) -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = np.random.default_rng(0).permutation(len(digits.target))[_DIGITS_PARTS[choice.split]]
    chosen, name = choice.among(len(part), f"scikit-learn digits, {choice.split}")
    images = np.rint(digits.images[part[chosen]] * (255 / 16)).astype(np.uint8)[..., None]
    return _checked(name, images, digits.target[part[chosen]], source.classes, source)


# --- user data


def _load_user_data(path: Path, source: ModelSource, choice: _Choice) -> ImageSet:
    if path.is_dir() and source.task != "classification":
        return _load_annotated(path, source, choice)
    if path.is_dir():
        return _load_folder(path, source, choice)
    if path.is_file() and path.suffix.lower() == ".npz":
        images = _load_npz(path, source)
        return images.take(*choice.among(len(images), images.name))
    if path.is_file():
        found = path.suffix or "no suffix"
        raise DataError(f"data file {path.name} has an unknown format", got=found, expected=_accepted(source))
    raise DataError(f"data not found: {path}", expected=_accepted(source), remedy="check the path")


def _accepted(source: ModelSource) -> str:
    return _ACCEPTED if source.task == "classification" else "builtin, " + accepted_data(source.task)


def _load_npz(path: Path, source: ModelSource) -> ImageSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = npz_arrays(source.task)
            missing = [key for key in ("x", *wanted) if key not in archive.files]
            if missing:
                raise DataError(
                    f"{path.name} lacks array {' and '.join(missing)}",
                    got=", ".join(archive.files[:6]) or "no arrays",
                    expected=_accepted(source),
                )
            images, arrays = archive["x"], {key: archive[key] for key in wanted}
            names = archive["classes"] if "classes" in archive.files else None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} cannot be read as .npz", got=_first_line(error), remedy="save it with numpy.savez"
        ) from error
    if source.task != "classification":
        return _with_targets(path.name, images, arrays, source)
    classes = source.classes if names is None else tuple(str(name) for name in names.reshape(-1))
    loaded = _checked(path.name, images, arrays["y"], classes, source)
    if classes == source.classes or sorted(classes) != sorted(source.classes):
        return loaded
    # The same classes in another order: number them as the model does.
    numbers = np.array([source.classes.index(name) for name in classes])
    return replace(loaded, labels=numbers[loaded.labels], classes=source.classes)


def _load_folder(path: Path, source: ModelSource, choice: _Choice) -> ImageSet:
    """Only the chosen pictures are opened: a folder may hold far more than fits in memory."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(
            f"image folder {path.name} has no class sub-folders",
            expected="one sub-folder a class, images inside",
            remedy="sort the images into sub-folders named after their class",
        )
    label_of = _labels_of_folders(folders, source)
    files = [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"image folder {path.name} holds no images", expected=", ".join(IMAGE_SUFFIXES))
    chosen, name = choice.among(len(files), path.name)
    images = _read_images(path, [files[index] for index in chosen], source)
    labels = np.array([label_of[files[index].parent.name] for index in chosen])
    return _checked(name, images, labels, source.classes, source)


def _load_annotated(path: Path, source: ModelSource, choice: _Choice) -> ImageSet:
    """A folder of pictures with masks or boxes; only the chosen pictures are opened."""
    folder = open_annotated(path, source)
    chosen, name = choice.among(len(folder.files), path.name)
    files = [folder.files[index] for index in chosen]
    images = _read_images(path, files, source)
    return _with_targets(name, images, folder.arrays(files, source), source)


def _with_targets(name: str, images: npt.NDArray[Any], arrays: Targets, source: ModelSource) -> ImageSet:
    _check_images(name, images, source)
    targets = checked_targets(name, arrays, len(images), source)
    labels = np.zeros(len(images), np.int64)
    return ImageSet(name=name, images=images, labels=labels, classes=source.classes, targets=targets)


def _read_images(folder: Path, files: list[Path], source: ModelSource) -> npt.NDArray[np.uint8]:
    if len(files) * prod(source.input_shape) > _MAX_IMAGE_BYTES:
        raise DataError(
            f"image folder {folder.name} holds too many images for memory",
            got=f"{len(files):,} images",
            expected=f"at most {_MAX_IMAGE_BYTES // prod(source.input_shape):,}",
            remedy="take fewer with --images",
        )
    return np.stack([_read_image(file, source.input_shape) for file in files])


def _labels_of_folders(folders: list[Path], source: ModelSource) -> dict[str, int]:
    """Match folders to classes by name; failing that, by order when there is one folder for each class."""
    known = {name.casefold(): index for index, name in enumerate(source.classes)}
    spelled = {folder.name: folder.name.casefold().replace("_", " ") for folder in folders}
    matched = {name: known.get(name.casefold(), known.get(plain)) for name, plain in spelled.items()}
    labels = {name: index for name, index in matched.items() if index is not None}
    if len(labels) == len(folders):
        return labels
    if not labels and len(folders) == len(source.classes):
        return {folder.name: index for index, folder in enumerate(folders)}
    unknown = [folder.name for folder in folders if folder.name not in labels]
    raise DataError(
        f"class folders do not match {source.id}",
        got=", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""),
        expected=_shortened(source.classes),
        remedy="name each folder after a class of the model",
    )


def _read_image(file: Path, input_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """One image (H, W, C) at the model's size: the shorter side scaled, then the middle cut out."""
    from PIL import Image

    channels, height, width = input_shape
    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {file.parent.name}/{file.name} cannot be read",
            got=_first_line(error),
            remedy="replace or remove it",
        ) from error
    if picture.size != (width, height):
        fit = Fit.of(picture.size, input_shape)
        picture = picture.resize(fit.size, Image.Resampling.BILINEAR).crop(fit.cut)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)


# --- checks


def _checked(
    name: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    classes: tuple[str, ...],
    source: ModelSource,
) -> ImageSet:
    """An ImageSet, once everything about it fits the model."""
    _check_images(name, images, source)
    _check_labels(name, labels, len(images), source)
    if len(classes) != len(source.classes):
        raise DataError(
            f"{name} has another number of classes than {source.id}",
            got=len(classes),
            expected=len(source.classes),
        )
    return ImageSet(name=name, images=images, labels=labels.astype(np.int64), classes=classes)


def _check_images(name: str, images: npt.NDArray[Any], source: ModelSource) -> None:
    channels, height, width = source.input_shape
    if images.ndim != 4:
        raise DataError(
            f"images of {name} have the wrong shape",
            got=images.shape,
            expected=f"(N, {height}, {width}, {channels})",
        )
    if len(images) == 0:
        raise DataError(f"{name} is empty", got="0 images", expected="1 or more")
    if images.shape[1:] != (height, width, channels):
        turned = images.shape[1:] == (channels, height, width)
        raise DataError(
            f"images of {name} do not fit {source.id}",
            got=images.shape,
            expected=f"(N, {height}, {width}, {channels})",
            remedy="put the channels last" if turned else None,
        )
    if images.dtype != np.uint8:
        raise DataError(
            f"images of {name} have the wrong type",
            got=images.dtype,
            expected="uint8 pixels, 0 to 255, not normalised",
        )


def _check_labels(name: str, labels: npt.NDArray[Any], count: int, source: ModelSource) -> None:
    if labels.shape != (count,):
        raise DataError(f"labels of {name} have the wrong shape", got=labels.shape, expected=f"({count},)")
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels of {name} have the wrong type", got=labels.dtype, expected="integers")
    last = len(source.classes) - 1
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{len(wrong)} labels of {name} are out of range",
            got=f"{int(labels[first])} at image {first}",
            expected=f"0 to {last} for the {last + 1} classes of {source.id}",
        )


def _same_place(first: str, second: str) -> bool:
    return Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
