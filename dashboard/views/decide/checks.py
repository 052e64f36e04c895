"""Speed, robustness and stability of the recommended run, with the jobs that measure what is missing."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.text import _
from dashboard.widgets import blocks, ui
from qaf_core.review.report import evidence_sections
from qaf_core.review.report.review import Review
from qaf_core.runs.store.request import (
    ROBUSTNESS_IMAGES,
    STABILITY_MINUTES,
    AnswersRequest,
    JobRequest,
    RobustnessRequest,
    StabilityRequest,
)


def show(review: Review) -> None:
    """What was measured, and buttons for what was not."""
    run = review.chosen
    speed = evidence_sections.speed_section(review, _)
    for text in speed.paragraphs:
        st.info(ui.plain(text), icon=":material/speed:")
    ui.link_to(
        "export", _("Measure speed on this machine or on a device"), ":material/speed:", run=run.run_id
    )
    left, right = st.columns(2, gap="large")
    for place, block in enumerate(speed.blocks):
        with (left, right)[place % 2]:
            blocks.draw_block(block)
    section = evidence_sections.checks_section(review, _)
    for text in section.paragraphs if review.chosen.unreadable else ():
        st.warning(ui.plain(text), icon=":material/warning:")
    by_key = {block.key: block for block in section.blocks}
    st.subheader(_("Robustness"), anchor=False)
    st.caption(_("Both networks on the same images with noise, blur, other light, JPEG and small shifts."))
    for key in ("robustness-chart", "robustness", "odd"):
        if key in by_key:
            blocks.draw_block(by_key[key])
    _ask("robustness", run.run_id, _robustness, _("Trying disturbed images… {time}"))
    st.subheader(_("Stability in operation"), anchor=False)
    st.caption(
        _(
            "The exported model runs for a while in a process of its own, is killed, restarted, damaged and "
            "replaced by the original; each is timed."
        )
    )
    if "stability" in by_key:
        blocks.draw_block(by_key["stability"])
    _ask("stability", run.run_id, _stability, _("Running the model… {time}"))


def answers(review: Review) -> None:
    """A button that asks both networks again for their answers to each image."""
    _ask("answers", review.chosen.run_id, _answers, _("Asking both networks again… {time}"))


def _answers(run_id: str) -> JobRequest | None:
    pressed = st.button(
        _("Compute the answers again"), icon=":material/refresh:", type="primary", key="ask-answers"
    )
    return AnswersRequest(run=run_id) if pressed else None


def _robustness(run_id: str) -> JobRequest | None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        images = st.number_input(
            _("Number of images"),
            10,
            100_000,
            ROBUSTNESS_IMAGES,
            step=100,
            key="robustness-images",
            width=160,
        )
        pressed = st.button(_("Check robustness"), icon=":material/blur_on:", key="ask-robustness")
    return RobustnessRequest(run=run_id, images=images) if pressed else None


def _stability(run_id: str) -> JobRequest | None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        minutes = st.number_input(
            _("Minutes"), 0.1, 1440.0, STABILITY_MINUTES, step=1.0, key="stability-minutes", width=160
        )
        pressed = st.button(_("Check stability"), icon=":material/timer:", key="ask-stability")
    return StabilityRequest(run=run_id, minutes=minutes) if pressed else None


def _ask(kind: str, run_id: str, offer: Callable[[str], JobRequest | None], text: str) -> None:
    """A job at work, or the button that asks for it."""
    store = ui.open_store()
    job = store.last_job(kind, run_id)
    if ui.job_at_work(job, text):
        return
    request = offer(run_id)
    if request is not None:
        store.ask(request, anew=True)
        st.rerun()
