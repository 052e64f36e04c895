"""Risks with owner and next step, the plan in stages, three sentences to copy, notes and decision."""

from __future__ import annotations

import streamlit as st

from dashboard.text import _
from dashboard.widgets import blocks, ui
from qaf_core.errors import QafError
from qaf_core.review.decision.risks import (
    LONGEST_FIELD,
    LONGEST_TEXT,
    ReviewNotes,
    Risk,
    keep_notes,
    three_sentences,
)
from qaf_core.review.report import decision_sections
from qaf_core.review.report.review import Review

COLOURS = {"high": "red", "medium": "orange", "low": "gray"}
SIGNERS = 3


def show(review: Review) -> None:
    """Sentences first, since they are what a meeting hears."""
    st.markdown(f"**{_('Three sentences for the meeting')}**")
    sentences = three_sentences(review.chosen, review.verdict, review.case)
    st.code("\n".join(sentence.text(_) for sentence in sentences), language=None, wrap_lines=True)
    _form(review)
    for block in decision_sections.risks_section(review, _).blocks:
        if block.key == "plan":
            blocks.draw_block(block)


def _form(review: Review) -> None:
    run_id, notes = review.chosen.run_id, review.notes
    with st.form(f"risks-{run_id}", border=False):
        st.markdown(
            f"**{_('Risks')}**", help=_("Read off the run anew each time; owner and next step are yours.")
        )
        owners, steps = {}, {}
        for risk in review.risks:
            owners[risk.key], steps[risk.key] = _row(risk, run_id)
        st.markdown(f"**{_('Decision')}**")
        left, right = st.columns([2, 3], gap="large")
        with left:
            labels = decision_sections.decision_labels(_)
            decision = st.segmented_control(
                _("Decision"), list(labels), format_func=labels.__getitem__, default=notes.decision,
                key=f"decision-{run_id}", required=True, label_visibility="collapsed",
            )  # fmt: skip
            names = [
                st.text_input(title, name, LONGEST_FIELD, key=f"signer-{run_id}-{place}")
                for place, (title, name) in enumerate(
                    zip(
                        (_("Drafted by"), _("Reviewed by"), _("Approved by")),
                        [*notes.signers, *[""] * SIGNERS],
                        strict=False,
                    )
                )
            ]
        with right:
            text = st.text_area(
                _("Notes"), notes.notes, max_chars=LONGEST_TEXT, height=240, key=f"notes-{run_id}"
            )
        pressed = st.form_submit_button(_("Save"), type="primary", icon=":material/check:")
    if pressed:
        added = ReviewNotes(
            owners={key: value for key, value in owners.items() if value},
            steps={key: value for key, value in steps.items() if value},
            notes=text,
            decision=decision or "",
            signers=tuple(names) if any(names) else (),
        )
        try:
            keep_notes(ui.open_store().run_folder(run_id), added)
        except QafError as error:
            ui.say_error(error)
            return
        st.rerun()


def _row(risk: Risk, run_id: str) -> tuple[str, str]:
    """One risk; its owner and own step as entered."""
    with st.container(border=True):
        body, step, owner = st.columns([5, 4, 2], vertical_alignment="center")
        with body:
            label = {"high": _("high"), "medium": _("medium"), "low": _("low")}[risk.level]
            st.badge(label, color=COLOURS[risk.level])  # type: ignore[arg-type]
            st.markdown(ui.plain(risk.text.text(_)))
        own_step = step.text_area(
            _("Next step"), risk.own_step, max_chars=LONGEST_FIELD, height=68,
            placeholder=risk.next_step.text(_), key=f"step-{run_id}-{risk.key}",
        )  # fmt: skip
        who = owner.text_input(_("Owner"), risk.owner, LONGEST_FIELD, key=f"owner-{run_id}-{risk.key}")
    return who, own_step
