"""Files written whole or not at all, and files kept by what they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from qaf_core.errors import WorkspaceError

_log = logging.getLogger("qaf_core")

UNUSED_SECONDS = 90 * 86_400  # what a cache was not asked for so long goes

T = TypeVar("T")


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; renamed to ``path`` at the end, deleted where something fails.

    Raises:
        WorkspaceError: If the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
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
            found = parse(path)
        except (OSError, MemoryError) as error:  # of the machine, and it may pass
            _log.warning("%s cannot be read now: %s", path, error)
            return None
        except Exception as error:  # each format has its own ways to be damaged
            _log.warning("%s is damaged and is dropped: %s", path, error)
            found = None
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
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
