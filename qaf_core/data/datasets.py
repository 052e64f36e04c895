"""Images and labels: the built-in sets, `.npz` files and image folders, all checked before they are used."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qaf_core.data import inspection
from qaf_core.data.models import ModelSource
from qaf_core.errors import DataError

if TYPE_CHECKING:
    import torch

Split = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)

#: Images taken from a built-in set when no limit is given.
DEFAULT_COUNTS: dict[Split, int] = {"train": 12_000, "calibration": 1024, "evaluation": 2000}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

INSPECTION_SEEDS: dict[Split, int] = {"train": 1, "evaluation": 3, "calibration": 1000}
_DIGITS_PARTS: dict[Split, slice] = {
    "evaluation": slice(0, 449),
    "calibration": slice(449, 799),
    "train": slice(799, 1797),
}
_CALIBRATION_SHARE = 0.25  # of user data that serve both purposes
_ACCEPTED = "builtin, an image folder (one sub-folder a class), or an .npz with x (N,H,W,C) uint8 and y (N,)"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images as they come from the camera.

    Attributes:
        name: What they are, for people, with the part taken.
        images: (N, H, W, C) uint8.
        labels: (N,) int64, indices into classes.
        classes: Class names.
    """

    name: str
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


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
    path = Path(data).expanduser()
    if path.is_dir():
        images = _load_folder(path, source)
    elif path.is_file() and path.suffix.lower() == ".npz":
        images = _load_npz(path, source)
    elif path.is_file():
        raise DataError(
            f"data file {path.name} has an unknown format", got=path.suffix or "no suffix", expected=_ACCEPTED
        )
    else:
        raise DataError(f"data not found: {data}", expected=_ACCEPTED, remedy="check the path")
    if shared and split != "train":
        images = _take_part(images, split)
    return _take_subset(images, limit, seed if split == "calibration" else 0)


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
        return _take_subset(_load_digits(source, split), limit, seed if split == "calibration" else 0)
    raise DataError(
        f"{source.id} has no built-in images", expected=_ACCEPTED, remedy="name your own images with --data"
    )


def _load_inspection(source: ModelSource, split: Split, count: int, seed: int) -> ImageSet:
    stream = INSPECTION_SEEDS[split] + (seed if split == "calibration" else 0)
    drawn = inspection.render(count, stream)
    name = f"built-in inspection set, {split}, {count:,} images"
    return _checked(name, drawn.images, drawn.labels, inspection.CLASSES, source)


def _load_digits(source: ModelSource, split: Split) -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[_DIGITS_PARTS[split]]
    images = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    name = f"scikit-learn digits, {split}, {len(order):,} images"
    return _checked(name, images, digits.target[order], source.classes, source)


# --- user data


def _load_npz(path: Path, source: ModelSource) -> ImageSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in ("x", "y") if key not in archive.files]
            if missing:
                raise DataError(
                    f"{path.name} lacks array {' and '.join(missing)}",
                    got=", ".join(archive.files[:6]) or "no arrays",
                    expected="x (N,H,W,C) uint8 and y (N,)",
                )
            images, labels = archive["x"], archive["y"]
            names = archive["classes"] if "classes" in archive.files else None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} cannot be read as .npz", got=_first_line(error), remedy="save it with numpy.savez"
        ) from error
    classes = source.classes if names is None else tuple(str(name) for name in names.reshape(-1))
    return _checked(path.name, images, labels, classes, source)


def _load_folder(path: Path, source: ModelSource) -> ImageSet:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(
            f"image folder {path.name} has no class sub-folders",
            expected="one sub-folder a class, images inside",
            remedy="sort the images into sub-folders named after their class",
        )
    label_of = _labels_of_folders(folders, source)
    images, labels = [], []
    for folder in folders:
        for file in sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES):
            images.append(_read_image(file, source.input_shape))
            labels.append(label_of[folder.name])
    if not images:
        raise DataError(f"image folder {path.name} holds no images", expected=", ".join(IMAGE_SUFFIXES))
    return _checked(path.name, np.stack(images), np.array(labels), source.classes, source)


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
        margin = 256 / 224 if min(height, width) >= 128 else 1.0  # the usual margin of ImageNet evaluation
        scale = margin * max(width / picture.width, height / picture.height)
        size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        picture = picture.resize(size, Image.Resampling.BILINEAR).crop(
            (left, top, left + width, top + height)
        )
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


# --- subsets


def _take_part(images: ImageSet, split: Split) -> ImageSet:
    """The calibration or the evaluation part of data that serve both: disjoint, the same on every call."""
    order = np.random.default_rng((len(images), 17)).permutation(len(images))
    share = max(1, round(len(images) * _CALIBRATION_SHARE))
    if share >= len(images):
        raise DataError(
            f"{images.name} is too small to be split", got=f"{len(images)} image", expected="2 or more images"
        )
    chosen = np.sort(order[:share] if split == "calibration" else order[share:])
    return _select(images, chosen, f"{images.name}, {split} part, {len(chosen):,} of {len(images):,} images")


def _take_subset(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    if limit is None or limit >= len(images):
        return images
    chosen = np.sort(np.random.default_rng((seed, len(images))).permutation(len(images))[:limit])
    return _select(images, chosen, f"{images.name}, {limit:,} of {len(images):,} images")


def _select(images: ImageSet, chosen: npt.NDArray[np.intp], name: str) -> ImageSet:
    return ImageSet(
        name=name, images=images.images[chosen], labels=images.labels[chosen], classes=images.classes
    )


def _same_place(first: str, second: str) -> bool:
    return Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
