"""Explore's search for the fastest plan: layers timed on this machine, structures chosen by that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import address
from dashboard.text import _, plural
from dashboard.views.explore import controls
from dashboard.views.explore.choose import Choice
from dashboard.views.run import live
from dashboard.widgets import columns, ui
from qaf_core.factorization.options import Method
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.records import from_plain
from qaf_core.runs.store.request import PlanRequest
from qaf_core.search.selection import AnswerShares, LayerChoice, Selection, note_text
from qaf_core.text.units import factor_text, milliseconds_text, percent_text, rank_text

ANSWER_BOUNDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
FIRST_ANSWER_BOUND = 0.02


def offer(choice: Choice) -> None:
    """What to set, the button, and what the search found; it fills the plan's table when it is done."""
    disabled = st.session_state["method"] != Method.JOINT or choice.obstacle is not None
    with st.expander(_("Fastest plan on this machine"), icon=":material/speed:"):
        st.caption(
            _(
                "Fewer operations are not always less time. This times every layer's possible forms on this "
                "machine (once; it is kept), alone and inside the network, and takes those that save most "
                "time for the harm that is expected of them at the weight bits above. Networks compressed so "
                "then tell how many answers change: as much speed is taken as that allows. It takes minutes "
                "on large networks."
            )
        )
        left, middle, right = st.columns([2.2, 0.8, 1.2], gap="medium", vertical_alignment="bottom")
        with left:
            answer_bound = st.select_slider(
                _("Answers that may change"),
                ANSWER_BOUNDS,
                format_func=lambda value: percent_text(value, 1),
                key=address.choice("answers", ANSWER_BOUNDS, FIRST_ANSWER_BOUND, key="fastest-answer-bound"),
                help=_(
                    "On the calibration images, beyond those that plain rounding to as many bits changes. No "
                    "labels are needed: on these images a classifier's accuracy cannot fall by more than the "
                    "answers that change. Masks and boxes are compared with the original's by overlap (mean "
                    "IoU, F1)."
                ),
            )
        with middle:
            cores = os.cpu_count() or 1
            threads = st.number_input(
                _("Threads"), 1, cores,
                key=address.number("threads", min(2, cores), 1, cores, key="fastest-threads"),
            )  # fmt: skip
        place = f"search-{choice.source.id}"
        with right:
            if st.button(
                _("Find the fastest plan"),
                icon=":material/search:",
                key="find-fastest",
                disabled=disabled,
                width="stretch",
                help=_("For the joint method, with a model that can be run.") if disabled else None,
            ):
                controls.ask_plan(place, _request(choice, answer_bound, int(threads)))
        result = controls.take_search_result(choice, place, "plan")
        if result is not None:
            _draw(from_plain(Selection, result))


def _request(choice: Choice, answer_bound: float, threads: int) -> PlanRequest:
    state = st.session_state
    return PlanRequest(
        **choice.overrides.of(choice.source.id), data=choice.data, calibration=choice.calibration,
        bits=state["bits"], activation_bits=state["activation-bits"], answer_bound=answer_bound,
        threads=threads,
    )  # fmt: skip


def _draw(selection: Selection) -> None:
    """What was chosen for each layer, and why not something else."""
    choices = selection.choices
    changed = [row for row in choices if row.structure in FACTORIZED]
    if not changed:
        st.warning(
            _(
                "On this machine no layer has a faster form than plain INT8 within this bound: the plan is "
                "dense throughout. Allow more answers to change, or compress for size instead."
            ),
            icon=":material/warning:",
        )
    else:
        gains = selection.whole is None or selection.whole.ratio.high < 1.0
        draw, icon = (st.success, "check_circle") if gains else (st.warning, "warning")
        draw(
            plural(
                "{count} layer gets a faster form; the table below is filled with the plan.",
                "{count} layers get a faster form; the table below is filled with the plan.",
                len(changed),
            )
            + " "
            + _speed_text(selection)
            + _answers_text(selection.answers),
            icon=f":material/{icon}:",
        )
    if selection.note:
        st.caption(ui.plain(note_text(selection.note, _)))
    labels, column = live.structure_labels(), st.column_config
    columns.table(
        pd.DataFrame([_row(row, labels) for row in (*changed, *(r for r in choices if r not in changed))]),
        most=10,
        config={
            "layer": column.TextColumn(_("Layer")),
            "structure": column.TextColumn(_("Chosen")),
            "rank": columns.text(_("Rank"), "rank"),
            "chosen_ms": columns.number(_("Time"), "%.3f ms", "latency"),
            "dense_ms": columns.number(_("Plain INT8"), "%.3f ms", "latency"),
            "error": columns.percent(_("Output error"), "output_error"),
            "tried": column.NumberColumn(_("Forms tried"), help=_("Forms that were solved and judged.")),
        },
    )


def _speed_text(selection: Selection) -> str:
    """The whole network's time as planned; of the layers alone where it could not be timed."""
    times = selection.whole
    if times is not None:
        return _(
            "The whole network takes {after} as planned and {before} as plain INT8: {ratio} as long "
            "({low} to {high})."
        ).format(
            before=milliseconds_text(times.dense_ms), after=milliseconds_text(times.planned_ms),
            ratio=factor_text(times.ratio.value), low=factor_text(times.ratio.low),
            high=factor_text(times.ratio.high),
        )  # fmt: skip
    before = sum(row.dense_ms for row in selection.choices)
    after = sum(row.latency_ms for row in selection.choices)
    return _("The layers alone: {before} as plain INT8, {after} as planned.").format(
        before=milliseconds_text(before), after=milliseconds_text(after)
    )


def _answers_text(answers: AnswerShares | None) -> str:
    """How many answers change, where they were counted."""
    if answers is None or answers.changed is None:
        return ""
    text = " " + _("On {count} calibration images {changed} of the answers change.").format(
        count=answers.images, changed=percent_text(answers.changed, 1)
    )
    if answers.changed_by_dense is None:
        return text
    return text + " " + _("Plain rounding changes {dense}.").format(
        dense=percent_text(answers.changed_by_dense, 1)
    )  # fmt: skip


def _row(choice: LayerChoice, labels: Mapping[str, str]) -> dict[str, Any]:
    error = choice.output_error
    return {
        "layer": choice.name,
        "structure": labels.get(choice.structure, choice.structure),
        "rank": rank_text(choice.rank) or None,
        "chosen_ms": choice.latency_ms,
        "dense_ms": choice.dense_ms,
        "error": None if error is None else 100 * error,
        "tried": len(choice.tried),
    }
