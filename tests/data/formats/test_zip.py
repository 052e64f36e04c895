"""Zips of image folders: what is unpacked, and every way an archive may mean harm."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.formats.zip import (
    LIMITS,
    ArchiveLimits,
    add_archive,
    list_added,
    safe_name,
    unpack_archive,
    unpack_cached,
)
from qaf_core.errors import DataError, RunCancelled

PICTURE = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()


def zip_of(entries: dict[str, bytes], **changes: Any) -> io.BytesIO:
    """A zip in memory; changes are set on the first entry before it is written."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, content) in enumerate(entries.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in changes.items() if number == 0 else ():
                setattr(info, field, value)
            archive.writestr(info, content, compress_type=info.compress_type)
    return stream


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def assert_refused(archive: Any, tmp_path: Path, message: str, **options: Any) -> None:
    """Refused in one line, and nothing is left anywhere."""
    place = tmp_path / "workspace"
    with pytest.raises(DataError, match=message) as caught:
        unpack_archive(archive, place / "images", name="parts.zip", **options)
    assert "\n" not in str(caught.value)
    assert "parts.zip" in str(caught.value)
    assert everything_below(tmp_path) == set()
    assert not (place / "images").exists()


# --- what is unpacked


def test_pictures_and_their_descriptions_are_unpacked_and_nothing_else(tmp_path: Path) -> None:
    archive = zip_of(
        {
            "left/1.png": PNG,
            "left/deeper/2.JPG": b"jpeg",
            "right/部品.webp": b"webp",
            "classes.txt": b"left\nright\n",
            "annotations.json": b"{}",
            "run.sh": b"#!/bin/sh",
            "inner.zip": b"PK",
            ".hidden/3.png": PNG,
            "__MACOSX/left/._1.png": PNG,
            "empty/": b"",
        }
    )
    told: list[tuple[int, int]] = []
    folder = unpack_archive(
        archive, tmp_path / "a" / "b", name="parts.zip", on_written=lambda *done: told.append(done)
    )
    expected = {"left/1.png", "left/deeper/2.JPG", "right/部品.webp", "classes.txt", "annotations.json"}
    assert everything_below(tmp_path) == {f"a/b/{name}" for name in expected}
    assert (folder / "left" / "1.png").read_bytes() == PNG
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in folder.rglob("*.*"))
    assert not (folder / "left" / "1.png").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ("set/left/1.png", "set/right/2.png", "set/classes.txt"),
            {"left/1.png", "right/2.png", "classes.txt"},
        ),
        (("set\\left\\1.png", "set\\right\\2.png"), {"left/1.png", "right/2.png"}),
        (("./left/1.png", "./right//2.png"), {"left/1.png", "right/2.png"}),
        (("left/1.png", "left/2.png"), {"left/1.png", "left/2.png"}),
        (("set/left/1.png", "other/2.png"), {"set/left/1.png", "other/2.png"}),
    ],
    ids=["wrapper", "backslashes", "dots", "one class", "no wrapper"],
)
def test_one_folder_around_everything_is_left_away(
    tmp_path: Path, names: tuple[str, ...], expected: set[str]
) -> None:
    folder = unpack_archive(zip_of(dict.fromkeys(names, PNG)), tmp_path / "images", name="parts.zip")
    assert everything_below(folder) == expected


def test_the_same_archive_is_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "parts.zip").write_bytes(zip_of({"left/1.png": PNG}).getvalue())
    folder = unpack_cached(tmp_path / "parts.zip", tmp_path / "cache")
    (folder / "mark").touch()
    assert unpack_cached(tmp_path / "parts.zip", tmp_path / "cache") == folder
    assert (folder / "mark").exists()
    (tmp_path / "parts.zip").write_bytes(zip_of({"left/2.png": PNG}).getvalue())
    assert unpack_cached(tmp_path / "parts.zip", tmp_path / "cache") != folder
    with pytest.raises(DataError, match="cannot be read; got No such file"):
        unpack_cached(tmp_path / "absent.zip", tmp_path / "cache")


def test_uploads_are_kept_in_the_workspace_under_a_plain_name(tmp_path: Path) -> None:
    upload = zip_of({"left/1.png": PNG})
    first = add_archive(tmp_path, upload, "../../part s\x1b.zip")
    assert first.parent == tmp_path / "data"
    assert first.name.startswith("part_s-")
    assert everything_below(tmp_path) == {f"data/{first.name}/left/1.png"}
    (tmp_path / "again.zip").write_bytes(upload.getvalue())
    assert add_archive(tmp_path, tmp_path / "again.zip", "part s.zip") == first
    second = add_archive(tmp_path, zip_of({"left/2.png": PNG}), "part s.zip")
    os.utime(first, (1, 1))
    assert list_added(tmp_path) == (second, first)
    assert list_added(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("parts.zip", "parts"),
        ("C:\\data\\my parts.v2.ZIP", "my_parts_v2"),
        ("部品.zip", "部品"),
        ("..", "images"),
        ("plain", "plain"),
        ("\udce9\u202e.zip", "images"),
        ("é" * 99 + ".zip", "é" * 30),
    ],
)
def test_folder_names_are_made_of_plain_characters(name: str, expected: str) -> None:
    assert safe_name(name) == expected


def test_a_large_upload_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    """Read from disk as it comes: the largest piece asked for is the one that is copied."""
    content = np.random.default_rng(0).bytes(3 << 20)
    asked: list[int] = []

    class Upload(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size)

    upload = Upload(zip_of({f"left/{number}.bmp": content for number in range(3)}).getvalue())
    add_archive(tmp_path, upload, "large.zip")
    assert max(asked) <= 1 << 20


# --- what is refused


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "left/../../out.png",
        "/etc/out.png",
        "\\out.png",
        "C:\\out.png",
        "c:out.png",
        "..\\out.png",
    ],
)
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(zip_of({"left/1.png": PNG, name: PNG}), tmp_path, "stay inside the folder")


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    link = zip_of({"left/1.png": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16)
    assert_refused(link, tmp_path, "a symbolic link left/1.png")
    pipe = zip_of({"left/1.png": b""}, external_attr=stat.S_IFIFO << 16)
    assert_refused(pipe, tmp_path, "a special file")


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    zeros = bytes(8 << 20)
    assert_refused(zip_of({"left/1.bmp": zeros}), tmp_path, "that unpack to 8,388,608; expected at most 100")
    many = zip_of({f"left/{number}.bmp": zeros[: 1 << 20] for number in range(9)})
    assert_refused(many, tmp_path, "that unpack to 9,437,184")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"entries": 2}, "3 entries; expected at most 2"),
        ({"total_bytes": 3 * len(PNG) - 1}, "bytes unpacked; expected at most"),
        ({"file_bytes": len(PNG) - 1}, "left/1.png of .* bytes; expected files of at most"),
        ({"directory_bytes": 100}, "a table of contents of 1.. bytes; expected at most 100"),
    ],
)
def test_archives_beyond_a_limit_are_refused(tmp_path: Path, limits: dict[str, int], message: str) -> None:
    archive = zip_of({f"left/{number}.png": PNG for number in (1, 2, 3)})
    assert_refused(archive, tmp_path, message, limits=ArchiveLimits(**limits))


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """The table of contents names one packed picture many times, as overlapping bombs do."""
    whole = zip_of({"left/1.png": PNG}).getvalue()
    place = whole.index(b"PK\x01\x02")
    entry, end = whole[place : whole.index(b"PK\x05\x06")], whole[whole.index(b"PK\x05\x06") :]
    names = [f"left/{number}.png".encode() for number in range(1, 10)]
    table = b"".join(entry.replace(b"left/1.png", name) for name in names)
    counts = struct.pack("<HHII", 9, 9, len(table), place)
    forged = io.BytesIO(whole[:place] + table + end[:8] + counts + end[20:])
    assert_refused(forged, tmp_path, "entries that overlap")


def test_a_header_that_lies_about_the_size_writes_no_more_than_it_says(tmp_path: Path) -> None:
    whole = zip_of({"left/1.bmp": bytes(range(256)) * 4096}).getvalue()
    place = whole.index(b"PK\x01\x02")
    forged = io.BytesIO(whole[: place + 24] + struct.pack("<I", 1000) + whole[place + 28 :])
    assert_refused(forged, tmp_path, "cannot be unpacked; got Bad CRC-32")


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    assert_refused(zip_of({"left/a.png": PNG, "LEFT/A.png": PNG}), tmp_path, "two entries named LEFT/A.png")
    nested = zip_of({"left/a.png": PNG, "left/a.png/b.png": PNG})
    assert_refused(nested, tmp_path, "cannot be unpacked")


def test_encrypted_and_unusual_entries_are_refused(tmp_path: Path) -> None:
    content = zip_of({"left/1.png": PNG}).getvalue()
    place = content.index(b"PK\x01\x02") + 8
    encrypted = io.BytesIO(content[:place] + b"\x01\x00" + content[place + 2 :])
    assert_refused(encrypted, tmp_path, "an encrypted entry left/1.png; expected no password")
    packed = zip_of({"left/1.png": PNG}, compress_type=zipfile.ZIP_LZMA)
    assert_refused(packed, tmp_path, "an unusual compression")


@pytest.mark.parametrize("name", ["left/" + "x" * 250 + ".png", "a/" * 20 + "1.png"])
def test_names_too_long_or_too_deep_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(zip_of({name: PNG}), tmp_path, "names of at most 200 bytes, 16 folders deep")


def test_hostile_names_are_shown_escaped(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        unpack_archive(zip_of({"../\x1b[31m\u202e.png": PNG}), tmp_path / "images", name="p\x1b.zip")
    assert "\\x1b[31m\\u202e.png" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip_of_pictures_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    assert_refused(io.BytesIO(content), tmp_path, "cannot be unpacked|holds no images")


def test_damage_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = bytearray(zip_of({"left/1.png": PNG, "right/2.png": PNG}).getvalue())
    whole[60:80] = bytes(20)
    assert_refused(io.BytesIO(bytes(whole)), tmp_path, "cannot be unpacked")
    cut = io.BytesIO(bytes(whole[: len(whole) // 2]))
    assert_refused(cut, tmp_path, "not a zip file")


def test_a_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise RunCancelled

    with pytest.raises(RunCancelled):
        unpack_archive(zip_of({"left/1.png": PNG}), tmp_path / "images", name="p.zip", on_written=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 256 * 2**20})())
    assert_refused(zip_of({"left/1.png": PNG}), tmp_path, "no space to unpack archive parts.zip; got 0 bytes")
    assert LIMITS.total_bytes > 256 * 2**20


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be unpacked.*--workspace"):
        unpack_archive(zip_of({"left/1.png": PNG}), tmp_path / "file" / "images", name="p.zip")
