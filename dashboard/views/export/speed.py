"""Measured latency of a run's network: on this machine, and on a device by a kit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.widgets import columns, ui
from qaf_core.deploy.runtime.measure_kit import LEAST_AGREEMENT
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.speed_report import Energy, FileAccuracy, LayerTime, SpeedReport
from qaf_core.errors import QafError
from qaf_core.review import speed
from qaf_core.review.metrics import metric_label
from qaf_core.runs.jobs.device_kit import RESULT_NAME, read_kit_result
from qaf_core.runs.jobs.latency import FILE_NAME, read_latency
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import DeviceKitRequest, LatencyRequest
from qaf_core.runs.store.workspace import EXPORTS_FOLDER
from qaf_core.text.units import energy_text, factor_text, percent_text, size_text


def show(run: RunRecord, can_measure: bool) -> None:
    """The section: measure here, and on a device; without the model only what was measured."""
    st.subheader(_("Speed"), anchor=False)
    st.caption(
        _(
            "Fewer operations are not always less time, so it is measured: the original, the original in "
            "8 bits, and the compressed network in both forms take turns in ONNX Runtime."
        )
    )
    here, device = st.tabs([_("This machine"), _("Another device")])
    with here:
        if can_measure:
            _measure_here(run)
        _outcome(run)
    with device:
        if can_measure:
            _device(run)
        _draw_kept(run, "device", RESULT_NAME)


def _measure_here(run: RunRecord) -> None:
    cores = os.cpu_count() or 1
    left, middle, right = st.columns([1, 1, 2], vertical_alignment="bottom")
    threads = left.number_input(_("Threads"), 1, cores, key=address.number("threads", cores, 1, cores))
    batch = middle.number_input(_("Images at once"), 1, 64, key=address.number("batch", 1, 1, 64))
    request = LatencyRequest(run=run.id, threads=threads, batch=batch)
    with right:
        ui.ask_button(_("Measure"), request, key="measure-speed", icon=":material/speed:")


def _outcome(run: RunRecord) -> None:
    job = ui.open_store().last_job("latency", run.id)
    if not ui.job_at_work(job, _("Measuring: the models take turns… {time}")):
        _draw_kept(run, "here", FILE_NAME)


def _draw_kept(run: RunRecord, key: str, file_name: str) -> None:
    folder = ui.open_store().run_folder(run.id)
    report = read_latency(folder, file_name)
    if report is not None:
        draw(report, key, run.compressed.n if run.compressed else None)
    else:
        ui.show_damaged(folder / file_name)


def draw(report: SpeedReport, key: str, images: int | None = None) -> None:
    """Bars, what they mean in a sentence, the machine, and the layers where they were measured.

    Args:
        report: The measurement.
        key: Of the chart.
        images: How many the run's own accuracy was measured on; None where that is unknown.
    """
    _ratios(report)
    _load(report)
    _answers(report)
    st.plotly_chart(
        speed.latency_figure(report.latencies, dark=ui.is_dark(), _=_),
        key=f"latency-{key}",
        config={"displayModeBar": False},
        alt=_("Latency of the four models"),
    )
    machine = report.machine
    parts = [machine.processor, f"ONNX Runtime {machine.onnxruntime}"]
    parts.append(_("{count} threads").format(count=machine.threads))
    st.caption(ui.plain(" · ".join(part for part in parts if part)))
    _memory(report.peak_memory_bytes)
    _accuracy(report.accuracy, images)
    _energy(report.energy)
    if report.layers:
        _layers(report.layers)


def _ratios(report: SpeedReport) -> None:
    """Whether each compressed integer file is faster than the original in 8 bits, the file named."""
    labels = speed.model_labels(_)
    for name in (ModelFile.FAST, ModelFile.EXACT):
        ratio = report.ratio(name)
        if ratio is None:
            continue
        times = _("It takes {value} as long (95 %: {low} to {high}).").format(
            value=factor_text(ratio.value), low=factor_text(ratio.low), high=factor_text(ratio.high)
        )
        message = f"**{labels[name]}:** {speed.speed_sentence(ratio, _)} {times}"
        if ratio.low > 1.0:
            st.warning(message, icon=":material/warning:")
        else:
            st.success(message, icon=":material/speed:")


def _answers(report: SpeedReport) -> None:
    """Whether the files say what they should: the fastest one here, all of them on a device."""
    labels = speed.model_labels(_)
    fast = report.accuracy.get(ModelFile.FAST)
    if fast is not None and (share := fast.agreement_with_exact) is not None:
        text = _("The fastest file's answers agree with the evaluated network's to {share}.")
        text = text.format(share=percent_text(share))
        if share < LEAST_AGREEMENT:
            st.warning(f"{text} {_('That is too little: its export is refused.')}", icon=":material/warning:")
        else:
            st.caption(text)
    for name, reason in report.failed.items():
        text = _("{model} does not run on this device: {reason}")
        ui.say_error(text.format(model=labels.get(name, name), reason=reason))
    same, count = report.same_answers, report.compared_images
    if same and count:
        shares = " · ".join(f"{labels.get(name, name)}: {percent_text(one)}" for name, one in same.items())
        head = _("Same answers as where the kit was made, on {count} images").format(count=count)
        st.caption(ui.plain(f"{head} · {shares}"))
    for name, share in same.items():
        if share < LEAST_AGREEMENT:
            text = _("{model} answers wrongly on this device: only {share} of its answers are the same.")
            message = text.format(model=labels.get(name, name), share=percent_text(share))
            st.warning(ui.plain(message), icon=":material/warning:")


def _load(report: SpeedReport) -> None:
    """That others used the machine during the timing, where they did."""
    if report.is_disturbed:
        text = _(
            "Other programs used {share} of the processors meanwhile: the intervals are wider for it. "
            "Measure again when the machine is quiet."
        )
        st.warning(text.format(share=percent_text(report.others_share or 0.0, 0)), icon=":material/warning:")


def _memory(peaks: Mapping[str, int | None]) -> None:
    """Peak memory of one inference of each timed file."""
    labels = speed.model_labels(_)
    sizes = [f"{labels.get(name, name)}: {size_text(size)}" for name, size in peaks.items() if size]
    if sizes:
        st.caption(ui.plain(" · ".join([_("Peak memory of one inference"), *sizes])))


def _accuracy(accuracy: Mapping[str, FileAccuracy], images: int | None) -> None:
    """Whether the timed files still say the same: speed without accuracy is worth nothing."""
    labels = speed.model_labels(_)
    parts = [f"{labels[name]}: {percent_text(row.value)}" for name, row in accuracy.items() if name in labels]
    if parts:
        count = max(row.n for row in accuracy.values())
        metric = metric_label(next(iter(accuracy.values())).metric, _)
        head = _("{metric} of the timed files on {count} images").format(metric=metric, count=f"{count:,}")
        if images is not None and count != images:
            text = _("not on all {count} that the run was measured on")
            head += ", " + text.format(count=f"{images:,}")
        st.caption(ui.plain(f"{head} · " + " · ".join(parts)))


def _energy(energy: Energy) -> None:
    """Energy of one inference: measured where the processor tells it, and by the cost model."""
    labels, parts = speed.model_labels(_), []
    for name, joules in energy.joules.items():
        parts.append(ui.plain(f"{labels.get(name, name)}: {energy_text(joules)}"))
    if parts:
        st.caption(_("Energy of one inference, measured (RAPL)") + " · " + " · ".join(parts))
    elif energy.reason:
        text = _("Energy could not be measured here: {reason}").format(reason=energy.why_not(_))
        st.caption(ui.plain(text))
    modelled = energy.modelled
    if modelled.original and modelled.compressed:
        st.caption(
            _("Energy of one image, modelled, not measured: {before} → {after}").format(
                before=energy_text(modelled.original), after=energy_text(modelled.compressed)
            ),
            help=_(
                "From the numbers of operations and of bytes moved, with published figures for a 45 nm "
                "process (Horowitz, ISSCC 2014). Only comparisons under the same model mean anything."
            ),
        )


def _layers(layers: Sequence[LayerTime]) -> None:
    """Which layer is slower than the one it replaced, the worst first."""
    cells = [
        (row.layer, row.structure, row.dense_int8_ms, row.factorized_int8_ms, row.ratio) for row in layers
    ]
    names = ["name", "becomes", "dense", "factorized", "ratio"]
    table = pd.DataFrame(cells, columns=names).sort_values("ratio", ascending=False, na_position="last")
    with st.expander(_("Layer by layer"), icon=":material/stacks:"):
        column = st.column_config
        columns.table(
            table,
            {
                "name": column.TextColumn(_("Layer")),
                "becomes": column.TextColumn(_("Became")),
                "dense": columns.number(_("8-bit original"), "%.4f ms", "latency"),
                "factorized": columns.number(_("Compressed"), "%.4f ms", "latency"),
                "ratio": columns.factor(
                    _("Compressed / original"),
                    digits=2,
                    help_text=_("Above 1 the layer is slower than the one it replaced."),
                ),
            },
        )


def _device(run: RunRecord) -> None:
    st.markdown(
        _(
            "1. Download the kit and copy its folder to the device, where Python, onnxruntime and numpy are "
            "enough.\n2. Run `python measure.py` there.\n3. Bring `result.json` back here."
        )
    )
    left, right = st.columns(2)
    with left:
        _kit(run)
    with right:
        upload = st.file_uploader(_("result.json of the device"), type=["json"], key=f"kit-result-{run.id}")
    if upload is not None:
        take_result(run, upload)


def take_result(run: RunRecord, upload: Any) -> None:
    """Read an uploaded result back, once: it stays uploaded while the page is drawn again and again."""
    read: tuple[str, QafError | None] = st.session_state.get(f"kit-read-{run.id}", ("", None))
    if read[0] != upload.file_id:
        fault = None
        try:
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                file.write(upload.getvalue())
                file.flush()
                read_kit_result(ui.open_store(), run.id, Path(file.name))
        except QafError as error:
            fault = error
        read = st.session_state[f"kit-read-{run.id}"] = (upload.file_id, fault)
    if read[1]:
        ui.say_error(read[1])


def _kit(run: RunRecord) -> None:
    store, request = ui.open_store(), DeviceKitRequest(run=run.id)
    job = store.find_job(request)
    if ui.job_at_work(job, _("Making the kit… {time}")):
        return
    path = store.run_folder(run.id) / EXPORTS_FOLDER / (job.result.get("file", "") if job else "")
    if path.is_file():
        st.download_button(
            _("Download the kit"), data=path.read_bytes, file_name=f"qaf-device-kit-{run.id[-6:]}.zip",
            mime="application/zip", key="download-kit", icon=":material/download:", on_click="ignore",
        )  # fmt: skip
    else:
        ui.ask_button(_("Make the kit"), request, key="make-kit", icon=":material/build:")
