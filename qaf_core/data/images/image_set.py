"""Labelled images, in memory or on disk, read in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from qaf_core.data.images.targets import Targets, take_targets
from qaf_core.errors import escape_text
from qaf_core.text.said import Said

Index = slice | npt.NDArray[np.intp]

_LONGEST_NAME = 80
_CHUNK = 64  # images looked at together where nobody asks for batches


class Pictures(Protocol):
    """Images (N, H, W, C) uint8; a NumPy array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Index, /) -> npt.NDArray[np.uint8]:
        """Some of the images, read now."""
        ...


@runtime_checkable
class StoredPictures(Protocol):
    """Pictures that are not in memory."""

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The digest of each picture's pixels, as `digest_pixels` makes it."""
        ...

    def select(self, chosen: npt.NDArray[np.intp]) -> Pictures:
        """Some of the pictures, not read yet."""
        ...

    def in_chunks(self, size: int) -> Iterator[npt.NDArray[np.uint8]]:
        """All pictures in order, size at a time."""
        ...


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """An image that is left out.

    Attributes:
        name: Its file, as it may be shown.
        reason: Why, in a few words.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images as they come from the camera, cut to the model's size.

    Attributes:
        name: What they are, for people, with the part taken.
        images: (N, H, W, C) uint8: an array, or pictures on disk.
        labels: (N,) int64, indices into classes; all 0 where images have no single class.
        classes: Class names.
        targets: Masks, boxes or what else a task needs, as in `qaf_core.data.images.targets`.
        skipped: Images that could not be read and are left out.
        split: How calibration and evaluation images were told apart, in one sentence; empty if nothing was.
    """

    name: str
    images: Pictures
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    targets: Targets = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()
    split: Said | str = ""

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int] | npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """The pixels (n, H, W, C) of some images."""
        return self.images[np.asarray(indices, np.intp)]

    def in_chunks(self, size: int = _CHUNK) -> Iterator[npt.NDArray[np.uint8]]:
        """The pixels of all images in order, size at a time; no more than a few chunks are in memory."""
        if isinstance(self.images, StoredPictures):
            yield from self.images.in_chunks(size)
            return
        for start in range(0, len(self), size):
            yield self.images[start : start + size]

    def take(self, chosen: npt.NDArray[np.intp], name: str) -> ImageSet:
        """Some of the images, with all that belongs to them."""
        images = self.images
        return replace(
            self,
            name=name,
            images=images.select(chosen) if isinstance(images, StoredPictures) else images[chosen],
            labels=self.labels[chosen],
            targets=take_targets(self.targets, chosen),
        )

    def digests(self) -> tuple[bytes, ...]:
        """One digest an image: equal pixels, equal digests."""
        if isinstance(self.images, StoredPictures):
            return self.images.digests
        return tuple(digest_pixels(image) for chunk in self.in_chunks() for image in chunk)


def digest_pixels(pixels: npt.NDArray[np.uint8]) -> bytes:
    """16 bytes that tell one image's pixels from another's."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()[:16]


def shown_name(name: str) -> str:
    """A file's or a class's name as it may be shown: control characters escaped, at most 80 characters."""
    text = escape_text(name.encode("utf-8", "backslashreplace").decode("utf-8"))
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def preview(
    image_set: ImageSet, count: int = 9, turn: int = 0
) -> tuple[tuple[npt.NDArray[np.uint8], str], ...]:
    """A few images with the names of their classes, of as many classes as possible.

    Args:
        image_set: Where from.
        count: At most this many.
        turn: Which example of each class, where it has so many.

    Returns:
        Pairs of pixels (H, W, C) and class name.
    """
    chosen = one_of_each(image_set.labels.tolist(), count, turn)
    pixels = image_set.read(chosen)
    names = [shown_name(image_set.classes[int(image_set.labels[index])]) for index in chosen]
    return tuple(zip(pixels, names, strict=True))


def one_of_each(labels: Sequence[int], count: int, turn: int = 0) -> list[int]:
    """Positions that show as many classes as possible, each by its `turn`-th example if it has one."""
    places: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        places.setdefault(label, []).append(position)
    chosen = [places[label][min(turn, len(places[label]) - 1)] for label in sorted(places)]
    seen = set(chosen)
    rest = [position for position in range(len(labels)) if position not in seen]
    return (chosen + rest)[:count]
