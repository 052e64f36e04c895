"""The data sets torchvision knows, from a folder they already lie in: nothing is ever downloaded.

torchvision compares the checksums of what it unpickles (CIFAR) before it does so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import numpy as np

from qaf_core.data.decoding import Pixels, UndecodableError, fit_picture
from qaf_core.data.folders import match_classes
from qaf_core.data.images import ImageSet, shown_name
from qaf_core.data.places import FOLDER_SETS, TorchvisionPlace
from qaf_core.data.preprocessing import preprocessing_of
from qaf_core.data.user_data import Reading, with_skipped
from qaf_core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """How torchvision is asked for the two parts of a data set.

    Attributes:
        training, evaluation: Arguments for each part.
        classes: Number of classes, where torchvision does not name them.
        holds: What must lie in the root.
    """

    training: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"split": "train"}))
    evaluation: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"split": "test"}))
    classes: int = 0
    holds: str


def _by_flag(holds: str) -> KnownSet:
    return KnownSet(training={"train": True}, evaluation={"train": False}, holds=holds)


#: Every set that can be named, by its class in `torchvision.datasets`.
KNOWN_SETS: Mapping[str, KnownSet] = MappingProxyType(
    {
        "CIFAR10": _by_flag("cifar-10-batches-py"),
        "CIFAR100": _by_flag("cifar-100-python"),
        "MNIST": _by_flag("MNIST/raw"),
        "FashionMNIST": _by_flag("FashionMNIST/raw"),
        "KMNIST": _by_flag("KMNIST/raw"),
        "SVHN": KnownSet(classes=10, holds="train_32x32.mat and test_32x32.mat"),
        "STL10": KnownSet(holds="stl10_binary"),
        "GTSRB": KnownSet(classes=43, holds="gtsrb"),
        "Flowers102": KnownSet(classes=102, holds="flowers-102"),
        "OxfordIIITPet": KnownSet(training={"split": "trainval"}, holds="oxford-iiit-pet"),
        "Food101": KnownSet(holds="food-101"),
        "FGVCAircraft": KnownSet(training={"split": "trainval"}, holds="fgvc-aircraft-2013b"),
        "DTD": KnownSet(holds="dtd"),
    }
)


def load_torchvision_set(place: TorchvisionPlace, reading: Reading) -> ImageSet:
    """Images of a torchvision data set: its training part calibrates, its test part evaluates.

    Args:
        place: Its name and root.
        reading: What is asked for.

    Raises:
        DataError: When the set is not known, not in the root, damaged, or does not fit the model.
    """
    source, choice = reading.source, reading.choice
    if source.task != "classification":
        raise DataError(
            f"torchvision's data sets are read for classification, not for {source.task}", got=place.name
        )
    known = _known(place.name)
    part = "evaluation" if choice.split == "evaluation" else "training"
    dataset = _open(place, known.evaluation if part == "evaluation" else known.training, known)
    names = [str(name) for name in getattr(dataset, "classes", None) or map(str, range(known.classes))]
    numbers = np.array(match_classes(names, source, f"classes of {place.name}"), np.int64)
    chosen, name = choice.among(len(dataset), f"{place.name}, {part} part")
    labels = np.zeros(len(chosen), np.int64)
    steps = preprocessing_of(source)

    def decode(number: int) -> Pixels:
        try:
            picture, label = dataset[int(chosen[number])]
            labels[number] = numbers[int(label)]
            return fit_picture(picture, steps)
        except Exception as error:  # whatever its reader raises for a file that is damaged or not there
            raise UndecodableError(_first_line(error)) from error

    found = reading.decode(name, len(chosen), len(dataset), decode, lambda number: f"image {chosen[number]}")
    return ImageSet(
        name=with_skipped(name, found.skipped),
        images=found.pictures,
        labels=labels[found.kept],
        classes=source.classes,
        skipped=found.skipped,
    )


def _known(name: str) -> KnownSet:
    if name in KNOWN_SETS:
        return KNOWN_SETS[name]
    every = (*KNOWN_SETS, *FOLDER_SETS)
    lower = {known.casefold(): known for known in every}
    close = [lower[match] for match in get_close_matches(name.casefold(), lower, n=1, cutoff=0.6)]
    raise DataError(
        "this torchvision data set is not read here",
        got=shown_name(name),
        expected=", ".join(every),
        remedy=f"did you mean {close[0]}?" if close else "give an image folder instead",
    )


def _open(place: TorchvisionPlace, arguments: Mapping[str, Any], known: KnownSet) -> Sequence[Any]:
    from torchvision import datasets

    root = str(place.root)
    try:
        dataset: Sequence[Any] = getattr(datasets, place.name)(root, download=False, **arguments)
    except Exception as error:  # each set's reader has its own ways to fail on what it does not expect
        asked = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise DataError(
            f"torchvision's {place.name} is not, or not whole, in {root}",
            got=_first_line(error).replace(" You can use download=True to download it", ""),
            expected=f"{known.holds} in this folder",
            remedy=f"fetch it once with torchvision.datasets.{place.name}(ROOT, {asked}, download=True)",
        ) from error
    if len(dataset) == 0:
        raise DataError(f"torchvision's {place.name} in {root} is empty", got="0 images")
    return dataset


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
