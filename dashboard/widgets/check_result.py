"""The check of an original network on labelled images: begun, watched, stopped and told, on several pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import jobs
from dashboard.state.overrides import keep_class_names
from dashboard.text import _, plural
from dashboard.widgets import columns, predictions, ui
from qaf_core.pipeline.check.plausibility import METRIC, Finding, Plausibility
from qaf_core.pipeline.events import RunStatus
from qaf_core.pipeline.results import ImagesUsed
from qaf_core.records import from_plain
from qaf_core.review.metrics import metric_help, metric_label
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import CheckRequest
from qaf_core.text.said import retell
from qaf_core.text.units import duration_text, percent_text

MADE_TO_BE_SHOWN: dict[str, Any] = {"images": 256, "preview": True}  # fields of requests of pages
_OPTIONS = re.compile(r",? (?:with )?--[a-z]+ FILE| \(--[a-z]+ FILE\)")


def begin(place: str, request: CheckRequest) -> None:
    """Begin a check; another that still runs at the same place is stopped.

    Args:
        place: Where it is told.
        request: What is to be checked.
    """
    job = _job(place)
    job_id = ui.open_store().ask(request)
    if job is not None and job.id != job_id:
        ui.open_store().request_cancel(job.id)
    jobs.remember(f"check-{place}", job_id)


def forget(place: str) -> None:
    """Take what was found off the page."""
    jobs.remember(f"check-{place}")


def _job(place: str) -> JobRecord | None:
    return jobs.recall(ui.open_store(), f"check-{place}", "check")


# --- what came of it


def show(
    place: str,
    *,
    fits: Callable[[CheckRequest], bool] | None = None,
    on_fix: Callable[[CheckRequest, Mapping[str, Any]], None] | None = None,
    then: Callable[[CheckRequest], None] | None = None,
) -> None:
    """The check as it goes, then what it found; nothing where none was begun.

    Args:
        place: Where it was begun.
        fits: Whether a check is one of what the page shows; None for any check.
        on_fix: Called by a button with what was checked and the evidence of a finding that can be mended
            here: it fills in the fields.
        then: Draws what may come next, given what was checked.
    """
    job = _job(place)
    if job is None or (fits is not None and not fits(job.request)):
        return
    if not job.is_final:
        bar, stop = st.columns([5, 1], vertical_alignment="center")
        with bar:
            _watch(job.id)
        with stop:
            ui.stop_button(job)
    elif job.status == RunStatus.CANCELLED:
        st.info(_("The check was stopped."), icon=":material/stop_circle:")
    elif job.status != RunStatus.COMPLETED:
        ui.say_error(job.failure or ui.status_label(job.status))
    else:
        plausibility = from_plain(Plausibility, job.result)
        checked = replace(job.request, **job.result["stored"], uploads={})
        _headline(plausibility)
        _findings(place, plausibility, None if on_fix is None else lambda evidence: on_fix(checked, evidence))
        predictions.show(job.result.get("preview") or [])
        show_images_used(from_plain(ImagesUsed, job.result))
        if then is not None:
            then(checked)


@st.fragment(run_every=1.0)
def _watch(job_id: str) -> None:
    """How far a check is, until it has ended."""
    job = ui.open_store().job(job_id)
    if job is None or job.is_final:
        st.rerun()
    steps = {
        "weights": _("Storing and checking the weights"),
        "images": _("Unpacking the images"),
        "check": _("Running the original on the images"),
    }
    ui.say_problem(job)
    text = steps.get(job.stage.get("stage", ""), _("Waiting for a free place"))
    st.progress(
        min(1.0, job.stage.get("fraction") or 0.0), text=f"{text} · {duration_text(job.elapsed_seconds)}"
    )


def _headline(plausibility: Plausibility) -> None:
    low, high = map(percent_text, plausibility.ci95)
    texts = {"value": percent_text(plausibility.value), "n": f"{plausibility.n:,}"}
    texts["interval"] = _("95 % interval {low} to {high}").format(low=low, high=high)
    if plausibility.metric == METRIC:
        text = _("**The original is right on {value}** of {n} images ({interval}).")
    else:
        texts["metric"] = ui.plain(metric_label(plausibility.metric, _))
        text = _("**{metric} of the original: {value}** on {n} images ({interval}).")
    st.markdown(text.format(**texts), help=metric_help(plausibility.metric, _) or None)


def _findings(
    place: str, plausibility: Plausibility, on_fix: Callable[[Mapping[str, Any]], None] | None
) -> None:
    show_findings(plausibility.findings)
    evidence = next((row.evidence for row in plausibility.findings if mends(row.evidence)), None)
    if on_fix is not None and evidence is not None:
        st.button(
            _("Use what was found"),
            icon=":material/auto_fix_high:",
            key=f"use-found-{place}",
            on_click=on_fix,
            args=(evidence,),
            help=_("Fills it in above and checks again."),
        )
    unknown, summary = plausibility.cannot_tell, plausibility.summary
    sentences = " ".join(sentence.text(_) for sentence in (*([unknown] if unknown else []), *summary))
    if plausibility.findings and unknown:
        st.caption(ui.plain(sentences))
    elif unknown:
        st.info(ui.plain(sentences), icon=":material/info:")
    elif summary:
        st.success(ui.plain(sentences), icon=":material/check_circle:")


def mended(request: CheckRequest, evidence: Mapping[str, Any]) -> CheckRequest:
    """What was asked for, with what a finding says would be right instead."""
    if evidence.get("preprocessing"):
        return replace(request, preprocessing={**(request.preprocessing or {}), **evidence["preprocessing"]})
    return replace(request, classes=keep_class_names(ui.workspace(), "\n".join(evidence["order"])))


def mends(evidence: Mapping[str, Any]) -> bool:
    """Whether a finding says what would be right."""
    return bool(evidence.get("preprocessing") or evidence.get("order"))


def show_findings(findings: Sequence[Finding]) -> None:
    """What a check found, the serious as warnings, the rest as notes."""
    for finding in findings:
        sentence, remedy = finding.told(_)
        text = ui.plain(f"{sentence} {on_screen(remedy)}")
        if finding.serious:
            st.warning(text, icon=":material/warning:")
        else:
            st.info(text, icon=":material/info:")


def on_screen(remedy: str) -> str:
    """A remedy without the command line's options: here there are fields and buttons for them."""
    return _OPTIONS.sub("", remedy)


def show_images_used(used: ImagesUsed) -> None:
    """How the images were told apart, and which were left out and why; nothing where that is not known."""
    if used.split:
        sentence = retell(used.split, used.said, _)
        st.caption(ui.plain(sentence[:1].upper() + sentence[1:]))
    count = used.skipped_count or len(used.skipped)
    if not count:
        return
    st.caption(plural("{count} image was left out:", "{count} images were left out:", count))
    columns.table(
        pd.DataFrame(
            [{"name": row.name, "reason": retell(row.reason, used.said, _)} for row in used.skipped]
        ),
        {"name": columns.text(_("Image")), "reason": columns.text(_("Why"))},
        most=7,
    )
