"""What was measured against size and bit-operations, for all runs of a model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import expectations, rows
from dashboard.text import _, plural
from dashboard.widgets import ui
from qaf_core.factorization.options import METHODS
from qaf_core.review import charts
from qaf_core.review.charts import CostAxis
from qaf_core.review.expected import expected_figure, expected_sentence
from qaf_core.review.metrics import metric_help, metric_label
from qaf_core.review.pareto import knee, pareto_front
from qaf_core.review.points import RunPoint
from qaf_core.review.units import MISSING, points_text
from qaf_core.runs.store.record import RunRecord


def page() -> None:
    """The Trade-offs page."""
    ui.page_title(
        _("Trade-offs"),
        _("What each run gained and lost: the best ones are high (accurate) and to the left (small)."),
    )
    runs = ui.open_store().list_runs()
    measured = [run for run in runs if run.compressed and run.cost]
    if not measured:
        unfinished = [run for run in runs if not run.is_final]
        if unfinished:
            ui.empty_state(
                "hourglass_top",
                _("The first run is not finished yet"),
                _("Its result appears here as soon as it is measured."),
                ("run", _("Watch the runs")),
            )
        else:
            ui.empty_state(
                "scatter_plot",
                _("No result to compare yet"),
                _("Run a compression first: each finished run becomes a point on these charts."),
                ("explore", _("Choose a model")),
            )
        return
    chosen = _filters(measured)
    if chosen is None:
        return
    if not chosen:
        st.info(_("No run matches these filters."), icon=":material/filter_alt_off:")
        return
    titles = {run.id: html.escape(_point_title(run)) for run in chosen}
    points = rows.tradeoff_points(chosen, titles, _("Original"))
    _charts(points)
    _expectations(chosen)
    _table(chosen, points)


def _filters(measured: Sequence[RunRecord]) -> list[RunRecord] | None:
    """Widgets that choose model, data, methods and largest loss; the runs that pass, None for no model."""
    left, middle, right, last = st.columns([2, 2, 3, 2], vertical_alignment="bottom")
    models = list(dict.fromkeys(run.model for run in measured))
    asked = st.query_params.get("model", models[0])
    if asked not in models:
        ui.say_error(_("No run of {model} has been measured in this workspace.").format(model=asked))
    model = left.selectbox(
        _("Model"),
        models,
        index=models.index(asked) if asked in models else None,
        placeholder=_("Choose a model"),
    )
    if model is None:
        return None
    st.query_params["model"] = model
    runs = [run for run in measured if run.model == model]
    kinds = list(dict.fromkeys(rows.evaluation_data(run) for run in runs))
    data = middle.selectbox(
        _("Measured on"),
        kinds,
        disabled=len(kinds) == 1,
        format_func=lambda name: _("Built-in images") if name == "builtin" else name,
        help=_("Only what is measured on the same images can be compared."),
    )
    runs = [run for run in runs if rows.evaluation_data(run) == data]
    methods = [m for m in METHODS if any(run.method == m for run in runs)]
    wanted = right.pills(
        _("Methods"),
        methods,
        selection_mode="multi",
        default=methods,
        key=f"methods-{model}-{data}-{methods}",
        format_func=lambda method: charts.method_label(method, _),
        help=method_help(),
    )
    limits = {_("Any"): None, _("1 point"): 0.01, _("2 points"): 0.02, _("5 points"): 0.05}
    limit = limits[last.selectbox(_("Largest loss"), list(limits))]
    return [
        run
        for run in runs
        if run.method in wanted and (limit is None or (run.drop is not None and run.drop <= limit))
    ]


def _point_title(run: RunRecord) -> str:
    return f"{ui.run_title(run)} ({rows.part_done(run)})" if run.is_partial else ui.run_title(run)


def method_help() -> str:
    """One line for each method, for a tooltip."""
    return "\n".join(
        (
            "- " + _("**Joint**: factorize and quantize as one problem, then fit each layer's output. Ours."),
            "- " + _("**Paper**: the published joint method (arXiv 2308.04595) as it was described."),
            "- " + _("**Sequential**: factorize in floating point first, round to integers afterwards."),
            "- " + _("**Dense**: no factorization, only careful rounding of the original weights."),
        )
    )


def _charts(points: Sequence[RunPoint]) -> None:
    metric = metric_label(points[0].metric, _)
    panels: tuple[tuple[CostAxis, str], ...] = (
        ("size", _("{metric} against size").format(metric=metric)),
        ("bops", _("{metric} against bit-operations").format(metric=metric)),
    )
    floor = charts.closeup_floor(points)
    if floor is not None:
        views = {"near": _("Close-up of the best"), "all": _("Whole range")}
        view = st.segmented_control(
            _("Vertical axis"), list(views), format_func=views.__getitem__, default="near", required=True
        )
        floor = floor if view == "near" else None
    for column, (axis, title) in zip(st.columns(2, gap="medium"), panels, strict=True):
        with column:
            st.markdown(f"**{ui.plain(title)}**", help=bops_help() if axis == "bops" else None)
            figure = charts.tradeoff_figure(points, axis=axis, dark=ui.is_dark(), floor=floor, _=_)
            event = st.plotly_chart(
                figure,
                key=f"tradeoff-{axis}",
                on_select="rerun",
                selection_mode="points",
                config={"displayModeBar": False},
                alt=title,
            )
            _open_clicked(event)
    note = _(
        "Bars show 95 % intervals of the measurement; the dotted line joins the best trade-offs. "
        "Click a point to open its run."
    )
    if floor is not None:
        note += " " + _("Open marks with an arrow belong further down.")
    if any(point.is_partial for point in points):
        note += " " + _("Open marks without an arrow: only a part of the layers is compressed.")
    st.caption(note)


def _expectations(runs: Sequence[RunRecord]) -> None:
    """What was expected of these runs against what they measured, where the model was explored."""
    points = expectations.of_runs(ui.open_store(), runs)
    if not points:
        return
    with st.expander(_("Expected against measured"), icon=":material/insights:"):
        figure = expected_figure(points, dark=ui.is_dark(), _=_)
        st.plotly_chart(
            figure, key="expected", config={"displayModeBar": False}, alt=_("Measured against expected")
        )
        st.caption(ui.plain(expected_sentence(points, _)))


def bops_help() -> str:
    """What bit-operations are, for a tooltip."""
    return _(
        "Bit-operations (BOPs): multiplications per image, each counted as weight bits × activation bits. "
        "A measure of arithmetic effort, not of time."
    )


def _open_clicked(event: Any) -> None:
    for point in event.selection.points:
        run_id = next(iter(point.get("customdata") or ()), "")
        if run_id:
            ui.go_to("run", run=str(run_id))


def _table(runs: Sequence[RunRecord], points: Sequence[RunPoint]) -> None:
    st.subheader(plural("{count} run", "{count} runs", len(runs)), anchor=False)
    best = _marks(points)
    frame = pd.DataFrame([_table_row(run, best) for run in runs])
    chosen = st.dataframe(
        frame,
        hide_index=True,
        key="tradeoff-table",
        on_select="rerun",
        selection_mode="single-cell",
        column_config=_table_columns(points[0].metric),
        placeholder=MISSING,
    )
    for position, _column in chosen.selection.cells:
        ui.go_to("run", run=runs[position].id)


def _marks(points: Sequence[RunPoint]) -> dict[str, str]:
    """The signs of the runs on a front: of size, with its cheapest and its knee, or of bit-operations."""
    values = [point.value for point in points]
    front = pareto_front([p.size_bytes for p in points], values)
    signs = {points[i].run_id: "★" for i in (*front, *pareto_front([p.bops for p in points], values))}
    turn = knee([points[i].size_bytes for i in front], [points[i].value for i in front])
    if front:
        signs[points[front[0]].run_id] = _("★ smallest")
    if turn is not None:
        signs[points[front[turn]].run_id] = _("★ knee")
    return signs


def _table_row(run: RunRecord, best: Mapping[str, str]) -> dict[str, Any]:
    compressed, cost, original = run.compressed, run.cost, run.baseline_cost
    assert compressed is not None
    assert cost is not None
    low, high = compressed.ci95
    size = run.size_bytes or cost.size_bytes
    return {
        "best": best.get(run.id, ""),
        "run": ui.run_title(run),
        "method": charts.method_label(run.method, _),
        "plan": rows.plan_summary(run),
        "accuracy": 100 * compressed.value,
        "interval": f"{100 * low:.1f} – {100 * high:.1f}",
        "drop": points_text(-run.drop) if run.drop is not None else None,
        "size": size / 1e6,
        "smaller": original.size_bytes / size if original else None,
        "bops": cost.bops / 1e9,
        "share": 100 * cost.bops / original.bops if original else None,
        "status": ui.status_label(run.status),
    }


def _table_columns(metric: str) -> dict[str, Any]:
    column = st.column_config
    return {
        "best": column.TextColumn(
            _("Best"),
            help=_(
                "On the line of best trade-offs for size or bit-operations: the smallest that passes the "
                "largest loss above, and the knee, after which more size buys little."
            ),
            width=85,
        ),
        "run": column.TextColumn(_("Run")),
        "method": column.TextColumn(_("Method")),
        "plan": column.TextColumn(
            _("Plan"),
            help=_("Layers per structure · R: lowest and highest rank · W: weight bits · A: activation bits"),
        ),
        "accuracy": column.NumberColumn(
            metric_label(metric, _), help=metric_help(metric, _) or None, format="%.1f %%"
        ),
        "interval": column.TextColumn(_("95 % interval")),
        "drop": column.TextColumn(_("Change"), help=_("Percentage points against the original network.")),
        "size": column.NumberColumn(_("Size"), format="%.3f MB"),
        "smaller": column.NumberColumn(_("Smaller"), format="%.1f×"),
        "bops": column.NumberColumn(_("BOPs"), format="%.3f G", help=bops_help()),
        "share": column.NumberColumn(_("Of original BOPs"), format="%.1f %%"),
        "status": column.TextColumn(_("Status")),
    }
