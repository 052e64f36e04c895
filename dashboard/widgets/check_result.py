"""The check of an original network on labelled images: begun, watched, stopped and told, on several pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import jobs
from dashboard.state.overrides import keep_class_names
from dashboard.text import _, plural
from dashboard.widgets import predictions, ui
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.metrics import metric_help, metric_label
from qaf_core.review.units import MISSING, duration_text, percent_text
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import CheckRequest

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
    jobs.remember(f"check-{place}", None)


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
        _watch(job.id)
    elif job.status == RunStatus.CANCELLED:
        st.info(_("The check was stopped."), icon=":material/stop_circle:")
    elif job.status != RunStatus.COMPLETED:
        ui.say_error(job.error or ui.status_label(job.status))
    else:
        found, checked = job.result, replace(job.request, **job.result["stored"], uploads={})
        _headline(found)
        _findings(place, found, None if on_fix is None else lambda evidence: on_fix(checked, evidence))
        predictions.show(found.get("preview") or [])
        show_images_used(found)
        if then is not None:
            then(checked)


@st.fragment(run_every=1.0)
def _watch(job_id: str) -> None:
    """How far a check is, until it has ended."""
    store = ui.open_store()
    job = store.job(job_id)
    if job is None or job.is_final:
        st.rerun()
    steps = {
        "weights": _("Storing and checking the weights"),
        "images": _("Unpacking the images"),
        "check": _("Running the original on the images"),
    }
    text = steps.get(job.stage.get("stage", ""), _("Waiting for a free place"))
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.progress(
        min(1.0, job.stage.get("fraction") or 0.0), text=f"{text} · {duration_text(job.elapsed_seconds)}"
    )
    right.button(
        _("Stop"),
        icon=":material/stop_circle:",
        key=f"stop-{job_id}",
        on_click=store.request_cancel,
        args=(job_id,),
        disabled=store.cancel_requested(job_id),
        width="stretch",
    )


def _headline(found: Mapping[str, Any]) -> None:
    metric = found.get("metric") or "top1"
    texts = {"value": percent_text(found["value"]), "n": f"{found['n']:,}", "interval": ""}
    if found.get("ci95"):
        low, high = found["ci95"]
        texts["interval"] = _("95 % interval {low} to {high}").format(
            low=percent_text(low), high=percent_text(high)
        )
    if metric == "top1":
        text = _("**The original is right on {value}** of {n} images ({interval}).")
    else:
        texts["metric"] = ui.plain(metric_label(metric, _))
        text = _("**{metric} of the original: {value}** on {n} images ({interval}).")
    st.markdown(text.format(**texts).replace(" ()", ""), help=metric_help(metric, _) or None)


def _findings(
    place: str, found: Mapping[str, Any], on_fix: Callable[[Mapping[str, Any]], None] | None
) -> None:
    findings = found.get("findings") or []
    show_findings(findings)
    evidence = next((e for e in (row.get("evidence") or {} for row in findings) if mends(e)), None)
    if on_fix is not None and evidence is not None:
        st.button(
            _("Use what was found"),
            icon=":material/auto_fix_high:",
            key=f"use-found-{place}",
            on_click=on_fix,
            args=(evidence,),
            help=_("Fills it in above and checks again."),
        )
    unknown, summary = found.get("cannot_tell"), found.get("summary")
    if findings and unknown:
        st.caption(ui.plain(_(unknown)))
    elif unknown:
        st.info(ui.plain(f"{_(unknown)} {_(summary or '')}"), icon=":material/info:")
    elif not findings:
        text = summary or "Nothing is wrong, as far as these images tell."
        st.success(ui.plain(_(text)), icon=":material/check_circle:")


def mended(request: CheckRequest, evidence: Mapping[str, Any]) -> CheckRequest:
    """What was asked for, with what a finding says would be right instead."""
    if evidence.get("preprocessing"):
        return replace(request, preprocessing={**(request.preprocessing or {}), **evidence["preprocessing"]})
    return replace(request, classes=keep_class_names(ui.workspace(), "\n".join(evidence["order"])))


def mends(evidence: Mapping[str, Any]) -> bool:
    """Whether a finding says what would be right."""
    return bool(evidence.get("preprocessing") or evidence.get("order"))


def show_findings(findings: list[Mapping[str, Any]]) -> None:
    """What a check found, the serious as warnings, the rest as notes."""
    for finding in findings:
        text = ui.plain(f"{_(finding['sentence'])} {on_screen(_(finding.get('remedy') or ''))}")
        if finding.get("serious"):
            st.warning(text, icon=":material/warning:")
        else:
            st.info(text, icon=":material/info:")


def on_screen(remedy: str) -> str:
    """A remedy without the command line's options: here there are fields and buttons for them."""
    return _OPTIONS.sub("", remedy)


def show_images_used(told: Mapping[str, Any]) -> None:
    """How the images were told apart, and which were left out and why; nothing where that is not known."""
    if told.get("split"):
        sentence = _(told["split"])
        st.caption(ui.plain(sentence[:1].upper() + sentence[1:]))
    skipped = told.get("skipped") or []
    count = told.get("skipped_count") or len(skipped)
    if not count:
        return
    st.caption(plural("{count} image was left out:", "{count} images were left out:", count))
    column = st.column_config
    st.dataframe(
        pd.DataFrame([{"name": row.get("name"), "reason": _(row.get("reason") or "")} for row in skipped]),
        hide_index=True,
        placeholder=MISSING,
        height="content" if len(skipped) < 8 else 290,
        column_config={"name": column.TextColumn(_("Image")), "reason": column.TextColumn(_("Why"))},
    )
