"""Temporary folders, and faults for want of room in them told as what they are. Free of heavy imports."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qaf_core.errors import QafError, WorkspaceError

ROOM_BYTES = 2**20


@contextmanager
def scratch_folder(room_bytes: int = ROOM_BYTES) -> Iterator[Path]:
    """A temporary folder that is gone afterwards.

    Runtimes that write there tell a full disk in words of their own, or not at all. So what fails inside is
    told as a lack of room where afterwards there is none.

    Args:
        room_bytes: What must still fit into the folder after a failure, for it to have another cause.

    Raises:
        WorkspaceError: If the folder cannot be made, or something failed and there is no room left in it.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix="qaf-", ignore_cleanup_errors=True)
    except OSError as error:
        raise scratch_error(error.strerror or str(error)) from error
    with temporary as name:
        try:
            yield Path(name)
        except QafError:
            raise
        except Exception as error:
            if _lacks_room(error) or not _has_room(Path(name), room_bytes):
                raise scratch_error(" ".join(str(error).split())[:120]) from error
            raise


def scratch_error(reason: str) -> WorkspaceError:
    """The error for a temporary folder that takes no more.

    Args:
        reason: What was found, in a few words.
    """
    try:
        place = tempfile.gettempdir()
    except OSError:  # not even the current folder will do
        place = "no temporary folder"
    return WorkspaceError(
        "the temporary folder takes no more files",
        got=f"{place} ({reason})",
        remedy="free some space there, or name another folder in TMPDIR",
    )


def _lacks_room(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_room(folder: Path, room_bytes: int) -> bool:
    chunk = bytes(min(room_bytes, ROOM_BYTES))
    try:
        with (folder / "room").open("wb", buffering=0) as file:
            for _ in range(-(-room_bytes // len(chunk))):
                if file.write(chunk) < len(chunk):
                    return False
    except OSError:
        return False
    return True
