"""All runs, newest first, to choose one from."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import rows
from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.review.charts import method_label
from qaf_core.review.units import MISSING, points_text
from qaf_core.runs.store.record import RunRecord


def show() -> None:
    """The list, or a way on where there is no run yet."""
    ui.page_title(_("Runs"), _("Every compression started in this workspace. Click a row to open it."))
    runs = ui.open_store().list_runs()
    if not runs:
        ui.empty_state(
            "rocket_launch",
            _("No run yet"),
            _("Choose a model and a plan, press Run, and watch it work here."),
            ("explore", _("Choose a model")),
        )
        return
    chosen = st.dataframe(
        pd.DataFrame([_row(run) for run in runs]),
        hide_index=True,
        key="run-list",
        on_select="rerun",
        selection_mode="single-cell",
        column_config=_columns(),
        placeholder=MISSING,
        height="content",
    )
    for position, _column in chosen.selection.cells:
        ui.go_to("run", run=runs[position].id)


def _row(run: RunRecord) -> dict[str, Any]:
    before, after = run.baseline_cost, run.size_bytes
    return {
        "status": ui.status_label(run.status),
        "run": ui.run_title(run),
        "model": run.model,
        "method": method_label(run.method, _),
        "plan": rows.plan_summary(run),
        "accuracy": 100 * run.compressed.value if run.compressed else None,
        "change": points_text(-run.drop) if run.drop is not None else None,
        "smaller": before.size_bytes / after if before and after else None,
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at)),
    }


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "status": column.TextColumn(_("Status"), width=100),
        "run": column.TextColumn(_("Run")),
        "model": column.TextColumn(_("Model")),
        "method": column.TextColumn(_("Method")),
        "plan": column.TextColumn(
            _("Plan"),
            help=_("Layers per structure · R: lowest and highest rank · W: weight bits · A: activation bits"),
        ),
        "accuracy": column.NumberColumn(
            _("Measured"),
            help=_("Accuracy of classifiers, mean IoU of segmentation, mAP at IoU 0.5 of detection."),
            format="%.1f %%",
        ),
        "change": column.TextColumn(_("Change"), help=_("Percentage points against the original network.")),
        "smaller": column.NumberColumn(_("Smaller"), format="%.1f×"),
        "started": column.TextColumn(_("Started")),
    }
