"""The run that a page shows: the one its address names, or in words why there is nothing of that to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import streamlit as st

from dashboard.state import address, catalogue, rows
from dashboard.text import _, translation
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.charts import method_label
from qaf_core.runs.listing import RunRow, list_rows, row_of
from qaf_core.runs.management import restore
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.units import percent_text

LAST_RUN_KEY = "last_run"


def choose_run(runs: Sequence[RunRow], lacking: str) -> RunRecord | None:
    """The run asked for, by the address or by the page of a run that was looked at; or another one chosen.

    Never another run instead of one that has nothing to show: then that is said, and nothing is chosen.

    Args:
        runs: Those with something to show, newest first.
        lacking: What a run that is none of them has not, in a sentence.
    """
    by_id = {run.id: run for run in runs}
    run_id = st.query_params.get("run") or st.session_state.get(LAST_RUN_KEY)
    if run_id is not None and run_id not in by_id:
        say_why(run_id, lacking)
    if not runs:
        return None
    run_id = next(iter(by_id)) if run_id is None else run_id
    chosen = st.selectbox(
        _("Run"),
        list(by_id),
        index=list(by_id).index(run_id) if run_id in by_id else None,
        format_func=labels(runs).__getitem__,
        placeholder=_("Choose another run"),
    )
    if chosen is not None:
        address.set_values("run", chosen)
    return ui.find_run(chosen) if chosen in by_id else None


def run_label(run: RunRow, say: Callable[[str], str] = _) -> str:
    """A run in one line: its name, model, method, plan, how much of that was done, and accuracy."""
    title = run.title
    model = "" if run.model in title else f" · {run.model}"
    accuracy = "" if run.value is None else f" · {percent_text(run.value)}"
    return f"{title}{model} · {method_label(run.method, say)} · {rows.plan_summary(run)}{accuracy}"


def labels(runs: Sequence[RunRow], label: Callable[[RunRow], str] | None = None) -> dict[str, str]:
    """Labels by run, no two alike: boxes of choices tell their options apart by what they show."""
    say = translation()
    texts = {run.id: label(run) if label else run_label(run, say) for run in runs}
    often = Counter(texts.values())
    return {key: f"{text} · {key[-6:]}" if often[text] > 1 else text for key, text in texts.items()}


def say_unknown(run_id: str) -> None:
    """There is no such run, or no longer."""
    store = ui.open_store()
    if any(row.id == run_id for row in list_rows(store, deleted=True)):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(ui.plain(_("The run {run} was deleted.").format(run=run_id)), icon=":material/delete:")
            st.button(
                _("Bring it back"), icon=":material/undo:", key=f"restore-{run_id}", type="primary",
                on_click=restore, args=(store, [run_id]),
            )  # fmt: skip
        return
    ui.say_error(_("There is no run {run} in this workspace; it may have been deleted.").format(run=run_id))


def say_why(run_id: str, lacking: str) -> None:
    """Why a run that is asked for is not shown: there is none, or ``lacking`` tells what it has not."""
    run = ui.find_run(run_id)
    if run is None:
        say_unknown(run_id)
        return
    title = ui.run_title(run)
    reasons = {
        RunStatus.QUEUED: _("{run} has not started yet."),
        RunStatus.RUNNING: _("{run} is still at work."),
        RunStatus.COMPLETED: _("{run} has finished."),
        RunStatus.FAILED: _("{run} has failed."),
        RunStatus.CANCELLED: _("{run} was stopped."),
        RunStatus.INTERRUPTED: _("{run} was interrupted."),
    }
    text = reasons[run.status].format(run=title)
    st.warning(ui.plain(f"{text} {lacking}"), icon=":material/block:")
    ui.link_to("run", _("Open this run"), ":material/monitoring:", run=run.id)


def missing_model(run: RunRecord) -> str | None:
    """Why nothing can be made of a run's model here, in words; None where it is at hand."""
    if ":" in run.model:  # no page imports a user's code
        return _("The model {model} is someone's own code, which only the command line runs.").format(
            model=run.model
        )
    try:
        catalogue.listed_model(run.model, ui.workspace())
    except QafError:
        return _("The model {model} is not in this workspace.").format(model=run.model)
    return None


def say_partial(run: RunRecord) -> None:
    """That only a part of a run's layers is compressed, where that is so."""
    if run.is_partial and run.layers:
        text = _("{part} are compressed; the others are those of the original.")
        st.info(text.format(part=rows.part_done(row_of(run))), icon=":material/stop_circle:")
