"""Image folders that come as a zip: checked entry by entry before anything is written, then unpacked whole.

Only pictures and the files that describe them are written, only below the folder asked for, and that folder
appears under its name once everything is in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from qaf_core.data.images.decode import IMAGE_SUFFIXES, LARGEST_FILE_BYTES
from qaf_core.data.images.image_set import shown_name
from qaf_core.errors import DataError
from qaf_core.text.said import Said, say

#: Files that go with pictures.
DESCRIPTIONS = ("classes.txt", "annotations.json")
DATA_FOLDER = "data"

_CHUNK_BYTES = 1 << 20
_LONGEST_PART_BYTES = 200
_DEEPEST = 16
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVE_BYTES = 256 * 2**20  # of the disk, left free


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold at most.

    Attributes:
        entries: Files and folders.
        directory_bytes: Its table of contents, which is read into memory.
        total_bytes: All files, unpacked.
        file_bytes: One file, unpacked.
        ratio: Unpacked to packed size of one file, and of all together.
        ratio_from_bytes: The ratio counts from this unpacked size on.
    """

    entries: int = 300_000
    directory_bytes: int = 32 * 2**20
    total_bytes: int = 32 * 2**30
    file_bytes: int = LARGEST_FILE_BYTES
    ratio: int = 100
    ratio_from_bytes: int = 4 * 2**20


LIMITS = ArchiveLimits()


def unpack_archive(
    archive: Path | BinaryIO,
    into: Path,
    *,
    name: str,
    limits: ArchiveLimits = LIMITS,
    on_written: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack the pictures of a zip into a folder that does not exist yet.

    A single folder around everything is left away. Files that are neither pictures nor describe them, hidden
    ones and archives inside the archive are not unpacked.

    Args:
        archive: The zip, or a file open for reading, which is read piece by piece.
        into: The folder to make; where it exists it is taken as it is, unpacked before.
        name: What to call the archive in messages.
        limits: What it may hold.
        on_written: Told how many of how many bytes are written; may raise to stop.

    Returns:
        The folder.

    Raises:
        DataError: When the archive is damaged, too large, or holds what must not be unpacked.
    """
    if into.is_dir():
        return into
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with _open_zip(archive, limits, name) as opened:
            entries = _checked_entries(opened, limits, _length(archive), name)
            _check_space(into.parent, sum(info.file_size for info in entries.values()), name)
            temporary = Path(tempfile.mkdtemp(prefix=f".{into.name[:40]}.", suffix=".part", dir=into.parent))
            try:
                _write_entries(opened, entries, temporary, on_written)
                _put_in_place(temporary, into)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except DAMAGE as error:
        raise DataError(
            say("archive {name} cannot be unpacked", name=shown_name(name)),
            got=_first_line(error),
            remedy="make it again as a plain .zip",
        ) from error
    except OSError as error:
        raise DataError(
            say("archive {name} cannot be unpacked", name=shown_name(name)),
            got=error.strerror or _first_line(error),
            remedy="free some space, or choose another --workspace",
        ) from error
    return into


def unpack_cached(archive: Path, cache: Path) -> Path:
    """The folder an archive is unpacked to, once for each content.

    Args:
        archive: The zip.
        cache: Folder of unpacked archives.

    Raises:
        DataError: As `unpack_archive`.
    """
    return unpack_archive(archive, cached_place(archive, cache), name=archive.name)


def cached_place(archive: Path, cache: Path) -> Path:
    """Where `unpack_cached` unpacks an archive, whether it has done so or not.

    Raises:
        DataError: When the archive cannot be read.
    """
    try:
        with archive.open("rb") as file:
            return cache / _digest(file)
    except OSError as error:
        raise DataError(
            say("archive {name} cannot be read", name=shown_name(archive.name)),
            got=error.strerror or error,
        ) from error


def add_archive(
    workspace: Path,
    upload: Path | BinaryIO,
    name: str,
    on_written: Callable[[int, int], None] | None = None,
) -> Path:
    """Keep an uploaded zip of an image folder in the workspace, unpacked.

    It is read piece by piece, and no copy of the zip is made. The same archive is unpacked once.

    Args:
        workspace: The workspace.
        upload: The zip, or a file open for reading.
        name: Its file name, as the user's browser tells it.
        on_written: As in `unpack_archive`.

    Returns:
        The image folder, below ``workspace/data``.

    Raises:
        DataError: As `unpack_archive`.
    """
    try:
        if isinstance(upload, Path):
            with upload.open("rb") as file:
                digest = _digest(file)
        else:
            digest = _digest(upload)
    except OSError as error:
        raise DataError(
            say("archive {name} cannot be read", name=shown_name(name)), got=error.strerror or error
        ) from error
    folder = workspace / DATA_FOLDER / f"{safe_name(name)}-{digest[:8]}"
    return unpack_archive(upload, folder, name=name, on_written=on_written)


def list_added(workspace: Path) -> tuple[Path, ...]:
    """The image folders that `add_archive` made, newest first."""
    try:
        folders = [
            folder
            for folder in (workspace / DATA_FOLDER).iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        ]
    except OSError:
        return ()
    return tuple(sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True))


def safe_name(name: str) -> str:
    """A folder's name made from a file's: letters, digits, `-` and `_` of any script, at most 60."""
    last = PurePosixPath(name.replace("\\", "/")).name
    stem = last[:-4] if last.lower().endswith(".zip") else last
    plain = re.sub(r"[^\w-]+", "_", stem.encode("utf-8", "replace").decode("utf-8")).strip("_-")
    return plain.encode()[:60].decode("utf-8", "ignore") or "images"


# --- checks


#: What a damaged archive makes Python's zip reader raise.
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class _CappedFile:
    """A file that refuses to be read in one large piece, as the zip reader takes a table of contents."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file, self._most_bytes = file, most_bytes
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > self._most_bytes:
            raise _TooLargeError(size)
        return self._file.read(size)


class _TooLargeError(Exception):
    """A table of contents of so many bytes."""


@contextmanager
def _open_zip(archive: Path | BinaryIO, limits: ArchiveLimits, name: str) -> Iterator[zipfile.ZipFile]:
    if isinstance(archive, Path):
        with archive.open("rb") as file, _open_zip(file, limits, name) as opened:
            yield opened
        return
    archive.seek(0)
    try:
        opened = zipfile.ZipFile(cast(BinaryIO, _CappedFile(archive, limits.directory_bytes)))
    except _TooLargeError as error:
        raise _refusal(
            name,
            say("a table of contents of {size:,} bytes", size=error.args[0]),
            say("at most {most:,}", most=limits.directory_bytes),
        ) from error
    with opened:
        yield opened


def _checked_entries(
    opened: zipfile.ZipFile, limits: ArchiveLimits, archive_bytes: int, name: str
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The entries to unpack by their place, once every entry of the archive is found harmless."""
    infos = opened.infolist()
    if len(infos) > limits.entries:
        raise _refusal(
            name, say("{count:,} entries", count=len(infos)), say("at most {most:,}", most=limits.entries)
        )
    entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    total, packed = 0, 0
    for info in infos:
        place = _checked_place(info, name)
        if info.is_dir() or not _is_relevant(place):
            continue
        _check_entry(info, limits, name)
        folded = str(place).casefold()
        if folded in seen:
            raise _refusal(
                name, say("two entries named {name}", name=shown_name(str(place))), say("one of each name")
            )
        seen.add(folded)
        total, packed = total + info.file_size, packed + info.compress_size
        entries[place] = info
    if packed > archive_bytes:
        raise _refusal(name, say("entries that overlap"), say("each file once"))
    if total > limits.total_bytes:
        raise _refusal(
            name, say("{size:,} bytes unpacked", size=total), say("at most {most:,}", most=limits.total_bytes)
        )
    if total > limits.ratio_from_bytes and total > packed * limits.ratio:
        raise _refusal(
            name,
            say("{packed:,} bytes that unpack to {size:,}", packed=packed, size=total),
            say("at most {most} times", most=limits.ratio),
        )
    if not any(place.name.lower().endswith(IMAGE_SUFFIXES) for place in entries):
        raise DataError(
            say("archive {name} holds no images", name=shown_name(name)), expected=", ".join(IMAGE_SUFFIXES)
        )
    return _without_wrapper(entries)


def _checked_place(info: zipfile.ZipInfo, name: str) -> PurePosixPath:
    """Where an entry belongs: below the folder, by a plain path."""
    written = info.filename.replace("\\", "/")
    parts = [part for part in written.split("/") if part not in ("", ".")]
    if written.startswith("/") or ".." in parts or _DRIVE.match(written):
        raise _refusal(
            name,
            say("an entry {name}", name=shown_name(info.filename)),
            say("entries that stay inside the folder"),
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        link = kind == stat.S_IFLNK
        what = say(
            "a symbolic link {name}" if link else "a special file {name}", name=shown_name(info.filename)
        )
        raise _refusal(name, what, say("plain files and folders"))
    if len(parts) > _DEEPEST or any(
        len(part.encode("utf-8", "surrogatepass")) > _LONGEST_PART_BYTES for part in parts
    ):
        raise _refusal(
            name,
            say("an entry {name}", name=shown_name(info.filename)),
            say(
                "names of at most {most} bytes, {deepest} folders deep",
                most=_LONGEST_PART_BYTES,
                deepest=_DEEPEST,
            ),
        )
    return PurePosixPath(*parts)


def _is_relevant(place: PurePosixPath) -> bool:
    if any(part.startswith((".", "__MACOSX")) for part in place.parts):
        return False
    return place.name in DESCRIPTIONS or place.name.lower().endswith(IMAGE_SUFFIXES)


def _check_entry(info: zipfile.ZipInfo, limits: ArchiveLimits, name: str) -> None:
    shown = shown_name(info.filename)
    if info.flag_bits & 0x1:
        raise _refusal(name, say("an encrypted entry {name}", name=shown), say("no password"))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refusal(
            name,
            say("an unusual compression of {name}", name=shown),
            say("deflate, as every program writes it"),
        )
    if info.file_size > limits.file_bytes:
        got = say("{name} of {size:,} bytes", name=shown, size=info.file_size)
        raise _refusal(name, got, say("files of at most {most:,}", most=limits.file_bytes))
    if info.file_size > max(limits.ratio_from_bytes, info.compress_size * limits.ratio):
        raise _refusal(
            name,
            say(
                "{name}: {packed:,} bytes that unpack to {size:,}",
                name=shown,
                packed=info.compress_size,
                size=info.file_size,
            ),
            say("at most {most} times", most=limits.ratio),
        )


def _without_wrapper(
    entries: dict[PurePosixPath, zipfile.ZipInfo],
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The same without the one folder around all pictures' folders, if there is one."""
    pictures = [place for place in entries if place.name not in DESCRIPTIONS]
    first = {place.parts[0] for place in entries}
    if len(first) > 1 or any(len(place.parts) < 3 for place in pictures):
        return entries
    return {PurePosixPath(*place.parts[1:]): info for place, info in entries.items()}


def _check_space(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free - _RESERVE_BYTES
    if needed > free:
        raise DataError(
            say("no space to unpack archive {name}", name=shown_name(name)),
            got=say("{size:,} bytes free", size=max(0, free)),
            expected=f"{needed:,}",
            remedy="free some space, or choose another --workspace",
        )


def _refusal(name: str, got: Said, expected: Said) -> DataError:
    return DataError(
        say("archive {name} is refused", name=shown_name(name)),
        got=got,
        expected=expected,
        remedy="make a plain .zip of the image folder",
    )


# --- writing


def _write_entries(
    opened: zipfile.ZipFile,
    entries: dict[PurePosixPath, zipfile.ZipInfo],
    folder: Path,
    on_written: Callable[[int, int], None] | None,
) -> None:
    total = sum(info.file_size for info in entries.values())
    done = 0
    for place, info in entries.items():
        target = folder.joinpath(*place.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The reader never gives more than the size that was checked.
        with opened.open(info) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file, _CHUNK_BYTES)
        done += info.file_size
        if on_written is not None:
            on_written(done, total)


def _put_in_place(temporary: Path, into: Path) -> None:
    temporary.chmod(0o755)
    try:
        temporary.rename(into)
    except OSError:
        if not into.is_dir():  # another process has just unpacked the same
            raise


def _length(archive: Path | BinaryIO) -> int:
    return archive.stat().st_size if isinstance(archive, Path) else archive.seek(0, os.SEEK_END)


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
