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

from qaf_core.data.formats.files import Reading, with_skipped
from qaf_core.data.formats.folder import match_classes
from qaf_core.data.formats.sources import TorchvisionPlace
from qaf_core.data.formats.torchvision_annotated import load_annotated_set
from qaf_core.data.images.decode import Pixels, UndecodableError, fit_picture
from qaf_core.data.images.image_set import ImageSet, shown_name
from qaf_core.data.models.torchvision_names import ANNOTATED_SETS, CLASSIFICATION_SETS
from qaf_core.errors import DataError
from qaf_core.text.said import say


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """How torchvision is asked for the two parts of a data set.

    Attributes:
        training, evaluation: Arguments for each part; the same where there is one part only.
        classes: Number of classes, where torchvision does not name them.
        holds: What must lie in the root.
        offered: torchvision can fetch it.
    """

    training: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"split": "train"}))
    evaluation: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"split": "test"}))
    classes: int = 0
    holds: str
    offered: bool = True

    @property
    def has_parts(self) -> bool:
        """Whether it brings images of their own to calibrate with and to evaluate on."""
        return self.training != self.evaluation


def _by_flag(holds: str, classes: int = 0) -> KnownSet:
    return KnownSet(training={"train": True}, evaluation={"train": False}, holds=holds, classes=classes)


def _undivided(holds: str, classes: int = 0) -> KnownSet:
    return KnownSet(training={}, evaluation={}, holds=holds, classes=classes)


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
        "EuroSAT": _undivided("eurosat/2750"),
        "StanfordCars": KnownSet(holds="stanford_cars", offered=False),
        "Country211": KnownSet(holds="country211"),
        "RenderedSST2": KnownSet(holds="rendered-sst2"),
        "PCAM": KnownSet(classes=2, holds="pcam"),
        "Imagenette": KnownSet(evaluation={"split": "val"}, holds="imagenette2"),
        "USPS": _by_flag("usps.bz2 and usps.t.bz2", classes=10),
        "SEMEION": _undivided("semeion.data", classes=10),
    }
)


def load_torchvision_set(place: TorchvisionPlace, reading: Reading) -> ImageSet:
    """Images of a torchvision data set: its training part calibrates, its test part evaluates.

    A set of one part is split like a user's own data.

    Args:
        place: Its name and root.
        reading: What is asked for.

    Raises:
        DataError: When the set is not known, not in the root, damaged, or does not fit the model.
    """
    source, choice = reading.source, reading.choice
    if source.task != "classification" or place.name in ANNOTATED_SETS:
        return load_annotated_set(place, reading)
    known = _known(place.name)
    part = "evaluation" if choice.split == "evaluation" else "training"
    dataset = _open(place, known.evaluation if part == "evaluation" else known.training, known)
    class_names = getattr(dataset, "classes", None) or map(str, range(known.classes))
    # Imagenette has several names for each class, the first is the usual one.
    names = [str(name[0] if isinstance(name, tuple) else name) for name in class_names]
    numbers = np.array(match_classes(names, source, say("classes of {name}", name=place.name)), np.int64)
    name = f"{place.name}, {part} part" if known.has_parts else place.name
    chosen, name = choice.among(len(dataset), name)
    labels = np.zeros(len(chosen), np.int64)
    steps = source.preprocessing

    def decode(number: int) -> Pixels:
        try:
            picture, label = dataset[int(chosen[number])]
            labels[number] = numbers[int(label)]
            return fit_picture(picture, steps)
        except Exception as error:  # whatever its reader raises for a file that is damaged or not there
            raise UndecodableError(_first_line(error)) from error

    pictures = reading.decode(
        name, len(chosen), len(dataset), decode, lambda number: f"image {chosen[number]}"
    )
    return ImageSet(
        name=with_skipped(name, pictures.skipped),
        images=pictures.pictures,
        labels=labels[pictures.kept],
        classes=source.classes,
        skipped=pictures.skipped,
    )


def _known(name: str) -> KnownSet:
    if name in KNOWN_SETS:
        return KNOWN_SETS[name]
    every = CLASSIFICATION_SETS
    lower = {known.casefold(): known for known in every}
    close = [lower[match] for match in get_close_matches(name.casefold(), lower, n=1, cutoff=0.8)]
    raise DataError(
        "this torchvision data set is not read here",
        got=shown_name(name),
        expected=", ".join(every),
        remedy=say("did you mean {name}?", name=close[0]) if close else "give an image folder instead",
    )


def _open(place: TorchvisionPlace, arguments: Mapping[str, Any], known: KnownSet) -> Sequence[Any]:
    from torchvision import datasets

    root = str(place.root)
    try:
        dataset: Sequence[Any] = getattr(datasets, place.name)(root, download=False, **arguments)
    except Exception as error:  # each set's reader has its own ways to fail on what it does not expect
        options = "".join(f"{key}={value!r}, " for key, value in arguments.items())
        fetch = say(
            "fetch it once with torchvision.datasets.{name}(ROOT, {asked}download=True)",
            name=place.name,
            asked=options,
        )
        raise DataError(
            say("torchvision's {place} is not, or not whole, in {root}", place=place.name, root=root),
            got=_first_line(error).replace(" You can use download=True to download it", ""),
            expected=say("{holds} in this folder", holds=known.holds),
            remedy=fetch if known.offered else "ask its authors for it: torchvision no longer fetches it",
        ) from error
    if len(dataset) == 0:
        raise DataError(
            say("torchvision's {place} in {root} is empty", place=place.name, root=root), got=say("0 images")
        )
    return dataset


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
