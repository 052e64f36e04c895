"""Fine-tuning on the Live run page: begin it, watch it, see what it gained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.state import address, live_charts
from dashboard.state.progress import RunProgress
from dashboard.text import _
from dashboard.views.run import live
from dashboard.widgets import run_choice, ui
from qaf_core.data.formats.sources import absolute_data
from qaf_core.errors import QafError
from qaf_core.pipeline.events import RunStatus
from qaf_core.pipeline.finetune.options import CODES, MOST_EPOCHS, SCALES, FinetuneOptions
from qaf_core.review.metrics import metric_label
from qaf_core.runs.jobs.finetune import finetune_request
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.units import MISSING, duration_text, percent_text, points_text

MINUTES = (1, 2, 4, 8, 15, 30, 60)
FIRST_MINUTES = 4


def offer(run: RunRecord) -> None:
    """What to set, and the button that begins it; nothing where there is no network to begin with."""
    store = ui.open_store()
    if run.status != RunStatus.COMPLETED or not (store.run_folder(run.id) / PACKED_NAME).is_file():
        return
    if run_choice.missing_model(run) is not None:
        return
    with st.expander(_("Fine-tune"), icon=":material/model_training:"):
        st.caption(
            _(
                "The compressed network learns from the original one, and from labels where images have "
                "them. Its size and its operations stay as they are. Better on images held back is not "
                "always more accurate: the new run is measured beside this one. "
                "The result is a run of its own; this one stays."
            )
        )
        left, middle, right = st.columns([3, 2, 3], gap="medium")
        with left:
            trains = st.radio(
                _("What may change"),
                (CODES, SCALES),
                format_func=_trained_labels().__getitem__,
                captions=(
                    _("The integer weights are learnt and rounded anew as well."),
                    _("The integer weights stay as they were solved."),
                ),
                key=address.choice("trains", (CODES, SCALES), CODES, key="finetune-trains"),
            )
        with middle:
            minutes = st.select_slider(
                _("Time limit, minutes"),
                MINUTES,
                key=address.choice("minutes", MINUTES, FIRST_MINUTES, key="finetune-minutes"),
                help=_("The step size falls so that it ends in this time. Stop keeps the best state so far."),
            )
        with right:
            images = st.text_input(
                _("Images to learn from"),
                key=address.text("learn-from", key="finetune-images"),
                placeholder=_("Folder, .zip or .npz (optional)"),
                help=_(
                    "With class folders (or y in an .npz) they are learnt from with labels. Left empty: "
                    "built-in images where this run had these, else its calibration images. More images "
                    "help. Some are held back to judge, and the evaluation images are never learnt from. "
                    "Images are mirrored and moved where the original's answers stay the same."
                ),
            )
            if st.button(
                _("Start fine-tuning"), type="primary", icon=":material/play_arrow:", key="start-finetune"
            ):
                _start(run, trains, minutes, images.strip())


def _trained_labels() -> dict[str, str]:
    return {SCALES: _("Scales and biases"), CODES: _("Integer weights too")}


def _start(run: RunRecord, trains: str, minutes: int, images: str) -> None:
    store = ui.open_store()
    options = FinetuneOptions(trains=trains, epochs=MOST_EPOCHS, time_limit_seconds=60.0 * minutes)
    try:
        data = absolute_data(images) if images else None
        request = finetune_request(store, run, options, data=data)
        run_id = store.create_run(request)
    except QafError as error:
        ui.say_error(error)
        return
    ui.go_to("run", run=run_id)


def show_running(run: RunRecord, progress: RunProgress, *, stopping: bool) -> None:
    """A fine-tuning at work."""
    elapsed = max(0.0, time.time() - (run.started_at or time.time()))
    labels = live.stage_labels()
    st.progress(progress.fraction(elapsed), text=labels.get(progress.stage or "", _("Starting")))
    if stopping:
        live.say_stopping(progress, elapsed)
    ui.stepper((labels[stage], state) for stage, state in progress.stage_states())
    points = progress.finetune_points
    columns = st.columns(3)
    with columns[0]:
        note = _("stopping") if stopping else live.left_text(progress.seconds_left(elapsed))
        limit = (run.request.finetune or {}).get("time_limit_seconds")
        if limit:
            note += " · " + _("learns for {time} at most").format(time=duration_text(limit))
        ui.metric_card(_("Time so far"), duration_text(elapsed), note, live.estimate_help(progress))
    with columns[1]:
        best = _best_pass(points)
        ui.metric_card(
            _("Passes over the images"),
            str(points[-1]["epoch"]) if points else MISSING,
            _("best after pass {pass_}").format(pass_=best) if best else "–",
        )
    with columns[2]:
        _divergence_card(points[0]["held_back"] if points else None, points[-1]["best"] if points else None)
    _curve(points)


def _best_pass(points: Sequence[Mapping[str, Any]]) -> int | None:
    """The pass whose state would be kept now; 0 for the network as it came."""
    kept = [point for point in points if point.get("on_grid", True)]
    return next((point["epoch"] for point in kept if point["held_back"] <= points[-1]["best"]), None)


def _divergence_card(before: float | None, after: float | None) -> None:
    known = before is not None and after is not None and before > 0
    ui.metric_card(
        _("Loss on held-back images"),
        percent_text(after / before, 0) if known else MISSING,  # type: ignore[operator]
        f"{before:.4f} → {after:.4f}" if known else "–",
        _(
            "How differently the two networks answer on images that are held back: the Kullback-Leibler "
            "divergence of their class scores (of other outputs the relative squared error of the layers); "
            "with labels, the cross-entropy besides. As a share of where it began."
        ),
    )


def _curve(points: list[dict[str, Any]]) -> None:
    if len(points) < 2:
        return
    series = live_charts.finetune_series(points)
    title, step = _("Loss on held-back images"), _("Pass over the images")
    st.vega_lite_chart(
        live_charts.curve_data(live_charts.finetune_rows(points), series, step="epoch"),
        live_charts.curve_spec(series, title=title, dark=ui.is_dark(), step=step),
        key="finetune-curve",
        alt=_("Loss on held-back images by pass"),
    )
    if not all(point.get("on_grid", True) for point in points):
        st.caption(
            _(
                "Integer weights leave their grids while they are learnt. In the second half of the time "
                "they are set on them again, layer by layer; only a network that is all on its grids is kept."
            )
        )


def show_result(run: RunRecord) -> None:
    """What a finished fine-tuning gained over the run it began with; nothing for other runs."""
    finetuning = run.result.get("finetune")
    if not finetuning:
        return
    st.subheader(_("Fine-tuning"), anchor=False)
    if finetuning["best_epoch"] == 0:
        st.info(
            _("Nothing was gained on the images held back: the network is as it was before."),
            icon=":material/info:",
        )
    parent = ui.find_run(str(finetuning["run"]))
    columns = st.columns(3)
    with columns[0]:
        _parent_card(run, parent)
    with columns[1]:
        _divergence_card(finetuning["before"], finetuning["after"])
    with columns[2]:
        ui.metric_card(
            _("What changed"),
            _trained_labels().get(finetuning["trains"], str(finetuning["trains"])),
            _used(finetuning)
            + _("pass {best} of {count} kept").format(
                best=finetuning["best_epoch"], count=finetuning["epochs"]
            ),
        )
    events = ui.open_store().events_since(run.id, kinds=("finetune",))
    _curve([dict(stored.event.data) for stored in events])
    # No link: one to the page it stands on leaves the address as it is.
    if parent is not None and st.button(
        _("The run it began with"), icon=":material/undo:", key="open-parent", type="tertiary"
    ):
        ui.go_to("run", run=parent.id)
    st.caption(_("The layer errors below are those of the solver, before fine-tuning."))


def _used(finetuning: dict[str, Any]) -> str:
    """What was learnt from; nothing is known of runs of earlier versions."""
    if "images" not in finetuning:
        return ""
    what = _("{count} images with labels") if finetuning["labelled"] else _("{count} images without labels")
    return what.format(count=f"{finetuning['images']:,}") + " · "


def _parent_card(run: RunRecord, parent: RunRecord | None) -> None:
    before = parent.compressed.value if parent is not None and parent.compressed else None
    after = run.compressed.value if run.compressed else None
    known = before is not None and after is not None
    metric = metric_label(run.compressed.metric if run.compressed else None, _)
    ui.metric_card(
        _("{metric}, change by fine-tuning").format(metric=metric),
        _("{points} points").format(points=points_text(after - before)) if known else MISSING,  # type: ignore[operator]
        f"{percent_text(before)} → {percent_text(after)}" if known else "–",  # type: ignore[arg-type]
        _(
            "Against the run it began with, on the same images. A change smaller than half of the interval "
            "above can be chance."
        ),
    )
