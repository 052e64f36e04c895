"""Images and labels: the built-in sets, `.npz` files and image folders, all checked before they are used."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qaf_core.data import inspection
from qaf_core.data.annotated import open_annotated
from qaf_core.data.decoding import read_picture
from qaf_core.data.folders import list_folder, require_classes
from qaf_core.data.images import ImageSet, Pictures, SkippedImage, shown_name
from qaf_core.data.models import ModelSource
from qaf_core.data.preprocessing import preprocessing_of
from qaf_core.data.reading import ReadPictures, read_pictures
from qaf_core.data.splitting import SPLIT_SEED, SPLITS, Choice, Split, told_apart
from qaf_core.data.targets import (
    Targets,
    accepted_data,
    checked_targets,
    drawn_targets,
    npz_arrays,
)
from qaf_core.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["ImageSet", "Split", "load_images", "load_pair", "to_batches"]

#: Images taken from a built-in set when no limit is given.
DEFAULT_COUNTS: dict[Split, int] = {"train": 12_000, "calibration": 1024, "evaluation": 2000}

INSPECTION_SEEDS: dict[Split, int] = {"train": 1, "evaluation": 3, "calibration": 1000}
_DIGITS_PARTS: dict[Split, slice] = {
    "evaluation": slice(0, 449),
    "calibration": slice(449, 799),
    "train": slice(799, 1797),
}
_ACCEPTED = "builtin, an image folder (one sub-folder a class), or an .npz with x (N,H,W,C) uint8 and y (N,)"


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
        data: `builtin`, an image folder (one sub-folder a class), or an `.npz` with x (N, H, W, C) uint8 and
            y (N,).
        source: The model the images are for.
        split: What they are used for. The built-in sets have separate images for each.
        limit: At most this many images, a seeded random subset; None takes all (of a built-in set, the
            default count).
        seed: Chooses the calibration images; the evaluation images of a run never depend on it.
        shared: The user's data serve calibration and evaluation alike: split them into two disjoint parts.
        cache: Folder for decoded pictures; None for the system's temporary one.
        on_read: Told how many of how many pictures have been decoded; may raise to stop.

    Raises:
        DataError: When the data cannot be found, read, or do not fit the model.
    """
    if limit is not None and limit < 1:
        raise DataError("number of images is too small", got=limit, expected="1 or more")
    if split not in SPLITS:
        raise DataError("unknown split", got=split, expected=", ".join(SPLITS))
    if data == "builtin":
        return _load_builtin(source, split, limit, seed)
    choice = Choice(split=split, limit=limit, seed=seed if split == "calibration" else 0, shared=shared)
    reading = _Reading(source=source, choice=choice, cache=cache, on_read=on_read)
    try:
        return _load_user_data(Path(data).expanduser(), reading)
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
    cache: Path | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Load the evaluation and the calibration images of a run, which never overlap.

    Images with the same pixels as an evaluation image do not calibrate, wherever they come from.

    Args:
        data: Evaluation data, as in `load_images`.
        calibration: Calibration data. When it is None or the same as data, user data are split in two
            disjoint parts; the built-in sets always have separate images.
        source: The model the images are for.
        evaluation_limit: At most this many evaluation images.
        calibration_limit: At most this many calibration images.
        seed: Chooses the calibration images.
        cache: Folder for decoded pictures; None for the system's temporary one.
        on_read: As in `load_images`.

    Returns:
        The evaluation set, then the calibration set; their `split` says how they were told apart.

    Raises:
        DataError: When either cannot be found, read, or does not fit the model.
    """
    shared = data != "builtin" and (calibration is None or _same_place(data, calibration))
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
    return told_apart(evaluation, chosen, f"split by seed {SPLIT_SEED}" if shared else "given separately")


def to_batches(
    image_set: ImageSet, source: ModelSource, batch_size: int = 256
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised batches: float32 images (B, C, H, W) and int64 labels (B,).

    The images lie channels-last in memory: convolutions on a CPU run up to twice as fast then.
    """
    import torch

    steps = preprocessing_of(source)
    mean, std = torch.tensor(steps.mean), torch.tensor(steps.std)
    start = 0
    for chunk in image_set.in_chunks(batch_size):
        ordered = chunk[..., ::-1] if steps.channel_order == "bgr" else chunk
        pixels = torch.from_numpy(ordered.astype(np.float32))
        images = pixels.div_(steps.scale).sub_(mean).div_(std).permute(0, 3, 1, 2)
        labels = image_set.labels[start : start + len(chunk)]
        start += len(chunk)
        yield images, torch.from_numpy(labels.copy())


# --- built-in


def _load_builtin(source: ModelSource, split: Split, limit: int | None, seed: int) -> ImageSet:
    if source.default_data == "inspection":
        return _load_inspection(source, split, limit or DEFAULT_COUNTS[split], seed)
    if source.default_data == "digits":
        chosen_seed = seed if split == "calibration" else 0
        return _load_digits(source, Choice(split=split, limit=limit, seed=chosen_seed, shared=False))
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


def _load_digits(source: ModelSource, choice: Choice) -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = np.random.default_rng(0).permutation(len(digits.target))[_DIGITS_PARTS[choice.split]]
    chosen, name = choice.among(len(part), f"scikit-learn digits, {choice.split}")
    images = np.rint(digits.images[part[chosen]] * (255 / 16)).astype(np.uint8)[..., None]
    return _checked(name, images, digits.target[part[chosen]], source.classes, source)


# --- user data


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What is asked for, and where decoded pictures go."""

    source: ModelSource
    choice: Choice
    cache: Path | None
    on_read: Callable[[int, int], None] | None

    @property
    def labelled(self) -> bool:
        """Whether labels or targets are needed: images that only calibrate may come without."""
        return self.choice.split != "calibration" or self.choice.shared

    def read(
        self, name: str, files: Sequence[Path], open_path: Callable[[int], Path] | None = None
    ) -> ReadPictures:
        """Decode pictures; open_path tells where one really lies."""
        steps = preprocessing_of(self.source)
        place = open_path or files.__getitem__
        return read_pictures(
            lambda number: read_picture(place(number), steps),
            range(len(files)),
            steps.shape,
            name=name,
            name_of=lambda number: f"{files[number].parent.name}/{files[number].name}",
            folder=self.cache,
            on_read=self.on_read,
        )


def _load_user_data(path: Path, reading: _Reading) -> ImageSet:
    source = reading.source
    if path.is_dir() and source.task != "classification" and reading.labelled:
        return _load_annotated(path, reading)
    if path.is_dir():
        # Masks lie beside the images they belong to, and are no images to fit with.
        beside = source.task != "classification" and (path / "images").is_dir()
        return _load_folder(path / "images" if beside else path, reading)
    if path.is_file() and path.suffix.lower() == ".npz":
        images = _load_npz(path, reading)
        return images.take(*reading.choice.among(len(images), images.name))
    if path.is_file():
        found = path.suffix or "no suffix"
        raise DataError(
            f"data file {shown_name(path.name)} has an unknown format", got=found, expected=_accepted(source)
        )
    raise DataError(f"data not found: {path}", expected=_accepted(source), remedy="check the path")


def _accepted(source: ModelSource) -> str:
    return _ACCEPTED if source.task == "classification" else "builtin, " + accepted_data(source.task)


def _load_npz(path: Path, reading: _Reading) -> ImageSet:
    source = reading.source
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = npz_arrays(source.task)
            missing = [key for key in ("x", *wanted) if key not in archive.files]
            bare = bool(missing) and "x" not in missing and not reading.labelled
            if missing and not bare:
                raise DataError(
                    f"{path.name} lacks array {' and '.join(missing)}",
                    got=", ".join(archive.files[:6]) or "no arrays",
                    expected=_accepted(source),
                )
            images, arrays = archive["x"], {} if bare else {key: archive[key] for key in wanted}
            names = archive["classes"] if "classes" in archive.files else None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} cannot be read as .npz", got=_first_line(error), remedy="save it with numpy.savez"
        ) from error
    if bare:
        _check_images(path.name, images, source)
        labels = np.zeros(len(images), np.int64)
        return ImageSet(name=path.name, images=images, labels=labels, classes=source.classes)
    if source.task != "classification":
        _check_images(path.name, images, source)
        return _with_targets(path.name, images, arrays, source)
    classes = source.classes if names is None else tuple(str(name) for name in names.reshape(-1))
    loaded = _checked(path.name, images, arrays["y"], classes, source)
    if classes == source.classes or sorted(classes) != sorted(source.classes):
        return loaded
    # The same classes in another order: number them as the model does.
    numbers = np.array([source.classes.index(name) for name in classes])
    return replace(loaded, labels=numbers[loaded.labels], classes=source.classes)


def _load_folder(path: Path, reading: _Reading) -> ImageSet:
    """Only the chosen pictures are opened: a folder may hold far more than fits in memory."""
    source, choice = reading.source, reading.choice
    listed = list_folder(path, source, labelled=reading.labelled)
    if choice.split == "evaluation":
        require_classes(path.name, listed.labels, source)
    chosen, name = choice.among(len(listed.files), shown_name(path.name))
    files = [listed.files[index] for index in chosen]
    found = reading.read(name, files, lambda number: listed.open_path(int(chosen[number])))
    return ImageSet(
        name=_with_skipped(name, found.skipped),
        images=found.pictures,
        labels=listed.labels[chosen][found.kept],
        classes=source.classes,
        skipped=found.skipped,
    )


def _load_annotated(path: Path, reading: _Reading) -> ImageSet:
    """A folder of pictures with masks or boxes; only the chosen pictures are opened."""
    folder = open_annotated(path, reading.source)
    chosen, name = reading.choice.among(len(folder.files), shown_name(path.name))
    files = [folder.files[index] for index in chosen]
    found = reading.read(name, files)
    arrays = folder.arrays([files[index] for index in found.kept], reading.source)
    images = _with_targets(_with_skipped(name, found.skipped), found.pictures, arrays, reading.source)
    return replace(images, skipped=found.skipped)


def _with_skipped(name: str, skipped: Sequence[SkippedImage]) -> str:
    return f"{name}, {len(skipped):,} unreadable left out" if skipped else name


def _with_targets(name: str, images: Pictures, arrays: Targets, source: ModelSource) -> ImageSet:
    targets = checked_targets(name, arrays, len(images), source)
    labels = np.zeros(len(images), np.int64)
    return ImageSet(name=name, images=images, labels=labels, classes=source.classes, targets=targets)


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
