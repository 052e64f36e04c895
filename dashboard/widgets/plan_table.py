"""The table of layers in which a plan is edited: fields of the browser's own, so that no typed key is lost.

`st.data_editor` draws on a canvas and opens a field for each cell anew, in a later frame: on a busy machine
keys typed meanwhile go nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.widgets import ui
from qaf_core.text.units import MISSING

MARK = "✎"


def typed(key: str) -> list[tuple[int, tuple[str, str, str]]]:
    """What was typed into a table: stamps, which grow, with layer, column and text."""
    state = st.session_state.get(key) or {}
    return [edit for edit in map(_read, state.get("edits") or ()) if edit is not None]


def _read(edit: Any) -> tuple[int, tuple[str, str, str]] | None:
    match edit:
        case [int(stamp), str(layer), str(column), str(text)]:
            return stamp, (layer, column, text)
    return None


def show(
    key: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Mapping[str, Any]],
    structures: Mapping[str, str],
    taken: int,
) -> None:
    """Draw it.

    Args:
        key: Of the table; `typed` tells what was typed into it.
        rows: As ``plan_draft.plan_rows`` makes them.
        columns: For each its ``key`` in the rows, ``label``, ``help`` and whether it is a ``share`` to draw.
        structures: What may be chosen, with its name.
        taken: The stamp of the last edit that the rows hold.
    """
    mount = st.components.v2.component(
        "qaf_plan_table",
        html='<div class="frame"><div class="scroll"><table></table></div></div>',
        css=(ui.ASSETS / "plan_table.css").read_text(encoding="utf-8"),
        js=(ui.ASSETS / "plan_table.js").read_text(encoding="utf-8"),
    )
    mount(
        key=key,
        data={
            "rows": list(rows), "columns": list(columns), "structures": list(structures.items()),
            "taken": taken, "mark": MARK, "missing": MISSING,
        },
        on_edits_change=lambda: None,
    )  # fmt: skip
