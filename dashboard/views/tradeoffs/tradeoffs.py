"""All runs of a model against each other: over axes chosen freely, against a target, against one of them."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard.state import address, expectations
from dashboard.text import _
from dashboard.views.tradeoffs import drawing, table
from dashboard.views.tradeoffs.judged import judge, show_target
from dashboard.widgets import run_tools, ui
from qaf_core.factorization.options import METHODS
from qaf_core.review import charts
from qaf_core.review.expected import expected_figure, expected_sentence
from qaf_core.runs.listing import RunRow, list_rows


def page() -> None:
    """The Trade-offs page: ``?model=ID`` names the model."""
    ui.page_title(
        _("Trade-offs"),
        _("What each run gained and lost: the best ones are high (accurate) and to the left (small)."),
    )
    runs = list_rows(ui.open_store())
    measured = [row for row in runs if row.is_measured]
    if not measured:
        _nothing_yet(any(not row.is_final for row in runs))
        return
    chosen = _filters(measured)
    if chosen is None:
        return
    if not chosen:
        st.info(_("No run matches these filters."), icon=":material/filter_alt_off:")
        return
    judged = judge(chosen)
    show_target(chosen, judged)
    points = drawing.points_of(chosen, judged)
    drawing.show(chosen, points, judged)
    _expectations(chosen)
    table.show(chosen, points, judged)


def _nothing_yet(unfinished: bool) -> None:
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


def _filters(measured: Sequence[RunRow]) -> list[RunRow] | None:
    """Widgets that choose model, data, methods, loss and words; the runs that pass, None for no model."""
    left, middle, right, last = st.columns([2, 2, 3, 2], vertical_alignment="bottom")
    models = list(dict.fromkeys(run.model for run in measured))
    requested = st.query_params.get("model", models[0])
    if requested not in models:
        ui.say_error(_("No run of {model} has been measured in this workspace.").format(model=requested))
    model = left.selectbox(
        _("Model"),
        models,
        index=models.index(requested) if requested in models else None,
        placeholder=_("Choose a model"),
    )
    if model is None:
        return None
    address.set_values("model", model)
    runs = [run for run in measured if run.model == model]
    kinds = list(dict.fromkeys(run.data for run in runs))
    data = middle.selectbox(
        _("Measured on"),
        kinds,
        disabled=len(kinds) == 1,
        format_func=lambda name: _("Built-in images") if name == "builtin" else name,
        help=_("Only what is measured on the same images can be compared."),
    )
    runs = [run for run in runs if run.data == data]
    methods = [m for m in METHODS if any(run.method == m for run in runs)]
    picked = right.pills(
        _("Methods"),
        methods,
        selection_mode="multi",
        key=address.several("method", methods, methods, key=f"methods-{model}-{data}-{methods}"),
        format_func=lambda method: charts.method_label(method, _),
        help=table.method_help(),
    )
    limits = {1.0: _("Any"), 0.01: _("1 point"), 0.02: _("2 points"), 0.05: _("5 points")}
    limit = last.selectbox(
        _("Largest loss"), list(limits), format_func=limits.__getitem__,
        key=address.choice("loss", list(limits), 1.0),
    )  # fmt: skip
    runs = [
        run
        for run in runs
        if run.method in picked and (limit == 1.0 or (run.drop is not None and run.drop <= limit))
    ]
    return run_tools.filtered(runs, key="tradeoffs")


def _expectations(runs: Sequence[RunRow]) -> None:
    """What was expected of these runs against what they measured, where the model was explored."""
    points = expectations.of_runs(ui.open_store(), tuple(row.id for row in runs[: expectations.MOST_RUNS]))
    if not points:
        return
    with st.expander(_("Expected against measured"), icon=":material/insights:"):
        figure = expected_figure(points, dark=ui.is_dark(), _=_)
        st.plotly_chart(
            figure, key="expected", config={"displayModeBar": False}, alt=_("Measured against expected")
        )
        st.caption(ui.plain(expected_sentence(points, _)))
