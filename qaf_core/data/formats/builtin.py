"""Image sets that come with the package: drawn surfaces and scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qaf_core.data.formats.npz import check_arrays
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.images.split import Choice, Split
from qaf_core.data.images.targets import drawn_targets
from qaf_core.data.inspection import dataset
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError

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
        seed: Chooses the calibration images.

    Raises:
        DataError: When the model has no built-in images.
    """
    if source.default_data == "inspection":
        return _load_inspection(source, split, limit or DEFAULT_COUNTS[split], seed)
    if source.default_data == "digits":
        chosen_seed = seed if split == "calibration" else 0
        return _load_digits(source, Choice(split=split, limit=limit, seed=chosen_seed, shared=False))
    raise DataError(f"{source.id} has no built-in images", remedy="name your own images with --data")


def _load_inspection(source: ModelSource, split: Split, count: int, seed: int) -> ImageSet:
    stream = INSPECTION_SEEDS[split] + (seed if split == "calibration" else 0)
    drawn = dataset.render(count, stream)
    found = check_arrays(
        f"built-in inspection set, {split}", drawn.images, drawn.labels, dataset.CLASSES, source
    )
    return replace(found, targets=drawn_targets(drawn, source.task), classes=source.classes)


def _load_digits(source: ModelSource, choice: Choice) -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = np.random.default_rng(0).permutation(len(digits.target))[_DIGITS_PARTS[choice.split]]
    chosen, name = choice.among(len(part), f"scikit-learn digits, {choice.split}")
    images = np.rint(digits.images[part[chosen]] * (255 / 16)).astype(np.uint8)[..., None]
    return check_arrays(name, images, digits.target[part[chosen]], source.classes, source)
