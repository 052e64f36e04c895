"""A run at work: stages, the layer being solved and the layers done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import live_charts, rows
from dashboard.state.progress import DONE, RunProgress
from dashboard.text import _, meaning, plural
from dashboard.widgets import columns, ui
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.pipeline.results import LayerRow
from qaf_core.review import charts
from qaf_core.review.labels import solve_labels
from qaf_core.review.metrics import metric_label
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.units import MISSING, bits_text, duration_text, percent_text, rank_text


def show_queued(progress: RunProgress, *, ahead: int, ready: bool) -> None:
    """A run nobody has begun yet."""
    if ahead:
        note = plural(
            "{count} other run is ahead of this one.", "{count} other runs are ahead of this one.", ahead
        )
    elif ready:
        note = _("Starting now.")
    else:
        note = _("The worker is loading; this takes a few seconds after the dashboard was opened.")
    st.progress(0.0, text=_("Waiting to start. {note}").format(note=note))
    labels = stage_labels()
    ui.stepper((labels[stage], "later") for stage in progress.stages)
    st.caption(_("You may close this page: the run goes on, and its address finds it again."))


def stage_labels() -> dict[str, str]:
    """The names of a run's stages."""
    return {
        "loading": _("Load"),
        "solving": _("Solve the layers"),
        "calibrating": _("Calibrate"),
        "finetuning": _("Fine-tune"),
        "saving": _("Save"),
        "baseline": _("Measure the original"),
        "evaluating": _("Measure the result"),
    }


def show_running(run: RunRecord, progress: RunProgress, *, stopping: bool) -> None:
    """A run at work."""
    elapsed = max(0.0, time.time() - (run.started_at or time.time()))
    st.progress(progress.fraction(elapsed), text=_headline(progress))
    if stopping:
        say_stopping(progress, elapsed)
    labels = stage_labels()
    ui.stepper((labels[stage], state) for stage, state in progress.stage_states())
    _numbers(run, progress, elapsed, stopping)
    _convergence(progress)
    _finished_layers(run, progress)


def say_stopping(progress: RunProgress, elapsed: float) -> None:
    """What a stop is about, and how long it takes at most."""
    if progress.stage in ("loading", None):
        text = _("Stopping: the run ends with what it is loading; there is nothing to keep yet.")
    elif progress.stage == "solving" and not progress.done:
        text = _("Stopping: no layer is done yet, so nothing is kept.")
    else:
        text = _("Stopping: what is done is fitted, saved and measured.")
    longest = progress.seconds_to_stop(elapsed)
    if longest is not None:
        text += " " + _("This takes {time} at most, about.").format(time=duration_text(longest))
    st.info(text + " " + _("“Discard now” ends at once and keeps nothing."), icon=":material/stop_circle:")


def _headline(progress: RunProgress) -> str:
    label = stage_labels().get(progress.stage or "", _("Starting"))
    if progress.stage == "solving" and progress.current:
        return _("Layer {position} of {total}: {layer}").format(
            position=min(progress.total, len(progress.done) + 1),
            total=progress.total,
            layer=ui.plain(progress.current),
        )
    if progress.stage == "solving":
        return _("Seeing how the images use each layer")
    return f"{label}: {ui.plain(progress.message)}" if progress.stage == "calibrating" else label


def _numbers(run: RunRecord, progress: RunProgress, elapsed: float, stopping: bool) -> None:
    tiles = st.columns(4)
    left = progress.seconds_left(elapsed)
    original = progress.evaluations.get("original")
    errors = [each.row.relative_error for each in progress.done if each.row.relative_error is not None]
    total = progress.total or len(run.planned_layers)
    with tiles[0]:
        note = _("stopping") if stopping else left_text(left)
        ui.metric_card(_("Time so far"), duration_text(elapsed), note, estimate_help(progress))
    with tiles[1]:
        ui.metric_card(_("Layers done"), f"{len(progress.done)} / {total}", progress.current or "–")
    with tiles[2]:
        low, high = original.ci95 if original else (0.0, 0.0)
        metric = metric_label(original.metric if original else None, _)
        ui.metric_card(
            _("{metric} of the original").format(metric=metric),
            percent_text(original.value) if original else MISSING,
            f"{percent_text(low)} – {percent_text(high)}" if original else _("measured after the layers"),
            _("Measured before compression on the same images; the range holds it with 95 % confidence."),
        )
    with tiles[3]:
        ui.metric_card(
            _("Mean layer error"),
            percent_text(sum(errors) / len(errors)) if errors else MISSING,
            _("of the layers done"),
            meaning("layer_error"),
        )


def left_text(seconds: float | None) -> str:
    """How long all that is to come takes."""
    if seconds is None:
        return _("estimating the rest")
    return _("about {time} left").format(time=duration_text(seconds))


def estimate_help(progress: RunProgress) -> str:
    """What the time left is told from."""
    return _("All steps to the end, measuring included.") + " " + basis_text(progress.history.runs)


def basis_text(runs: int) -> str:
    """What an estimate of time is made from."""
    if runs == 0:
        return _("A rough, built-in figure: no run has been measured on this machine yet.")
    return plural(
        "Learnt from {count} earlier run in this workspace.",
        "Learnt from {count} earlier runs in this workspace.",
        runs,
    )


def _convergence(progress: RunProgress) -> None:
    if progress.stage != "solving" or progress.curve_layer not in progress.layers:
        return
    layer = progress.layers[progress.curve_layer]
    structure = structure_labels().get(layer.row.structure, "")
    rank, bits = rank_text(layer.row.rank), bits_text(layer.row.bits)
    facts = [
        structure,
        _("rank {rank}").format(rank=rank) if rank else "",
        _("{bits} bits").format(bits=bits) if bits else "",
    ]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown(
            f"**{_('Layer being solved')}** &nbsp; {ui.plain(layer.name)} &nbsp; "
            + " · ".join(f for f in facts if f),
            help=_(
                "The solver looks for small factors whose entries are integers times a scale. "
                "The solid line is the error of what will be used; the dashed one ignores the integer grid. "
                "Where images are at hand, weights count by how much the images use them: the final "
                "error in the "
                "table, which counts all alike, can differ."
            ),
        )
        series = live_charts.convergence_series()
        st.vega_lite_chart(
            live_charts.curve_data(progress.iterations, series, scale=100.0),
            live_charts.curve_spec(series, title=_("Layer error (%)"), dark=ui.is_dark()),
            key="convergence",
            alt=_("Layer error by iteration"),
        )
    with right:
        st.markdown(
            f"**{_('Residuals')}**",
            help=meaning("residual"),
        )
        series = live_charts.residual_series()
        data = live_charts.curve_data(progress.iterations, series, positive=True)
        if data.empty:
            st.caption(_("They begin with the integer steps of this layer."))
            return
        st.vega_lite_chart(
            data,
            live_charts.curve_spec(
                series, title=_("Residual (log scale)"), dark=ui.is_dark(), logarithmic=True
            ),
            key="residuals",
            alt=_("Residuals by iteration"),
        )


def structure_labels() -> dict[str, str]:
    """The names of the structures on screens."""
    return {**{name: _(structure.label) for name, structure in STRUCTURES.items()}, KEEP: _("Keep")}


def _finished_layers(run: RunRecord, progress: RunProgress) -> None:
    if not progress.done:
        return
    names = tuple(dict.fromkeys((*run.planned_layers, *progress.layers)))
    errors = rows.errors_of([layer.row for layer in progress.done], names)
    left, right = st.columns([4, 6], gap="medium")
    with left:
        st.markdown(f"**{_('Errors of the finished layers')}**", help=meaning("layer_error"))
        figure = charts.layer_error_figure([errors], dark=ui.is_dark(), _=_)
        st.plotly_chart(
            figure, key="live-errors", config={"displayModeBar": False}, alt=_("Error of each finished layer")
        )
    with right:
        st.markdown(f"**{_('Layers')}**")
        columns.table(layer_frame(_progress_rows(progress)), layer_columns())


def _progress_rows(progress: RunProgress) -> list[LayerRow]:
    return [
        replace(
            layer.row, seconds=layer.seconds, status=layer.row.status if layer.state == DONE else "solving"
        )
        for layer in reversed(progress.layers.values())
    ]


def layer_frame(layers: Sequence[LayerRow]) -> pd.DataFrame:
    """Layer rows as a table; also used by the finished run."""
    labels, statuses = structure_labels(), solve_labels(_)
    return pd.DataFrame(
        [
            {
                "layer": row.name,
                "structure": labels.get(row.structure, row.structure),
                "rank": rank_text(row.rank) or None,
                "bits": bits_text(row.bits) or None,
                "error": _percent(row.relative_error),
                "float": _percent(row.float_relative_error),
                "seconds": row.seconds,
                "status": statuses.get(row.status, row.status),
            }
            for row in layers
        ]
    )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def layer_columns() -> dict[str, Any]:
    """Headings, units and tooltips of a layer table."""
    return {
        "layer": columns.text(_("Layer"), "layer"),
        "structure": columns.text(_("Structure"), "structure"),
        "rank": columns.text(_("Rank"), "rank"),
        "bits": columns.text(_("Bits"), "bits"),
        "error": columns.percent(_("Quantized"), "layer_error"),
        "float": columns.percent(_("Float"), "float_error"),
        "seconds": columns.number(_("Time"), "%.1f s"),
        "status": columns.text(_("Solver"), "solver_end"),
    }
