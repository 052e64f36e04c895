"""The folder that holds the run store, the packed models, caches and logs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qaf_core.errors import WorkspaceError

__all__ = ["EXPORTS_FOLDER", "PACKED_NAME", "WORKSPACE_VARIABLE", "default_workspace", "open_workspace"]

WORKSPACE_VARIABLE = "QAF_WORKSPACE"
PACKED_NAME = "model.safetensors"  # the packed network, in a run's folder
EXPORTS_FOLDER = "exports"  # there too: files made to be taken away
_REMEDY = f"choose a folder you can write to with --workspace or {WORKSPACE_VARIABLE}"


def default_workspace() -> Path:
    """``$QAF_WORKSPACE``, or the user's own data folder."""
    named = os.environ.get(WORKSPACE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "qaf"


def open_workspace(folder: Path) -> Path:
    """Create ``folder`` where it is missing and check that files can be written there.

    Returns:
        Its absolute path.

    Raises:
        WorkspaceError: If it cannot be made or written to.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorkspaceError(
            "the workspace cannot be written to", got=f"{folder} ({error.strerror or error})", remedy=_REMEDY
        ) from error
    return folder
