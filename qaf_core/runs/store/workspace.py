"""The folder that holds the run store, the packed models, caches and logs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from qaf_core.errors import WorkspaceError
from qaf_core.files import keep_private
from qaf_core.text.said import say

DATABASE_NAME = "runs.sqlite"
WORKSPACE_VARIABLE = "QAF_WORKSPACE"
PACKED_NAME = "model.safetensors"  # the packed network, in a run's folder
EXPORTS_FOLDER = "exports"  # there too: files made to be taken away
# What this product makes in a workspace; others' files that lie beside it are left alone.
_OWN = (
    "runs", "cache", "logs", "models", "data", "classes", "incoming", "plans",
    "settings.json", "settings.lock", "supervisor.lock",
    *(f"{DATABASE_NAME}{end}" for end in ("", "-wal", "-shm", "-journal")),
)  # fmt: skip
_REMEDY = say("choose a folder you can write to with --workspace or {name}", name=WORKSPACE_VARIABLE)


def default_workspace() -> Path:
    """``$QAF_WORKSPACE``, or the user's own data folder."""
    named = os.environ.get(WORKSPACE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "qaf"


def open_workspace(folder: Path) -> Path:
    """Create ``folder`` where it is missing, make it the user's alone, and check that it can be written to.

    Returns:
        Its absolute path.

    Raises:
        WorkspaceError: If it cannot be made or written to.
    """
    folder = folder.expanduser().absolute()
    keep_private(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _close_to_others(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorkspaceError(
            "the workspace cannot be written to", got=f"{folder} ({error.strerror or error})", remedy=_REMEDY
        ) from error
    return folder


def _close_to_others(folder: Path) -> None:
    """Take the rights of others off what earlier versions made, as far as it is the user's."""
    if folder.stat().st_uid != os.getuid() or not folder.stat().st_mode & 0o077:
        return
    for own in (folder / name for name in _OWN if not (folder / name).is_symlink()):
        _close(own)
        for place, folders, files in os.walk(own):
            for entry in (*folders, *files):
                _close(Path(place, entry))
    if set(os.listdir(folder)) <= set(_OWN):
        folder.chmod(0o700)  # at the end: where it is cut short, the next time begins anew


def _close(path: Path) -> None:
    with contextlib.suppress(OSError):
        status = path.lstat()
        if status.st_uid == os.getuid() and status.st_mode & 0o077 and not path.is_symlink():
            path.chmod(status.st_mode & 0o700)
