"""Image sets that come with the package: drawn surfaces and scikit-learn's digits."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qaf_core.data.formats.npz import check_arrays
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.images.split import Choice, Split
from qaf_core.data.images.targets import drawn_targets
from qaf_core.data.inspection import dataset
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.text.said import say

#: Images taken from a built-in set when no limit is given.
DEFAULT_COUNTS: dict[Split, int] = {"train": 12_000, "calibration": 1024, "evaluation": 2000}
INSPECTION_SEEDS: dict[Split, int] = {"train": 1, "evaluation": 3, "calibration": 1000}
_DIGITS_PARTS: dict[Split, slice] = {
    "evaluation": slice(0, 449),
    "calibration": slice(449, 799),
    "train": slice(799, 1797),
}


def load_builtin(source: ModelSource, split: Split, limit: int | None, seed: int) -> ImageSet:
    """Images of a model's built-in set; each split has its own.

    Args:
        source: The model.
        split: What they are used for.
        limit: At most this many; None takes the usual number.
        seed: Chooses the calibration images; training images other than 0 gives are none that the shipped
            models have learnt from.

    Raises:
        DataError: When the model has no built-in images.
    """
    if source.default_data == "inspection":
        return _load_inspection(source, split, limit or DEFAULT_COUNTS[split], seed)
    if source.default_data == "digits":
        chosen_seed = seed if split == "calibration" else 0
        return _load_digits(source, Choice(split=split, limit=limit, seed=chosen_seed, shared=False))
    raise DataError(
        say("{source} has no built-in images", source=source.id), remedy="name your own images with --data"
    )


def _load_inspection(source: ModelSource, split: Split, count: int, seed: int) -> ImageSet:
    other = {"calibration": seed, "train": int(seed > 0)}  # the stream after the next evaluates
    stream = INSPECTION_SEEDS[split] + other.get(split, 0)
    drawn = dataset.render(count, stream)
    image_set = check_arrays(
        f"built-in inspection set, {split}", drawn.images, drawn.labels, dataset.CLASSES, source
    )
    return replace(image_set, targets=drawn_targets(drawn, source.task), classes=source.classes)


def _load_digits(source: ModelSource, choice: Choice) -> ImageSet:
    pixels, digits = read_digits()
    part = np.random.default_rng(0).permutation(len(digits))[_DIGITS_PARTS[choice.split]]
    chosen, name = choice.among(len(part), f"scikit-learn digits, {choice.split}")
    images = np.rint(pixels[part[chosen]] * (255 / 16)).astype(np.uint8)[..., None]
    return check_arrays(name, images, digits[part[chosen]], source.classes, source)


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read scikit-learn's digits from its own file, without the seconds that importing it takes.

    Returns:
        Images ``(1797, 8, 8)`` from 0 to 16, and the digits they show.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("scikit-learn, which brings the digits, is missing", remedy="set up qaf anew")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as rows:
        table = np.loadtxt(rows, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
