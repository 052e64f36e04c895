"""A run that has ended: what was gained and lost, or why there is nothing to show."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import rows
from dashboard.text import _, meaning, plural
from dashboard.views.run import finetune, live, speed_tile
from dashboard.widgets import check_result, columns, predictions, ui
from qaf_core.pipeline.events import RunStatus
from qaf_core.review import charts
from qaf_core.review.labels import environment_labels, image_set_text, smaller_text
from qaf_core.review.metrics import metric_help, metric_label
from qaf_core.runs.jobs.preview import PREVIEW_NAME, read_preview
from qaf_core.runs.listing import row_of
from qaf_core.runs.management import resume
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.said import retell, say
from qaf_core.text.units import (
    MISSING,
    duration_text,
    percent_text,
    points_text,
    size_text,
    with_prefix,
)

# How a run's error begins to tell of its command-line option; here there is a button for it.
NO_CHECK = say("To compress it all the same")


def _resume(run_id: str) -> None:
    resume(ui.open_store(), run_id)


def show(run: RunRecord) -> None:
    """The result of a run, whatever it is."""
    _banner(run)
    if run.compressed and run.cost:
        _headline(run)
        _notes(run)
    finetune.show_result(run)
    if run.layers:
        _layers(run)
    _classes(run)
    speed_tile.files(run)
    _pictures(run)
    finetune.offer(run)
    _facts(run)


def _banner(run: RunRecord) -> None:
    planned = len(run.planned_layers)
    if run.status == RunStatus.FAILED:
        _failure(run)
    elif run.status == RunStatus.INTERRUPTED:
        st.warning(
            _(
                "The process that worked on this run ended before it was done (the machine was "
                "switched off, or "
                "memory ran out). The layers solved until then are listed; nothing was measured."
            ),
            icon=":material/power_off:",
        )
        if run.failure:
            st.caption(ui.plain(run.failure.text(_)))
        st.button(
            _("Resume"), icon=":material/resume:", type="primary", key="resume-run",
            on_click=_resume, args=(run.id,),
            help=_("Queues it again under its own address; layers it had solved are not solved again."),
        )  # fmt: skip
    elif run.status == RunStatus.CANCELLED and run.compressed and run.request.finetune is not None:
        st.info(
            _("Stopped on request: the best state until then was kept and measured."),
            icon=":material/stop_circle:",
        )
    elif run.status == RunStatus.CANCELLED and run.compressed:
        done = plural("{count} layer was compressed", "{count} layers were compressed", len(run.layers))
        st.info(
            _(
                "Stopped on request: of {total} layers, {done}; the others stay as they were. The "
                "numbers below are "
                "measured on this partly compressed network."
            ).format(total=planned, done=done),
            icon=":material/stop_circle:",
        )
    elif run.status == RunStatus.CANCELLED:
        st.info(
            ui.plain(run.failure.text(_))
            if run.failure
            else _("Stopped before the first layer was done: there is nothing to measure."),
            icon=":material/stop_circle:",
        )


def _failure(run: RunRecord) -> None:
    """Why a run failed; where only the check of the original stopped it, a way on without the check."""
    stopped_by_check = run.request.check and NO_CHECK.template in (run.error or "")
    message = run.failure.text(_) if run.failure else _("The run failed without a message.")
    ui.say_error(
        check_result.on_screen(message.partition(NO_CHECK.text(_))[0].rstrip())
        if stopped_by_check
        else message
    )
    if stopped_by_check:
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button(_("Run all the same"), icon=":material/play_arrow:", key="run-unchecked"):
                _run_unchecked(run)
            text = _("Without the check. Better: change it and run again; Check on Explore helps to mend it.")
            st.caption(text)
    elif not run.layers:
        st.caption(_("Nothing was changed. Mend the cause, then run it again with the button above."))


def _run_unchecked(run: RunRecord) -> None:
    run_id = ui.open_store().create_run(replace(run.request, check=False))
    ui.go_to("run", run=run_id)


def _notes(run: RunRecord) -> None:
    """What the check of the original noted, and what made the measurement uncertain."""
    check_result.show_findings(run.checks.findings if run.checks else ())
    for warning in run.images.warnings:
        st.info(ui.plain(retell(warning, run.images.said, _)), icon=":material/info:")


def _pictures(run: RunRecord) -> None:
    """A few evaluation images with what both networks say, where the run has kept them."""
    folder = ui.open_store().run_folder(run.id)
    preview = read_preview(folder)
    if not preview:
        ui.show_damaged(folder / PREVIEW_NAME)
    else:
        with st.expander(_("Some of the images"), icon=":material/photo_library:", expanded=True):
            predictions.show(preview)


def _headline(run: RunRecord) -> None:
    compressed, cost, baseline, original = run.compressed, run.cost, run.baseline, run.baseline_cost
    assert compressed is not None
    assert cost is not None
    tiles = st.columns(5)
    with tiles[0]:
        low, high = compressed.ci95
        ui.metric_card(
            metric_label(compressed.metric, _),
            percent_text(compressed.value),
            _("was {before}").format(before=percent_text(baseline.value)) if baseline else "–",
            metric_help(compressed.metric, _)
            + " "
            + _(
                "Measured on {count} images. The compressed network lies between {low} and {high} with "
                "95 % confidence."
            ).format(count=f"{compressed.n:,}", low=percent_text(low), high=percent_text(high)),
        )
    with tiles[1]:
        ui.metric_card(
            _("Against the original"),
            _points(run),
            _drop_interval(run),
            f"{meaning('paired')} {meaning('points')} {meaning('interval')}",
        )
    with tiles[2]:
        size, before = run.size_bytes or 0, original.size_bytes if original else 0
        ui.metric_card(
            _("Size"),
            smaller_text(before, size, _),
            f"{size_text(before)} → {size_text(size)}",
            meaning("packed_file"),
        )
    with tiles[3]:
        bops, before = cost.bops, original.bops if original else 0
        ui.metric_card(
            _("Bit-operations"),
            percent_text(bops / before) if before else MISSING,
            f"{with_prefix(before, 'BOPs')} → {with_prefix(bops, 'BOPs')}",
            meaning("bops"),
        )
    with tiles[4], st.container(key="speed-tile"):
        speed_tile.show(run)
    with st.container(horizontal=True, gap="medium"):
        ui.link_to("tradeoffs", _("Compare with other runs"), ":material/scatter_plot:", model=run.model)
        ui.link_to("layers", _("Look into the layers"), ":material/stacks:", run=run.id)
        ui.link_to("export", _("Take it away"), ":material/download:", run=run.id)


def _points(run: RunRecord) -> str:
    if run.drop is None:
        return MISSING
    return _("{points} points").format(points=points_text(-run.drop))


def _drop_interval(run: RunRecord) -> str:
    if run.drop_ci95 is None:
        return "–"
    low, high = run.drop_ci95
    return _("between {low} and {high}").format(low=points_text(-high), high=points_text(-low))


def _layers(run: RunRecord) -> None:
    left, right = st.columns([4, 6], gap="medium")
    with left:
        st.markdown(f"**{_('Error of each layer')}**", help=meaning("layer_error"))
        st.caption(ui.plain(rows.errors_sentence(run)))
        errors = rows.layer_errors(run, html.escape(ui.run_title(run)))
        figure = charts.layer_error_figure([errors], dark=ui.is_dark(), _=_)
        st.plotly_chart(
            figure, key="result-errors", config={"displayModeBar": False}, alt=_("Error of each layer")
        )
    with right:
        st.markdown(f"**{_('Layers')}**")
        columns.table(live.layer_frame(run.layers), live.layer_columns())


def _classes(run: RunRecord) -> None:
    """The metric of each class before and after, and what else was measured."""
    before, after = run.baseline, run.compressed
    if before is None or after is None or not after.per_class:
        return
    classes = rows.class_rows(before.per_class, after.per_class)
    with st.expander(_("By class"), icon=":material/category:"):
        others = [
            f"{metric_label(name, _)}: {percent_text(before.extra[name])} → {percent_text(value)}"
            for name, value in after.extra.items()
        ]
        if after.agreement is not None:
            share = percent_text(after.agreement)
            others.append(_("Same answers as the original: {share}").format(share=share))
        if others:
            st.caption(ui.plain(" · ".join(others)))
        columns.table(
            pd.DataFrame(classes),
            {
                "name": columns.text(_("Class")),
                "original": columns.percent(_("Original"), "baseline"),
                "compressed": columns.percent(_("Compressed")),
                "change": columns.written(_("Change, points"), "points"),
            },
        )


def _facts(run: RunRecord) -> None:
    facts, row = _seconds(run.seconds), row_of(run)
    if run.peak_memory_bytes:
        facts.append((_("Peak memory"), size_text(run.peak_memory_bytes)))
    facts += [(_("Plan"), rows.plan_summary(row)), (_("Data"), image_set_text(row.data, _))]
    if run.request.weights:
        facts.append((_("Weights"), run.request.weights))
    if run.request.preprocessing:
        facts.append((_("Preparation given"), json.dumps(run.request.preprocessing)))
    if run.request.calibration:
        facts.append((_("Calibration images"), run.request.calibration))
    facts.append((_("Seed"), str(run.request.seed)))
    with st.expander(_("How it was made"), icon=":material/info:"):
        left, right = st.columns(2)
        left.markdown("\n".join(f"- {name}: **{ui.plain(value)}**" for name, value in facts if value))
        machine = environment_labels(_)
        told = [(machine.get(str(name), str(name)), value) for name, value in run.environment.items()]
        right.markdown("\n".join(f"- {ui.plain(name)}: {ui.plain(value)}" for name, value in told))
        check_result.show_images_used(run.images)
        if run.checks and run.checks.cannot_tell:
            st.caption(ui.plain(run.checks.cannot_tell.text(_)))


def _seconds(seconds: Any) -> list[tuple[str, str]]:
    names = {
        "total": _("Time in all"),
        "factorize": _("Solving the layers"),
        "calibrate": _("Calibrating"),
        "finetune": _("Fine-tuning"),
        "evaluate": _("Measuring"),
    }
    return [
        (label, duration_text(seconds[key])) for key, label in names.items() if seconds.get(key) is not None
    ]
