"""Many pictures at once: order, memory, what cannot be read, and what is left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qaf_core.data.images import decode_pool
from qaf_core.data.images.decode import Pixels, UndecodableError
from qaf_core.data.images.decode_pool import ReadPictures, map_in_order, read_pictures
from qaf_core.data.images.image_set import digest_pixels
from qaf_core.errors import DataError, RunCancelled

SHAPE = (4, 5, 3)


def pixels_of(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


def read(count: int, decode: Callable[[int], Pixels] = pixels_of, **options: object) -> ReadPictures:
    return read_pictures(
        decode,
        range(count),
        SHAPE,
        name="parts",
        name_of=lambda number: f"{number}\x1b.png",
        **options,  # type: ignore[arg-type]
    )


def failing(numbers: set[int]) -> Callable[[int], Pixels]:
    def decode(number: int) -> Pixels:
        if number in numbers:
            raise UndecodableError("truncated")
        return pixels_of(number)

    return decode


@pytest.fixture(params=["stored", "decoded anew"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to hold pictures: the second is for sets too large to be stored."""
    if request.param == "decoded anew":
        monkeypatch.setattr(decode_pool, "LARGEST_STORE_BYTES", 100)
    return str(request.param)


def test_results_keep_their_order_and_come_from_several_threads() -> None:
    names: set[str] = set()

    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        names.add(threading.current_thread().name)
        return number

    assert list(map_in_order(slow, range(50), threads=4)) == list(range(50))
    assert len(names) > 1


def test_no_more_than_a_few_results_wait_for_their_use() -> None:
    started: list[int] = []
    results = map_in_order(lambda number: started.append(number), range(1000), threads=2)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 10
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qaf-decode")]


def test_pictures_are_read_alike_however_they_are_held(kind: str, tmp_path: Path) -> None:
    found = read(20, folder=tmp_path)
    pictures = found.pictures
    assert type(pictures).__name__ == {"stored": "StoredFilePictures"}.get(kind, "UnstoredPictures")
    expected = np.stack([pixels_of(number) for number in range(20)])
    assert (pictures.shape, len(pictures)) == ((20, *SHAPE), 20)
    np.testing.assert_array_equal(pictures[:], expected)
    np.testing.assert_array_equal(pictures[3:9:2], expected[3:9:2])
    np.testing.assert_array_equal(pictures[np.array([7, 7, 0])], expected[[7, 7, 0]])
    chunks = list(pictures.in_chunks(8))  # type: ignore[attr-defined]
    assert [len(chunk) for chunk in chunks] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    some = pictures.select(np.array([5, 2]))  # type: ignore[attr-defined]
    del pictures, found
    gc.collect()
    np.testing.assert_array_equal(some[:], expected[[5, 2]])
    assert some.digests == (digest_pixels(expected[5]), digest_pixels(expected[2]))
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_files_are_closed_with_their_pictures(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    if before is None:
        pytest.skip("this system does not list open files")
    found = read(5, folder=tmp_path)
    some = found.pictures.select(np.array([1]))  # type: ignore[attr-defined]
    del found, some
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_in_a_hundred_is_too_many_and_fewer_are_listed(kind: str, tmp_path: Path) -> None:
    found = read(301, failing({7, 200, 300}), folder=tmp_path)
    assert [(image.name, image.reason) for image in found.skipped] == [
        (f"{number}\\x1b.png", "truncated") for number in (7, 200, 300)
    ]
    assert len(found.pictures) == len(found.kept) == 298
    assert not {7, 200, 300} & set(found.kept.tolist())
    np.testing.assert_array_equal(found.pictures[7:8], pixels_of(8)[None])
    with pytest.raises(DataError) as caught:
        read(300, failing({7, 200, 299}), folder=tmp_path)
    assert str(caught.value) == (
        "3 of 300 images of parts cannot be read; got 7\\x1b.png (truncated), 200\\x1b.png (truncated), "
        "299\\x1b.png (truncated); expected fewer than 1 %; replace or remove them."
    )
    with pytest.raises(DataError, match="10 of 10 images.*and 5 more"):
        read(10, failing(set(range(10))), folder=tmp_path)


def test_one_bad_picture_in_a_large_set_may_fall_into_a_small_part(tmp_path: Path) -> None:
    assert len(read(20, failing({7}), folder=tmp_path, total=101).skipped) == 1
    for bad, whole in (({7}, 100), ({7, 8}, 100_000)):
        with pytest.raises(DataError, match="of 20 images"):
            read(20, failing(bad), folder=tmp_path, total=whole)


def test_a_full_disk_means_decoding_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _content: object, _place: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    found = read(20, folder=tmp_path)
    assert type(found.pictures).__name__ == "UnstoredPictures"
    np.testing.assert_array_equal(found.pictures[4:6], np.stack([pixels_of(4), pixels_of(5)]))


def test_an_image_that_goes_away_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "LARGEST_STORE_BYTES", 0)
    gone: set[int] = set()
    found = read(20, lambda number: failing(gone)(number), folder=tmp_path)
    gone.add(3)
    with pytest.raises(DataError, match="can no longer be read; got truncated"):
        list(found.pictures.in_chunks(4))  # type: ignore[attr-defined]


def test_reading_is_told_and_can_be_stopped(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    read(5, folder=tmp_path, on_read=lambda done, total: told.append((done, total)))
    assert told == [(number, 5) for number in range(1, 6)]

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise RunCancelled

    with pytest.raises(RunCancelled):
        read(1000, folder=tmp_path, on_read=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qaf-decode")]


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """200 pictures of 3 MB: what is in memory at once stays a few of them."""
    import tracemalloc

    shape = (1000, 1000, 3)
    found = None
    tracemalloc.start()
    try:
        found = read_pictures(
            lambda number: np.full(shape, number, np.uint8),
            range(200),
            shape,
            name="large",
            name_of=str,
            folder=tmp_path,
        )
        for chunk in found.pictures.in_chunks(4):  # type: ignore[attr-defined]
            assert chunk.shape[1:] == shape
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * shape[0] * shape[1] * 3
    assert found.pictures[199:][0, 0, 0, 0] == 199
