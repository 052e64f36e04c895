"""All runs, newest first, to choose one from, and to do something with several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import rows
from dashboard.text import _, translation
from dashboard.views.tradeoffs.table import method_help
from dashboard.widgets import columns, run_tools, ui
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.charts import method_label
from qaf_core.runs.listing import RunRow, list_rows


def show() -> None:
    """The list, or a way on where there is no run yet."""
    ui.page_title(_("Runs"), _("Every compression started in this workspace. Click a row to open it."))
    runs = list_rows(ui.open_store())
    if not runs:
        run_tools.tools((), key="runs") if run_tools.UNDO_KEY in st.session_state else None
        ui.empty_state(
            "rocket_launch",
            _("No run yet"),
            _("Choose a model and a plan, press Run, and watch it work here."),
            ("explore", _("Choose a model")),
        )
        run_tools.deleted()
        return
    shown = run_tools.filtered(runs, key="runs")
    place = st.container()
    if shown:
        chosen = _table(shown)
    else:
        st.info(_("No run matches these filters."), icon=":material/filter_alt_off:")
        chosen = []
    with place:
        run_tools.tools(chosen, key="runs")
    run_tools.deleted()


def _table(shown: Sequence[RunRow]) -> list[RunRow]:
    """The table; a click opens a run, ticks choose some."""
    say, statuses = translation(), {status: ui.status_label(status) for status in RunStatus}
    frame = pd.DataFrame([_row(run, statuses[run.status], say) for run in shown])
    frame = frame.drop(columns=[name for name in ("tags", "slower") if not frame[name].map(bool).any()])
    chosen = columns.table(
        frame,
        _columns(),
        key=f"run-list-{hash(tuple(run.id for run in shown))}",  # ticks are of rows, not of runs
        on_select="rerun",
        selection_mode=["multi-row", "single-cell"],
    )
    for position, _column in chosen.selection.cells:
        ui.go_to("run", run=shown[position].id)
    return [shown[position] for position in chosen.selection.rows]


def _row(run: RunRow, status: str, say: Callable[[str], str]) -> dict[str, Any]:
    before, after = run.original_bytes, run.size_bytes
    return {
        "status": status,
        "run": run.title,
        "accuracy": None if run.value is None else 100 * run.value,
        "change": columns.points(None if run.drop is None else -run.drop),
        "smaller": before / after if before and after else None,
        "slower": None if run.slower is None else run.slower[0],
        "method": method_label(run.method, say),
        "model": run.model,
        "plan": rows.plan_summary(run),
        "tags": list(run.tags),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at)),
    }


def _columns() -> dict[str, Any]:
    return {
        "status": columns.text(_("Status"), width=90),
        "run": columns.text(_("Run"), width=200),
        "model": columns.text(_("Model")),
        "method": columns.text(_("Method"), help_text=method_help()),
        "plan": columns.text(
            _("Plan"),
            "plan",
            _("Layers per structure · R: lowest and highest rank · W: weight bits · A: activation bits"),
        ),
        "accuracy": columns.percent(
            _("Measured"),
            help_text=_("Accuracy of classifiers, mean IoU of segmentation, mAP at IoU 0.5 of detection."),
        ),
        "change": columns.written(_("Change, points"), "points"),
        "smaller": columns.factor(_("Smaller"), help_text=_("The original counts 4 bytes a parameter.")),
        "slower": columns.factor(_("Time, 8-bit = 1"), "time_ratio", _("Empty if not measured."), digits=2),
        "tags": st.column_config.ListColumn(_("Tags"), width=130),
        "started": columns.text(_("Started")),
    }
