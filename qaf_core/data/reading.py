"""Many pictures read by several threads, in order, with little memory.

Decoding and resizing let go of Python's lock, so threads use all cores. What was decoded once is kept in a
nameless temporary file at the model's size: the second network is evaluated without decoding again. Sets that
are too large for that are decoded anew each time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qaf_core.data.decoding import Pixels, UndecodableError
from qaf_core.data.images import Index, Pictures, SkippedImage, digest_pixels, shown_name
from qaf_core.errors import DataError

#: Decodes the picture with this number, or raises UndecodableError.
Decoder = Callable[[int], Pixels]

MOST_THREADS = 8
LARGEST_STORE_BYTES = 4 * 2**30
_FREE_SHARE = 4  # a store takes at most this fraction of the free disk
_AHEAD = 4  # pictures decoded ahead by each thread
_LEAST_SHARE = 100  # fewer than one in so many may be skipped
_MOST_NAMED = 5
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


def map_in_order(
    function: Callable[[int], _Result], numbers: Sequence[int], threads: int | None = None
) -> Generator[_Result, None, None]:
    """Results of a function in order, computed by several threads a little ahead of their use."""
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
        folder: Where the temporary file goes; None for the system's place.
        on_read: Told how many of how many are done; may raise to stop.

    Raises:
        DataError: When 1 % of them or more cannot be read, or none can.
    """
    store = _Store.make(len(numbers) * prod(shape), folder)
    skipped: list[SkippedImage] = []
    kept: list[int] = []
    digests: list[bytes] = []
    try:
        with contextlib.closing(map_in_order(_try_to(decode), numbers)) as results:
            for position, result in enumerate(results):
                if isinstance(result, UndecodableError):
                    shown = shown_name(name_of(numbers[position]))
                    skipped.append(SkippedImage(name=shown, reason=str(result)))
                else:
                    pixels, digest = result
                    store = store and store.append(pixels)
                    kept.append(position)
                    digests.append(digest)
                if on_read is not None:
                    on_read(position + 1, len(numbers))
        _check_skipped(name, skipped, len(numbers))
        if store is not None:
            pictures: Pictures = store.finish(shape, tuple(digests))
        else:
            again = np.asarray(numbers, np.intp)[kept]
            pictures = UnstoredPictures(decode, again, shape, tuple(digests))
    finally:
        if store is not None:
            store.close()
    return ReadPictures(pictures=pictures, kept=np.array(kept, np.intp), skipped=tuple(skipped))


def _try_to(decode: Decoder) -> Callable[[int], tuple[Pixels, bytes] | UndecodableError]:
    def attempt(number: int) -> tuple[Pixels, bytes] | UndecodableError:
        try:
            pixels = decode(number)
        except UndecodableError as error:
            return error
        return pixels, digest_pixels(pixels)

    return attempt


def _check_skipped(name: str, skipped: Sequence[SkippedImage], count: int) -> None:
    if not skipped or len(skipped) * _LEAST_SHARE < count:
        return
    first = [f"{image.name} ({image.reason})" for image in skipped[:_MOST_NAMED]]
    more = f" and {len(skipped) - _MOST_NAMED} more" if len(skipped) > _MOST_NAMED else ""
    raise DataError(
        f"{len(skipped):,} of {count:,} images of {name} cannot be read",
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
        found = np.empty((len(rows), *self._shape), np.uint8)
        for image, row in zip(found, rows.tolist(), strict=True):
            content = os.pread(self._descriptor, size, row * size)
            image[...] = np.frombuffer(content, np.uint8).reshape(self._shape)
        return found

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
        found = np.empty((len(numbers), *self._shape), np.uint8)
        for place, pixels in enumerate(self._decoded(numbers)):
            found[place] = pixels
        return found

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
    """The file decoded pictures are appended to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._count = 0

    @classmethod
    def make(cls, size_bytes: int, folder: Path | None) -> _Store | None:
        """An empty one, or None where so much should not or cannot be stored."""
        place = folder or Path(tempfile.gettempdir())
        try:
            place.mkdir(parents=True, exist_ok=True)
            allowed = min(LARGEST_STORE_BYTES, shutil.disk_usage(place).free // _FREE_SHARE)
            if size_bytes > allowed:
                return None
            with tempfile.TemporaryFile(dir=place) as file:
                return cls(os.dup(file.fileno()))
        except OSError:
            return None

    def append(self, pixels: Pixels) -> _Store | None:
        """Write one picture; None, and the file is gone, when the disk is full."""
        content = memoryview(pixels.tobytes())
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:
            self.close()
            return None
        self._count += 1
        return self

    def finish(self, shape: tuple[int, int, int], digests: tuple[bytes, ...]) -> StoredFilePictures:
        """The pictures written."""
        return StoredFilePictures(os.dup(self._descriptor), np.arange(self._count), shape, digests)

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
