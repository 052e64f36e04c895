"""Explore's expectations: the metric a plan is expected to have, and what every setting of a layer harms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import expectations, jobs, sheets
from dashboard.state.plan_draft import Draft
from dashboard.text import _, listed, meaning
from dashboard.views.explore import controls
from dashboard.views.explore.choose import Choice
from dashboard.views.run import live
from dashboard.widgets import columns as tables
from dashboard.widgets import ui
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.review.metrics import metric_label
from qaf_core.runs.jobs.plans.knowledge import LEARNT_METHODS
from qaf_core.runs.store.request import SensitivityRequest
from qaf_core.search.budget.predict import Prediction, Predictor
from qaf_core.search.sensitivity.settings import Setting
from qaf_core.text.units import MISSING, bits_text, decimal_text, percent_text, points_text, rank_text

GENTLE, HARD = 1e-4, 0.2  # losses at which a cell's colour begins and ends
COLOUR = "213, 94, 0"
LEAST_SHOWN = 0.001  # points
CLICKED_KEY = "heat-clicked"
LONGEST_TABLE_ROWS = 14
WORTH_TELLING = 0.002  # of the metric


def show(choice: Choice, draft: Draft) -> None:
    """What is expected of the plan, or how to get to know it."""
    if choice.obstacle is not None:
        return
    request = controls.request_of(choice)
    exploration = expectations.known(ui.open_store(), request)
    if exploration is None:
        _offer(choice, request)
        return
    knowledge, predictor = exploration
    if st.session_state["method"] in LEARNT_METHODS:
        _show_prediction(predictor.predict(draft.plan), float(knowledge.baseline["value"]))
        _show_dense(exploration, draft)
    else:
        st.caption(_("Accuracy can be predicted for the methods Joint and Dense."))
    with st.expander(_("What each setting of a layer harms"), icon=":material/grid_on:"):
        _heat_map(choice, draft, predictor)


def _offer(choice: Choice, request: SensitivityRequest) -> None:
    place = f"sensitivity-{choice.source.id}"
    job = jobs.recall(ui.open_store(), place, "sensitivity")
    text = _("Exploring the model, {time} so far. You may plan meanwhile.")
    if job is not None and job.request == request and ui.job_at_work(job, text):
        return
    left, right = st.columns([1, 3], vertical_alignment="center")
    if left.button(_("Predict accuracy"), icon=":material/insights:", key="explore-model", width="stretch"):
        jobs.remember(place, ui.open_store().ask(request))
        st.rerun()
    right.caption(
        _(
            "Looks once at how strongly this network's answers react to every layer: a minute or two for "
            "small networks. Then the accuracy of every plan is expected here at once, before any run."
        )
    )


def _show_prediction(expected: Prediction, original: float) -> None:
    left, right = st.columns([1, 3], vertical_alignment="center")
    low, high = expected.ci95
    with left:
        ui.metric_card(
            _("{metric}, expected").format(metric=metric_label(expected.metric, _)),
            percent_text(expected.value),
            _("{low} to {high}").format(low=percent_text(low), high=percent_text(high)),
            meaning("expected"),
        )
    with right:
        if expected.warning is not None:
            st.warning(ui.plain(_collapse_text(expected)), icon=":material/warning:")
            return
        text = _("{points} points against the original's {original}; learnt from {source}.").format(
            points=points_text(-expected.drop), original=percent_text(original),
            source=listed(expected.learnt_from),
        )  # fmt: skip
        if expected.worst:
            text += " " + _("Most harm is done by {layers}.").format(layers=_worst_layers(expected))
        st.caption(ui.plain(text))
        if expected.unknown:
            st.caption(
                ui.plain(
                    _("Nothing is known of the structure chosen for {layers}: not counted.").format(
                        layers=listed(expected.unknown)
                    )
                )
            )


def _show_dense(known: expectations.Known, draft: Draft) -> None:
    """Say so where plain rounding of as many bytes is expected to lose less."""
    harm = expectations.dense_harm_at(known, draft.plan)
    if harm is None:
        return
    predictor = known[1]
    gain = predictor.drop_at(predictor.harm(draft.plan)) - predictor.drop_at(harm)
    if gain >= WORTH_TELLING:
        st.info(
            ui.plain(
                _(
                    "Plain rounding, its bits spread over the layers, is expected to lose {points} points "
                    "less at this size: set the size under “Best plan under a budget”."
                ).format(points=decimal_text(100 * gain, 1))
            ),
            icon=":material/lightbulb:",
        )


def _collapse_text(expected: Prediction) -> str:
    return _("The network is expected to collapse under this plan. Most harm is done by {layers}.").format(
        layers=_worst_layers(expected)
    )


def _worst_layers(expected: Prediction) -> str:
    return listed(f"{name} ({percent_text(share, 0)})" for name, share in expected.worst)


def _heat_map(choice: Choice, draft: Draft, predictor: Predictor) -> None:
    settings = predictor.sensitivity.settings
    labels = live.structure_labels()
    offered = dict.fromkeys(row.row.structure for rows in settings.values() for row in rows)
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    structure = left.segmented_control(
        _("Structure"),
        [name for name in offered if name != KEEP],
        key="heat-structure",
        format_func=lambda name: labels.get(name, name),
        default=next(n for n in offered if n != KEEP),
        required=True,
    )
    by_size = right.toggle(
        _("Per kB saved"), key="heat-per-size", help=_("Points lost for each kB that the layer gets smaller.")
    )
    names = [row.name for row in draft.layers]
    table = {
        name: _cells([s for s in settings.get(name, ()) if s.row.structure == structure]) for name in names
    }
    columns = list(dict.fromkeys(label for cells in table.values() for label in cells))
    kept = {name: next((s.size_bytes for s in settings.get(name, ()) if s.harm == 0), 0) for name in names}
    floor = predictor.sensitivity.floor

    def loss(name: str, setting: Setting) -> float:
        points = 100 * (predictor.drop_at(setting.harm + floor) - predictor.drop_at(floor))
        return points / max((kept[name] - setting.size_bytes) / 1e3, 1e-3) if by_size else points

    losses = [
        [loss(name, table[name][label]) if label in table[name] else math.nan for label in columns]
        for name in names
    ]
    frame = pd.DataFrame(losses, columns=columns, index=pd.Index(names, name=_("Layer")))
    top = HARD * 100 if not by_size else max((v for row in losses for v in row if v == v), default=1.0)
    _draw(choice, frame.style.map(_shade, top=max(top, 1e-6)).format(_small), table)


def _small(value: Any) -> str:
    """Two digits; what no run could tell from nothing is not written out."""
    return f"< {LEAST_SHOWN:g}" if 0 < value < LEAST_SHOWN else f"{value:.2g}"


def _draw(choice: Choice, shaded: Any, table: dict[str, dict[str, Setting]]) -> None:
    names, columns = list(shaded.index), list(shaded.columns)
    st.caption(
        _(
            "Points expected to be lost if only this layer is changed. Click a cell to put it into the plan. "
            "4/3 bits: 3 in the largest of the factors that are not fitted to outputs, 4 in the others."
        ),
        help=meaning("harm"),
    )
    key = f"heat-{choice.source.id}-{','.join(columns)}"
    event = st.dataframe(
        shaded,
        key=key,
        placeholder=MISSING,
        on_select="rerun",
        selection_mode="single-cell",
        height=tables.table_height(len(names), most=LONGEST_TABLE_ROWS),
    )
    clicked = list(event.selection.cells)
    if clicked == st.session_state.get(CLICKED_KEY, []):
        return
    for position, label in clicked:
        setting = table[names[position]].get(label)
        if setting is not None:
            row = setting.row
            texts = (row.structure, rank_text(row.rank), bits_text(row.bits))
            cells = zip(sheets.COLUMNS, texts, strict=True)
            sheets.type_in(choice.source.id, *((row.name, column, text) for column, text in cells))
    st.session_state[CLICKED_KEY] = clicked
    if clicked:
        st.rerun()


def _cells(settings: Sequence[Setting]) -> dict[str, Setting]:
    """Settings of one structure by the heading of their column: bits, and how many ranks are higher."""
    ranks = list(dict.fromkeys(setting.row.rank for setting in settings))
    cells = {}
    for setting in sorted(settings, key=lambda s: (ranks.index(s.row.rank), -sum(_widths(s)))):
        highest, lowest = _widths(setting)
        bits = _("{bits} bits").format(bits=highest if highest == lowest else f"{highest}/{lowest}")
        place = ranks.index(setting.row.rank) + 1
        cells[
            bits if setting.row.rank is None else _("rank {place}, {bits}").format(place=place, bits=bits)
        ] = setting
    return cells


def _widths(setting: Setting) -> tuple[int, int]:
    """The most and the fewest bits of a setting's factors; which has the fewest depends on the layer."""
    bits = setting.row.bits if isinstance(setting.row.bits, tuple) else (setting.row.bits or 0,)
    return max(bits), min(bits)


def _shade(value: Any, top: float) -> str:
    """A cell's ground: the more is lost the darker, by logarithms."""
    if not value > 0:
        return ""
    low = top * GENTLE / HARD
    strength = math.log(max(value, low) / low) / math.log(top / low)
    return f"background-color: rgba({COLOUR}, {0.75 * min(strength, 1.0):.2f})"
