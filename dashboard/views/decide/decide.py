"""The Decide page: what is asked of a compressed network, whether it holds, and a report to sign."""

from __future__ import annotations

import html
from collections.abc import Sequence

import streamlit as st

from dashboard.state import address
from dashboard.state import review as state
from dashboard.text import _
from dashboard.views.decide import business, checks, criteria, draft, paper, risks
from dashboard.widgets import blocks, run_choice, ui
from qaf_core.review.report import evidence_sections, sections
from qaf_core.review.report.review import MOST_RUNS, Review
from qaf_core.runs.listing import RunRow, list_rows
from qaf_core.runs.store.record import RunRecord


def page() -> None:
    """The Decide page: ``?run=ID`` names the runs, up to five; ``part`` what is looked at."""
    ui.page_title(
        _("Decide"),
        _("Set what the network must hold, see whether it does, and take the decision away as one report."),
    )
    runs = [row for row in list_rows(ui.open_store()) if row.value is not None or not row.is_final]
    known = {run.id for run in runs}
    for run_id in st.query_params.get_all("run"):
        if run_id not in known:
            run_choice.say_why(run_id, _("It has no result to decide about."))
    if not runs:
        ui.empty_state(
            "gavel",
            _("Nothing to decide yet"),
            _("A decision is about a finished run: compress a network first."),
            ("explore", _("Choose a model")),
        )
        return
    chosen = _choose(runs)
    if not chosen:
        st.info(_("Choose at least one run."), icon=":material/touch_app:")
        return
    waiting = [run for run in chosen if not run.compressed]
    if waiting:
        st.info(
            _("This run is not finished: criteria set now are kept as set before the result was known."),
            icon=":material/hourglass_top:",
        )
        criteria.form(chosen, sets=state.kept_criteria(waiting[0]))
        return
    _draw(state.load_review([run.id for run in chosen]), chosen)


def _choose(runs: Sequence[RunRow]) -> list[RunRecord]:
    """The runs asked for, in the address too."""
    by_id = {run.id: run for run in runs}
    named, key = st.query_params.get_all("run"), "decide-runs"
    requested = [run_id for run_id in named if run_id in by_id][:MOST_RUNS]
    first = [] if named else [next((run.id for run in runs if run.value is not None), runs[0].id)]
    if address.values_of("run") or address.going_back("run") or key not in st.session_state:
        st.session_state[key] = requested or first
    ids = st.multiselect(
        _("Runs to decide about"),
        list(by_id),
        format_func=run_choice.labels(runs, lambda run: f"{run.title} · {run.model}").__getitem__,
        max_selections=MOST_RUNS,
        key=key,
        placeholder=_("Choose runs"),
        help=_("Up to five runs of one model on the same images; their criteria are those of the first."),
    )
    address.set_values("run", *(named if ids == requested else ids))  # what is said of unknown runs stays
    return [ui.open_store().run(run_id) for run_id in ids]


def _draw(review: Review, chosen: Sequence[RunRecord]) -> None:
    verdict_line(review)
    number_cards(review)
    parts = {
        "verdict": _("Criteria and verdict"),
        "changes": _("What changed for whom"),
        "checks": _("Speed, robustness, stability"),
        "case": _("Business case"),
        "risks": _("Risks and plan"),
        "report": _("Report"),
    }
    part = st.segmented_control(
        _("Part of the decision"),
        list(parts),
        format_func=parts.__getitem__,
        key=address.choice("part", list(parts), "verdict", key="decide-part"),
        required=True,
        label_visibility="collapsed",
    )
    if part != "verdict":
        draft.name(criteria.place_of(chosen))
    if part == "verdict":
        _verdict(review, chosen)
    elif part == "changes":
        _changes(review)
    elif part == "checks":
        checks.show(review)
    elif part == "case":
        business.show(review)
    elif part == "risks":
        risks.show(review)
    else:
        paper.show(review)


def verdict_line(review: Review) -> None:
    """The verdict and its reasons."""
    verdict = review.verdict
    reasons = list(review.recommendation.reasons)
    if verdict.rows and verdict.status != "pass":
        reasons += verdict.reasons[:4]
    items = "".join(f"<li>{html.escape(reason.text(_))}</li>" for reason in reasons)
    title = html.escape(sections.banner(review, _))
    st.html(f'<div class="qaf-verdict {verdict.status}"><b>{title}</b><ul>{items}</ul></div>')


def number_cards(review: Review) -> None:
    """What is lost and what is gained, in three numbers."""
    for column, number in zip(st.columns(3), sections.three_numbers(review, _), strict=True):
        with column:
            ui.metric_card(number["title"], number["value"], number["note"], height="stretch")


def _verdict(review: Review, chosen: Sequence[RunRecord]) -> None:
    left, right = st.columns([5, 4], gap="large")
    section = sections.criteria_section(review, _)
    with left:
        for block in section.blocks:
            blocks.draw_block(block)
        if not section.blocks:
            st.info(
                _("No criteria are set yet. Say below what the network must hold."), icon=":material/rule:"
            )
        for text in section.listed:
            st.caption(ui.plain(text))
    with right:
        chart = sections.first_chart(review, _)
        if chart is not None:
            blocks.draw_block(chart)
    if len(review.runs) > 1:
        blocks.draw_block(sections.side_by_side(review, _))
    criteria.form(chosen, sets=review.criteria_sets, classes=state.class_names(review))


def _changes(review: Review) -> None:
    section = evidence_sections.changes_section(review, _)
    if review.chosen.predictions is None:
        st.info(ui.plain(section.paragraphs[0]), icon=":material/history:")
        checks.answers(review)
        return
    blocks.draw_section(section)
