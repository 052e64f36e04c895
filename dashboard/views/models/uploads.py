"""What was uploaded into the workspace, how large it is, and what of it may be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from dashboard.text import _, listed, plural
from dashboard.widgets import ui
from qaf_core.data.formats.sources import lies_in
from qaf_core.data.formats.zip import list_added
from qaf_core.data.models.source import ModelSource
from qaf_core.data.workspace.registry import WEIGHT_SUFFIXES
from qaf_core.data.workspace.uploads import MODELS_FOLDER, delete_upload
from qaf_core.errors import QafError
from qaf_core.runs.listing import list_rows
from qaf_core.text.units import size_text


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Something uploaded.

    Attributes:
        path: Where it lies.
        size_bytes: All its files.
        models: Ids of the registered models that use it.
        runs: How many runs used it.
    """

    path: Path
    size_bytes: int
    models: tuple[str, ...]
    runs: int


def show(models: Sequence[ModelSource]) -> None:
    """The list, each with a button where no registered model uses it; nothing where nothing was uploaded.

    Args:
        models: The registered ones.
    """
    items = stored(ui.workspace(), models)
    if not items:
        return
    total = size_text(sum(item.size_bytes for item in items))
    with st.expander(_("Uploaded files, {size}").format(size=total), icon=":material/folder:"):
        for item in items:
            _line(item)


def _line(item: Stored) -> None:
    name, size, used, button = st.columns([4, 1, 4, 1.3], vertical_alignment="center")
    icon = "image" if item.path.is_dir() else "deployed_code"
    name.markdown(f":material/{icon}: {ui.plain(item.path.name)}")
    size.markdown(size_text(item.size_bytes))
    parts = [_("used by {models}").format(models=listed(item.models))] if item.models else []
    if item.runs:
        parts.append(plural("in {count} run", "in {count} runs", item.runs))
    used.caption(ui.plain(" · ".join(parts) or _("not used")))
    if item.models:
        button.button(
            _("Delete"),
            key=f"kept-{item.path.name}",
            disabled=True,
            help=_("A model of the list uses it: remove the model first."),
            width="stretch",
        )
        return
    with button.popover(_("Delete"), width="stretch"):
        text = _("{name} is deleted from the workspace. Runs stay; those made with it cannot be repeated.")
        st.markdown(text.format(name=f"**{ui.plain(item.path.name)}**"))
        if st.button(_("Delete it"), key=f"delete-{item.path.parent.name}-{item.path.name}"):
            delete(ui.workspace(), item.path)
            st.rerun()


def stored(workspace: Path, models: Sequence[ModelSource]) -> list[Stored]:
    """What was uploaded, weights first, and what uses it.

    Args:
        workspace: Whose folders of weights and images are looked through.
        models: The registered ones.
    """
    runs = list_rows(ui.open_store()) + list_rows(ui.open_store(), deleted=True)
    items = []
    for path in (*_weights(workspace), *list_added(workspace)):
        items.append(
            Stored(
                path=path,
                size_bytes=_size_bytes(str(path), path.stat().st_mtime_ns),
                models=tuple(m.id for m in models if _uses((str(m.weights or ""), m.data), path)),
                runs=sum(_uses(row.places, path) for row in runs),
            )
        )
    return items


def delete(workspace: Path, path: Path) -> None:
    """Delete something uploaded.

    Raises:
        QafError: If it is none of the workspace's uploads, or cannot be deleted.
    """
    if path not in (*_weights(workspace), *list_added(workspace)):
        raise QafError("only what was uploaded can be deleted here", got=path.name)
    delete_upload(path)


def _weights(workspace: Path) -> list[Path]:
    folder = workspace / MODELS_FOLDER
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.name.endswith(WEIGHT_SUFFIXES))
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def _uses(places: Sequence[str | None], path: Path) -> bool:
    return any(place and lies_in(place, path) for place in places)


@st.cache_data(show_spinner=False, max_entries=256)
def _size_bytes(place: str, changed_ns: int) -> int:
    """Of a file, or of all files below a folder; what disappears meanwhile counts nothing."""
    path, total = Path(place), 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        try:
            total += 0 if file.is_dir() else file.lstat().st_size
        except OSError:
            continue
    return total
