"""How long a run's network takes, in words where decisions are made; and the files that can be deployed."""

from __future__ import annotations

import os

import pandas as pd
import streamlit as st

from dashboard.text import _
from dashboard.widgets import columns, run_choice, ui
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.review.speed import model_labels, times_as_long
from qaf_core.runs.jobs.latency import read_latency
from qaf_core.runs.listing import PACKED, deployable_files
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import LatencyRequest
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.units import milliseconds_text

EXPORTED = {"model-int8-fast": ModelFile.FAST, "model-int8": ModelFile.EXACT, "model-fp32": ModelFile.FLOAT}


def show(run: RunRecord) -> None:
    """The tile: the time against the original in 8 bits, or a way to measure it."""
    folder = ui.open_store().run_folder(run.id)
    job, report = ui.open_store().last_job("latency", run.id), read_latency(folder)
    if job is not None and not job.is_final:
        _await(job.id)
        return
    ratio = None if report is None else report.ratio()
    if report is None or ratio is None:
        value, note = _("not measured yet"), _("fewer operations are not always less time")
    else:
        value = times_as_long(ratio, _)
        times = [report.latencies[name].median_ms for name in (ModelFile.DENSE, ModelFile.FAST)]
        note = _("as the original in 8 bits: {before} → {after}").format(
            before=milliseconds_text(times[0]), after=milliseconds_text(times[1])
        )
    _card(value, note)
    can = (folder / PACKED_NAME).is_file() and run_choice.missing_model(run) is None
    if ratio is None and can:
        request = LatencyRequest(run=run.id, threads=os.cpu_count() or 1)
        ui.ask_button(_("Measure"), request, key="tile-measure", icon=":material/speed:", width="stretch")


@st.fragment(run_every=2.0)
@ui.guarded
def _await(job_id: str) -> None:
    """The tile while the run is timed; then the page is drawn anew."""
    job = ui.open_store().job(job_id)
    if job is None or job.is_final:
        st.rerun(scope="app")
    _card(_("measuring…"), _("the models take turns"))


def _card(value: str, note: str) -> None:
    ui.metric_card(
        _("Time of one inference"), value, note,
        _("The fastest integer file against the original in 8 bits, measured in turns on this machine."),
    )  # fmt: skip


def files(run: RunRecord) -> None:
    """The files of a run that can be deployed, with their sizes against the original's."""
    paths = deployable_files(ui.open_store().run_folder(run.id))
    before = run.baseline_cost.size_bytes if run.baseline_cost else None
    labels = {PACKED: _("Packed file"), **model_labels(_)}
    exported = {name: _("{file} (exported)").format(file=labels[of]) for name, of in EXPORTED.items()}
    rows = [
        {
            "file": {**labels, **exported}.get(name, name),
            "size": path.stat().st_size,
            "smaller": before / max(1, path.stat().st_size) if before else None,
        }
        for name, path in paths.items()
    ]
    if not rows:
        return
    with st.expander(_("Files that can be deployed"), icon=":material/folder_zip:"):
        frame = pd.DataFrame(rows)
        forms = columns.in_units(frame, {"size": "B"})
        columns.table(
            frame,
            {
                "file": columns.text(_("File")),
                "size": columns.number(_("Size"), forms["size"]),
                "smaller": columns.factor(
                    _("Smaller"), help_text=_("The original counts 4 bytes a parameter.")
                ),
            },
        )
        if len(rows) == 1:
            st.caption(_("ONNX files stand here once they are exported, or timed."))
