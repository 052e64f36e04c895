"""Files written whole or not at all, and files kept by what they were made from."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from qaf_core.errors import WorkspaceError
from qaf_core.text.said import say

_log = logging.getLogger("qaf_core")

_user_mask = os.umask(0o077)  # can only be read by setting it
os.umask(_user_mask)
_private: set[Path] = set()
PART = ".part"  # ends the names of files that are being written
STILL_SECONDS = 60.0
UNUSED_SECONDS = 90 * 86_400  # what a cache was not asked for so long goes

T = TypeVar("T")


def keep_private(folder: Path) -> None:
    """From now on whatever this process makes is its user's alone; files outside such folders are shared."""
    os.umask(0o077)
    _private.add(folder)


def share(path: Path) -> None:
    """Give what this process made, a folder with all in it too, the rights the user's files usually have."""
    if not any(path.is_relative_to(folder) for folder in _private):
        for each in (path, *path.rglob("*")):
            each.chmod((0o777 if each.is_dir() else 0o666) & ~_user_mask)


def sweep_parts(paths: Iterable[Path]) -> None:
    """Delete those that a process left half written when it was killed."""
    for path in paths:
        writer = re.fullmatch(rf".*\.(\d+)(-\d+)?{re.escape(PART)}", path.name)
        with contextlib.suppress(OSError):
            # Of a process in another container no number is known here: what still grows is left alone.
            still = path.stat().st_mtime < time.time() - STILL_SECONDS
            if writer is not None and still and not _lives(int(writer[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to ``path`` at the end, deleted where something fails.

    Raises:
        WorkspaceError: If the disk is full or the folder cannot be written to.
    """
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    except ValueError as error:
        raise WorkspaceError("a file needs a name", got=str(path)) from error
    try:
        if path.exists() and not path.is_file():  # a folder, or a device that would be gone
            raise WorkspaceError("a file cannot be written", got=say("{path}, which is no file", path=path))
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_parts(path.parent.glob(f".{glob.escape(path.name)}.*{PART}"))
        yield temporary
        share(temporary)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise WorkspaceError(
            "a file cannot be written",
            got=f"{path} ({error.strerror or error})",
            remedy="free some space, or choose another --workspace",
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; raises as :func:`appearing`."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, *, for_people: bool = False) -> None:
    """Write a value as JSON, indented and in its own letters for people; raises as :func:`appearing`."""
    text = json.dumps(value, indent=1, ensure_ascii=False) if for_people else json.dumps(value)
    write_file(path, text.encode())


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote; None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def digest_of(*parts: Any) -> str:
    """32 hexadecimal digits made from content: bytes, also those of arrays, as they are, the rest as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        is_bytes = isinstance(part, bytes | memoryview)
        content = memoryview(part if is_bytes else json.dumps(part, sort_keys=True).encode())
        digest.update(f"{content.nbytes} ".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


class ContentCache:
    """Files named by a digest of what they were made from, versions of formats and programs included.

    Nothing that fails here stops any work: what cannot be read is deleted and made anew, what cannot be
    written is made again another time. Files that nobody asked for in 90 days are deleted.

    Args:
        folder: Made when the first file is kept.
        suffix: Of the files' names.
    """

    _swept: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path, suffix: str = ".json") -> None:
        self.folder, self._suffix = folder, suffix

    def path(self, key: str) -> Path:
        """Where a file is kept, there or not."""
        return self.folder / f"{key}{self._suffix}"

    def read(self, key: str, parse: Callable[[Path], T | None] = read_json) -> T | None:
        """What is kept under a key; None where there is nothing, or something damaged.

        Args:
            key: As :func:`digest_of` makes it.
            parse: Reads the file; it raises anything, or returns None, where that is damaged.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            value = parse(path)
        except (OSError, MemoryError) as error:  # of the machine, and it may pass
            _log.warning("%s cannot be read now: %s", path, error)
            return None
        except Exception as error:  # each format has its own ways to be damaged
            _log.warning("%s is damaged and is dropped: %s", path, error)
            value = None
        if value is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
            return value
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def keep(self, key: str, value: Any) -> None:
        """Keep bytes, or a value as JSON, under a key."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        with contextlib.suppress(WorkspaceError):
            write_file(self.path(key), content)
            if self.folder not in self._swept:
                self._swept.add(self.folder)
                self._drop_unused()

    def _drop_unused(self) -> None:
        oldest = time.time() - UNUSED_SECONDS
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink() if path.is_file() else path.rmdir()
