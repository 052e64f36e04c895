"""Up to five runs beside each other: results, plan and errors by layer, time by layer, accuracy by class."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard.state import address, expectations
from dashboard.state.review import load_evidence
from dashboard.text import _
from dashboard.views.run import live
from dashboard.widgets import blocks, run_choice, ui
from qaf_core.review.report import comparison
from qaf_core.review.report.comparison import Compared
from qaf_core.review.report.review import MOST_RUNS
from qaf_core.runs.listing import list_rows


def page() -> None:
    """The Compare page: ``?run=ID`` names the runs, up to five."""
    ui.page_title(_("Compare"), _("Up to five runs of one model beside each other; what differs is marked."))
    rows = {row.id: row for row in list_rows(ui.open_store()) if row.is_measured}
    if len(rows) < 2:
        ui.empty_state(
            "compare",
            _("Nothing to compare yet"),
            _("Two finished runs of one model can stand beside each other here."),
            ("explore", _("Choose a model")),
        )
        return
    key = address.several("run", list(rows), [])
    st.session_state[key] = st.session_state[key][:MOST_RUNS]
    models = {rows[run_id].model for run_id in st.session_state[key]}
    ids = st.multiselect(
        _("Runs to compare"), [run_id for run_id, row in rows.items() if not models or row.model in models],
        key=key, max_selections=MOST_RUNS, placeholder=_("Choose runs"),
        format_func=run_choice.labels(tuple(rows.values())).__getitem__,
    )  # fmt: skip
    address.set_values("run", *ids)
    if len(ids) < 2:
        st.info(_("Choose at least two runs."), icon=":material/touch_app:")
        return
    _draw(ids)


def _draw(ids: Sequence[str]) -> None:
    runs = load_evidence(ids)
    with st.container(horizontal=True, gap="medium"):
        ui.link_to("decide", _("Decide between them"), ":material/gavel:", run=list(ids))
        ui.link_to("tradeoffs", _("See them among all runs"), ":material/scatter_plot:",
                   model=runs[0].record.model)  # fmt: skip
    blocks.draw_block(comparison.overview(runs, _))
    st.subheader(_("Layers"), anchor=False)
    shares = [expectations.divergence_shares(ui.open_store(), run_id) for run_id in ids]
    _layers(comparison.compare_runs(runs, shares), any(shares))
    classes = comparison.class_table(runs, _)
    if classes is not None:
        st.subheader(_("By class"), anchor=False)
        blocks.draw_block(classes)


def _layers(compared: Compared, explored: bool) -> None:
    things = {
        comparison.PLAN: _("Plan"), comparison.ERRORS: _("Errors"),
        comparison.DIVERGENCE: _("Share of the divergence"), comparison.TIME: _("Time"),
    }  # fmt: skip
    orders = {
        comparison.IN_ORDER: _("As in the network"), comparison.BY_OUTPUT: _("Largest error of outputs"),
        comparison.BY_WEIGHTS: _("Largest error of weights"),
        comparison.BY_SHARE: _("Largest share of the divergence"), comparison.BY_TIME: _("Longest time"),
    }  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="bottom"):
        what = st.segmented_control(
            _("Shown"), list(things), format_func=things.__getitem__, required=True,
            key=address.choice("what", list(things), comparison.PLAN),
        )  # fmt: skip
        order = st.selectbox(
            _("Sorted by"), list(orders), format_func=orders.__getitem__, width=300,
            key=address.choice("sort", list(orders), comparison.IN_ORDER),
            help=_("The error of a layer's outputs matters more than that of its weights."),
        )  # fmt: skip
        only = st.toggle(
            _("Only layers whose plan differs"), key=address.choice("different", (False, True), False)
        )
    if not explored and comparison.DIVERGENCE in (
        what,
        order if order != comparison.BY_SHARE else "divergence",
    ):
        st.info(
            _("Shares of the divergence are known once the model is explored: Explore, Expected."),
            icon=":material/travel_explore:",
        )
    if what == comparison.TIME and not any(
        row.milliseconds for own in compared.layers.values() for row in own
    ):
        st.info(_("No time by layer yet: measure the runs on Export, or on their pages."),
                icon=":material/speed:")  # fmt: skip
    table = comparison.layer_table(
        compared, what or comparison.PLAN, order, live.structure_labels(), only_different=only, _=_
    )
    if table.rows:
        blocks.draw_block(table)
    else:
        st.caption(_("All layers have the same plan in all these runs."))
