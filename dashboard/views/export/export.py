"""Take a compressed network away: what its file holds, exports and their checks, how to use them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import catalogue
from dashboard.state.overrides import overrides_of
from dashboard.text import _
from dashboard.views.export import speed
from dashboard.views.run import live
from dashboard.widgets import columns, run_choice, ui
from qaf_core.deploy.onnx_export.report import ExportReport, Precision, read_report
from qaf_core.errors import QafError
from qaf_core.network.plan.cost import layer_cost, original_layer_cost
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.runs.listing import PACKED, list_rows, refresh_row
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import ExportRequest
from qaf_core.runs.store.workspace import EXPORTS_FOLDER, PACKED_NAME
from qaf_core.text.units import bits_text, duration_text, rank_text, size_text, times_text


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to take a network away.

    Attributes:
        key: Of its widgets and files.
        title, lead: For people.
        precision: Of an ONNX file; None for the packed one.
    """

    key: str
    title: str
    lead: str
    precision: str | None = None

    def request(self, run: RunRecord) -> ExportRequest:
        """The job that makes and checks it."""
        if self.precision is None:
            return ExportRequest(run=run.id, format="packed")
        return ExportRequest(run=run.id, format="onnx", precision=self.precision)

    def path(self, run: RunRecord) -> Path:
        """Where it then lies."""
        return ui.open_store().run_folder(run.id) / EXPORTS_FOLDER / self.request(run).file_name

    def download_name(self, run: RunRecord) -> str:
        """What it is downloaded as, and how the examples open it."""
        parts = [re.sub(r"[^\w.]+", "-", run.model), run.id[-6:]]
        if run.is_partial:
            parts.append(f"{len(run.layers)}of{len(run.planned_layers)}")
        if self.precision is not None:
            parts.append(self.precision)
        return "-".join(parts) + Path(self.request(run).file_name).suffix


def page() -> None:
    """The Export page: ``?run=ID`` names the run."""
    ui.page_title(
        _("Export"),
        _("Take the compressed network away: real files, checked against what was measured."),
    )
    lacking = _("It has no compressed network to take away.")
    runs = [row for row in list_rows(ui.open_store()) if row.value is not None and PACKED in row.files]
    run = run_choice.choose_run(runs, lacking)
    if not runs:
        ui.empty_state(
            "download",
            _("Nothing to export yet"),
            _("Once a run has finished, its network can be taken away from here."),
            ("explore", _("Choose a model")),
        )
        return
    if run is None:
        return
    if not packed_file(run).is_file():  # it was there when the list was made
        refresh_row(ui.open_store(), run.id)
        st.warning(lacking, icon=":material/block:")
        return
    run_choice.say_partial(run)
    missing = run_choice.missing_model(run)
    if missing is not None:
        text = _("What was made is kept; nothing can be made or measured anew.")
        st.warning(ui.plain(f"{missing} {text}"), icon=":material/block:")
    _files(run, missing is None)
    if missing is None:
        _contents(run)
    speed.show(run, missing is None)
    if missing is None:
        _examples(run)


def packed_file(run: RunRecord) -> Path:
    """Where a run's packed network lies."""
    return ui.open_store().run_folder(run.id) / PACKED_NAME


def _kinds() -> tuple[Kind, ...]:
    return (
        Kind(
            key="packed",
            title=_("Packed file"),
            lead=_("The smallest: codes at their own bit-width in one safetensors file, for PyTorch."),
        ),
        Kind(
            key=Precision.INT8,
            title=_("ONNX, integers"),
            lead=_(
                "Exactly the network that was evaluated, with integer convolutions in plain ONNX Runtime. "
                "Additions between layers stay in floating point, which takes time."
            ),
            precision=Precision.INT8,
        ),
        Kind(
            key=Precision.FAST,
            title=_("ONNX, integers, fastest"),
            lead=_(
                "The same codes, but outputs of layers and additions are rounded to 8 bits too: faster, and "
                "some answers differ. How many is measured; below 99.5 % the file is refused."
            ),
            precision=Precision.FAST,
        ),
        Kind(
            key=Precision.FP32,
            title=_("ONNX, floating point"),
            lead=_("The same factors as floating point, for other runtimes and converters."),
            precision=Precision.FP32,
        ),
    )


def _files(run: RunRecord, can_make: bool) -> None:
    columns = [*st.columns(2, gap="small"), *st.columns(2, gap="small")]
    for column, kind in zip(columns, _kinds(), strict=True):
        with column, st.container(border=True, height="stretch", key=f"card-export-{kind.key}"):
            st.markdown(f"**{kind.title}**")
            st.caption(kind.lead)
            if kind.key == "packed":
                _packed(run, kind, can_make)
            else:
                _made_file(run, kind, can_make)


def _packed(run: RunRecord, kind: Kind, can_make: bool) -> None:
    path = packed_file(run)
    size = path.stat().st_size
    before = run.baseline_cost.size_bytes if run.baseline_cost else 0
    st.markdown(
        _("**{size}**, {times} smaller than {before} of 32-bit weights.").format(
            size=size_text(size), times=times_text(before, size), before=size_text(before)
        )
    )
    if _is_making(run, kind):
        return
    report = read_report(kind.path(run).with_suffix(".json"))
    if report is None:
        ui.show_damaged(kind.path(run).with_suffix(".json"))
    if report is not None:
        _show_checks(report)
    elif can_make:
        _make_button(_("Check it"), run, kind)
    _download(run, kind, path)


def _made_file(run: RunRecord, kind: Kind, can_make: bool) -> None:
    path = kind.path(run)
    if _is_making(run, kind):
        return
    report = read_report(path.with_suffix(".json"))
    if report is None:
        ui.show_damaged(path.with_suffix(".json"))
    if report is not None and path.is_file():
        _show_report(report)
        _download(run, kind, path)
    elif can_make:
        _make_button(_("Make and check it"), run, kind)


def _is_making(run: RunRecord, kind: Kind) -> bool:
    """Whether the file is being made just now; tells so, or why it could not be made."""
    job = ui.open_store().find_job(kind.request(run))
    return ui.job_at_work(job, _("Exporting and checking… {time}"))


def _make_button(label: str, run: RunRecord, kind: Kind) -> None:
    ui.ask_button(label, kind.request(run), key=f"make-{kind.key}", icon=":material/build:", width="stretch")


def _show_report(report: ExportReport) -> None:
    size, seconds = size_text(report.size_bytes), duration_text(report.seconds)
    st.markdown(_("**{size}**, made and checked in {seconds}.").format(size=size, seconds=seconds))
    _show_checks(report)


def _show_checks(report: ExportReport) -> None:
    for check in report.checks:
        _check_line(check.passed, ui.plain(check.told(_)))


def _check_line(passed: bool, text: str) -> None:
    sign = ":green[:material/check_circle:]" if passed else ":red[:material/cancel:]"
    st.markdown(f"{sign} {text}")


def _download(run: RunRecord, kind: Kind, path: Path) -> None:
    st.download_button(
        _("Download"),
        data=path.read_bytes,
        file_name=kind.download_name(run),
        mime="application/octet-stream",
        key=f"download-{kind.key}",
        icon=":material/download:",
        type="primary",
        width="stretch",
        on_click="ignore",
    )


def _contents(run: RunRecord) -> None:
    st.subheader(_("What the file holds"), anchor=False)
    try:
        plan = Plan.from_dict(dict(run.plan_row))
        overrides = overrides_of(run.request)
        source = catalogue.open_model(run.model, ui.workspace(), overrides)
        with st.spinner(_("Looking into the model…"), show_time=True):
            inventory = catalogue.inventory_of(source, ui.workspace(), overrides)
    except QafError as error:
        ui.say_error(error)
        return
    table = pd.DataFrame(content_rows(inventory, plan, {row.name for row in run.layers}))
    forms = columns.in_units(table, {"before": "B", "after": "B"})
    columns.table(table, _content_columns(forms, float(table["share"].max())), most=11)


def content_rows(inventory: Sequence[LayerInfo], plan: Plan, solved: set[str]) -> list[dict[str, Any]]:
    """One row per layer of the file: what it is stored as, its bytes before and after, its share."""
    planned, labels = {row.name: row for row in plan.layers}, live.structure_labels()
    entries = []
    for info in inventory:
        row = planned.get(info.name) if info.name in solved else None
        after = layer_cost(info, row, plan.activation_bits).size_bytes
        if info.folded_into is None and after > 0:
            entries.append((info, row, original_layer_cost(info).size_bytes, after))
    total = sum(after for *_others, after in entries) or 1
    return [
        {
            "name": info.name,
            "stored": labels.get(row.structure, row.structure) if row is not None else labels[KEEP],
            "rank": (rank_text(row.rank) or None) if row is not None else None,
            "bits": bits_text(row.bits) if row is not None else "16",
            "before": before,
            "after": after,
            "share": 100 * after / total,
        }
        for info, row, before, after in entries
    ]


def _content_columns(forms: Mapping[str, str], largest: float) -> dict[str, Any]:
    return {
        "name": columns.text(_("Layer"), "layer"),
        "stored": columns.text(_("Stored as"), "structure"),
        "rank": columns.text(_("Rank"), "rank"),
        "bits": columns.text(_("Bits"), "bits"),
        "before": columns.number(_("In 32 bits"), forms["before"]),
        "after": columns.number(_("In the file"), forms["after"], "packed_file"),
        "share": st.column_config.ProgressColumn(
            _("Share of the file"), format="%.1f %%", min_value=0.0, max_value=max(largest, 1.0)
        ),
    }


def _examples(run: RunRecord) -> None:
    from qaf_core.deploy.onnx_export.code_examples import onnx_example, pytorch_example

    st.subheader(_("Use it"), anchor=False)
    try:
        source = catalogue.open_model(run.model, ui.workspace(), overrides_of(run.request))
    except QafError as error:
        st.warning(ui.plain(error.text(_)), icon=":material/warning:")
        return
    packed, onnx = (kind.download_name(run) for kind in _kinds() if kind.key in ("packed", Precision.INT8))
    left, right = st.columns(2, gap="small")
    with left:
        st.caption(_("The packed file, in PyTorch"))
        st.code(pytorch_example(source, packed), language="python", wrap_lines=True)
    with right:
        st.caption(_("The ONNX file, with nothing but ONNX Runtime, NumPy and Pillow"))
        st.code(onnx_example(source, onnx), language="python", wrap_lines=True)
