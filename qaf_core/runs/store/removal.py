"""Registered models taken off a workspace that has runs."""

from __future__ import annotations

from pathlib import Path

from qaf_core.data.workspace.registry import remove_model
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store


def remove_registered(workspace: Path, model_id: str) -> tuple[Path, ...]:
    """Take a model off, and what was uploaded for it unless a run or another model refers to it.

    Args:
        workspace: Where it is registered.
        model_id: Its id.

    Returns:
        What was deleted.

    Raises:
        WorkspaceError: If no such model is registered, or something of it cannot be deleted.
    """
    with Store(workspace) as store:
        rows = list_rows(store) + list_rows(store, deleted=True)
    used = {place for row in rows for place in row.places}
    return remove_model(workspace, model_id, used)
