"""Many pictures read by several threads, in order, with little memory.

Decoding and resizing let go of Python's lock, so threads use all cores. What was decoded once is kept in a
nameless temporary file at the model's size: the second network is evaluated without decoding again. Sets that
are too large for that are decoded anew each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qaf_core.data.images.decode import Pixels, UndecodableError
from qaf_core.data.images.image_set import Index, Pictures, SkippedImage, digest_pixels, shown_name
from qaf_core.errors import DataError
from qaf_core.text.said import say

#: Decodes the picture with this number, or raises UndecodableError.
Decoder = Callable[[int], Pixels]

MOST_THREADS = 8
LARGEST_STORE_BYTES = 4 * 2**30
_FREE_SHARE = 4  # a store takes at most this fraction of the free disk
_AHEAD = 4  # pictures decoded ahead by each thread
_LEAST_SHARE = 100  # fewer than one in so many may be skipped
_MOST_NAMED = 5
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class ReadPictures:
    """What became of the pictures asked for.

    Attributes:
        pictures: Those that could be read, in the order asked.
        kept: (N,) their positions among those asked for.
        skipped: The others.
    """

    pictures: Pictures
    kept: npt.NDArray[np.intp]
    skipped: tuple[SkippedImage, ...]


def usable_cores() -> int:
    """Processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Have glibc hold on to freed memory as it does once large buffers have come and gone.

    Before that it gives the buffers of every picture back to the system and takes them again page by page,
    which is a fifth of the time to read one.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
        library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)


def map_in_order(
    function: Callable[[int], _Result], numbers: Sequence[int], threads: int | None = None
) -> Generator[_Result, None, None]:
    """Results of a function in order, computed by several threads a little ahead of their use."""
    _keep_freed_memory()
    threads = threads or min(usable_cores(), MOST_THREADS)
    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="qaf-decode")
    try:
        for number in numbers:
            pending.append(pool.submit(function, number))
            if len(pending) > threads * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_pictures(
    decode: Decoder,
    numbers: Sequence[int],
    shape: tuple[int, int, int],
    *,
    name: str,
    name_of: Callable[[int], str],
    total: int = 0,
    folder: Path | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> ReadPictures:
    """Decode pictures once, leave out those that cannot be, and keep the others on disk.

    Args:
        decode: Decodes one picture to (H, W, C); called from several threads.
        numbers: Which pictures, in this order.
        shape: (H, W, C) of each.
        name: What they are, for messages.
        name_of: File name of a picture.
        total: How many pictures there are, of which these were chosen.
        folder: Where the temporary file goes; None for the system's place.
        on_read: Told how many of how many are done; may raise to stop.

    Raises:
        DataError: When 1 % of them or more cannot be read; a single one among more than 100 may be unreadable
            however few of them are chosen.
    """
    store = _Store.make(len(numbers), prod(shape), folder)
    skipped: list[SkippedImage] = []
    kept: list[int] = []
    digests: list[bytes] = []

    def work(position: int) -> bytes | UndecodableError:
        try:
            pixels = decode(numbers[position])
        except UndecodableError as error:
            return error
        if store is not None:
            store.write(position, pixels)
        return digest_pixels(pixels)

    try:
        with contextlib.closing(map_in_order(work, range(len(numbers)))) as results:
            for position, result in enumerate(results):
                if isinstance(result, UndecodableError):
                    shown = shown_name(name_of(numbers[position]))
                    skipped.append(SkippedImage(name=shown, reason=str(result)))
                else:
                    kept.append(position)
                    digests.append(result)
                if on_read is not None:
                    on_read(position + 1, len(numbers))
        _check_skipped(name, skipped, len(numbers), total)
        rows = np.array(kept, np.intp)
        stored = store.pictures(rows, shape, tuple(digests)) if store is not None else None
    finally:
        if store is not None:
            store.close()
    if stored is not None:
        return ReadPictures(pictures=stored, kept=rows, skipped=tuple(skipped))
    again = UnstoredPictures(decode, np.asarray(numbers, np.intp)[rows], shape, tuple(digests))
    return ReadPictures(pictures=again, kept=rows, skipped=tuple(skipped))


def _check_skipped(name: str, skipped: Sequence[SkippedImage], count: int, total: int) -> None:
    if len(skipped) <= (max(count, min(total, _LEAST_SHARE + 1)) - 1) // _LEAST_SHARE:
        return
    first = [f"{image.name} ({image.reason})" for image in skipped[:_MOST_NAMED]]
    more = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
    raise DataError(
        say(
            "{count:,} of {count2:,} images of {name} cannot be read",
            count=len(skipped),
            count2=count,
            name=name,
        ),
        got=", ".join(first) + more,
        expected="fewer than 1 %",
        remedy="replace or remove them",
    )


class StoredFilePictures:
    """Pictures of one shape behind one another in a file that has no name and vanishes with them.

    Args:
        descriptor: The file, which is closed with these pictures.
        rows: (N,) their places in the file.
        shape: (H, W, C) of each.
        digests: Of each.
    """

    def __init__(
        self,
        descriptor: int,
        rows: npt.NDArray[np.intp],
        shape: tuple[int, int, int],
        digests: tuple[bytes, ...],
    ) -> None:
        self._descriptor, self._rows, self._shape, self.digests = descriptor, rows, shape, digests
        weakref.finalize(self, os.close, descriptor)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index, /) -> Pixels:
        rows = self._rows[index]
        size = prod(self._shape)
        batch = np.empty((len(rows), *self._shape), np.uint8)
        for image, row in zip(batch, rows.tolist(), strict=True):
            content = os.pread(self._descriptor, size, row * size)
            image[...] = np.frombuffer(content, np.uint8).reshape(self._shape)
        return batch

    def select(self, chosen: npt.NDArray[np.intp]) -> StoredFilePictures:
        """Some of the pictures, in the same file."""
        digests = tuple(self.digests[index] for index in chosen)
        return StoredFilePictures(os.dup(self._descriptor), self._rows[chosen], self._shape, digests)

    def in_chunks(self, size: int) -> Iterator[Pixels]:
        """All pictures in order, size at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class UnstoredPictures:
    """Pictures decoded each time they are read.

    Args:
        decode: Decodes one picture to (H, W, C); called from several threads.
        numbers: (N,) which pictures.
        shape: (H, W, C) of each.
        digests: Of each.
    """

    def __init__(
        self,
        decode: Decoder,
        numbers: npt.NDArray[np.intp],
        shape: tuple[int, int, int],
        digests: tuple[bytes, ...],
    ) -> None:
        self._decode, self._numbers, self._shape, self.digests = decode, numbers, shape, digests

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self), *self._shape)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Index, /) -> Pixels:
        numbers = self._numbers[index].tolist()
        batch = np.empty((len(numbers), *self._shape), np.uint8)
        for place, pixels in enumerate(self._decoded(numbers)):
            batch[place] = pixels
        return batch

    def select(self, chosen: npt.NDArray[np.intp]) -> UnstoredPictures:
        """Some of the pictures."""
        digests = tuple(self.digests[index] for index in chosen)
        return UnstoredPictures(self._decode, self._numbers[chosen], self._shape, digests)

    def in_chunks(self, size: int) -> Iterator[Pixels]:
        """All pictures in order, size at a time, decoded a little ahead."""
        with contextlib.closing(self._decoded(self._numbers.tolist())) as decoded:
            chunk: list[Pixels] = []
            for pixels in decoded:
                chunk.append(pixels)
                if len(chunk) == size:
                    yield np.stack(chunk)
                    chunk = []
            if chunk:
                yield np.stack(chunk)

    def _decoded(self, numbers: Sequence[int]) -> Generator[Pixels, None, None]:
        try:
            yield from map_in_order(self._decode, numbers)
        except UndecodableError as error:
            raise DataError(
                "an image can no longer be read",
                got=str(error),
                remedy="leave the images in place while a run is at work",
            ) from error


class _Store:
    """The file decoded pictures are written to, each at its own place, by several threads."""

    def __init__(self, descriptor: int, picture_bytes: int) -> None:
        self._descriptor, self._picture_bytes = descriptor, picture_bytes
        self._full = False

    @classmethod
    def make(cls, count: int, picture_bytes: int, folder: Path | None) -> _Store | None:
        """An empty one, or None where so much should not or cannot be stored."""
        place = folder or Path(tempfile.gettempdir())
        try:
            place.mkdir(parents=True, exist_ok=True)
            allowed = min(LARGEST_STORE_BYTES, shutil.disk_usage(place).free // _FREE_SHARE)
            if count * picture_bytes > allowed:
                return None
            with tempfile.TemporaryFile(dir=place) as file:
                return cls(os.dup(file.fileno()), picture_bytes)
        except OSError:
            return None

    def write(self, row: int, pixels: Pixels) -> None:
        """Write one picture to its place, unless the disk is full."""
        if self._full:
            return
        content, place = np.ascontiguousarray(pixels).data.cast("B"), row * self._picture_bytes
        try:
            while content:
                written = os.pwrite(self._descriptor, content, place)
                content, place = content[written:], place + written
        except OSError:
            self._full = True

    def pictures(
        self, rows: npt.NDArray[np.intp], shape: tuple[int, int, int], digests: tuple[bytes, ...]
    ) -> StoredFilePictures | None:
        """The pictures at some places, or None when the disk was full."""
        if self._full:
            return None
        return StoredFilePictures(os.dup(self._descriptor), rows, shape, digests)

    def close(self) -> None:
        """Let go of the file; pictures made of it keep it."""
        os.close(self._descriptor)
