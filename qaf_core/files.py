"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qaf_core.errors import WorkspaceError


def write_file(path: Path, content: bytes) -> None:
    """Write ``content`` under a temporary name, then rename it to ``path``.

    Raises:
        WorkspaceError: If the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise WorkspaceError(
            "a file cannot be written",
            got=f"{path} ({error.strerror or error})",
            remedy="free some space, or choose another --workspace",
        ) from error
