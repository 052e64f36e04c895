"""One run, live while it works and as a result afterwards; without an id, the list of runs."""

from __future__ import annotations

import time

import streamlit as st

from dashboard.state.estimates import history_of, work_of
from dashboard.state.progress import RunProgress
from dashboard.text import _
from dashboard.views.run import finetune, live, result, run_list
from dashboard.widgets import run_choice, ui
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.charts import method_label
from qaf_core.runs.estimate import FINETUNE_STAGES, STAGES
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.record import RunRecord

REFRESH_SECONDS = 0.5
MOST_OTHERS = 8
PROGRESS_KEY = "progress"


def page() -> None:
    """The Live run page: ``?run=ID`` names the run, so that a reload or a shared address finds it again."""
    run_id = st.query_params.get("run")
    if not run_id:
        run_list.show()
        return
    run = ui.find_run(run_id)
    if run is None:
        run_choice.say_unknown(run_id)
        run_list.show()
        return
    st.session_state[run_choice.LAST_RUN_KEY] = run.id
    ui.link_to_the_guide(run.id)
    _heading(run)
    if run.is_final:
        st.session_state.pop(PROGRESS_KEY, None)
        result.show(run)
    else:
        _watch(run.id)
        _others_waiting(run)


def _others_waiting(run: RunRecord) -> None:
    """The runs at work and waiting, in the order they come, to go to."""
    others = [row for row in list_rows(ui.open_store()) if not row.is_final and row.id != run.id][::-1]
    if not others:
        return
    st.markdown(f"**{_('Other runs at work or waiting')}**")
    for row in others[:MOST_OTHERS]:  # no links: one to the page it stands on leaves the address as it is
        label = f"{row.title} · {ui.status_label(row.status)}"
        if st.button(ui.plain(label), icon=":material/monitoring:", key=f"open-{row.id}", type="tertiary"):
            ui.go_to("run", run=row.id)


def _heading(run: RunRecord) -> None:
    left, right = st.columns([5, 2], vertical_alignment="center")
    with left:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.header(ui.plain(ui.run_title(run)), anchor=False, width="content")
            ui.status_badge(run.status)
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        st.caption(
            " · ".join(
                (
                    ui.plain(run.model),
                    _("method {method}").format(method=method_label(run.method, _))
                    + (_(", fine-tuned") if run.request.finetune else ""),
                    started,
                    f"`{run.id}`",
                    *([_("measured elsewhere, taken over with its evidence")] if run.is_imported else []),
                )
            )
        )
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        if run.is_final:
            missing = run_choice.missing_model(run)
            if st.button(
                _("Change and run again"),
                icon=":material/replay:",
                disabled=missing is not None,
                help=ui.plain(missing or _("Opens Explore with this run's model, data and plan.")),
            ):
                ui.go_to("explore", run=run.id)
        else:
            stopping = ui.open_store().cancel_requested(run.id)
            st.button(
                _("Stop"),
                icon=":material/stop_circle:",
                type="primary",
                key="stop-run",
                on_click=ui.ask_to_stop,
                args=(run.id,),
                disabled=stopping,
                help=_("Ends the run after the step at hand. What is done so far is kept and measured."),
            )
            if stopping:
                st.button(
                    _("Discard now"),
                    icon=":material/delete:",
                    key="discard-run",
                    on_click=ui.open_store().discard,
                    args=(run.id,),
                    help=_("Ends the run at once. Nothing of it is kept but its settings."),
                )


@st.fragment(run_every=REFRESH_SECONDS)
@ui.guarded
def _watch(run_id: str) -> None:
    """Read what is new, draw it, and let the whole page run again once the run has ended."""
    store = ui.open_store()
    run = store.run(run_id)
    if run.is_final:
        st.rerun(scope="app")
    progress = _progress_of(run)
    progress.absorb(store.events_since(run_id, progress.seq))
    if run.status == RunStatus.QUEUED:
        ui.say_problem(run)
        live.show_queued(progress, ahead=store.count_ahead(run.id), ready=ui.worker_ready())
    elif run.request.finetune is not None:
        finetune.show_running(run, progress, stopping=store.cancel_requested(run_id))
    else:
        live.show_running(run, progress, stopping=store.cancel_requested(run_id))


def _progress_of(run: RunRecord) -> RunProgress:
    """The session's view of this run, begun anew after a reload."""
    known = st.session_state.get(PROGRESS_KEY)
    if not isinstance(known, RunProgress) or known.run_id != run.id:
        stages, store = STAGES if run.request.finetune is None else FINETUNE_STAGES, ui.open_store()
        history = history_of(store, run.request)
        work = work_of(store, run.request, history)
        known = RunProgress(run_id=run.id, history=history, work=work, stages=stages)
        st.session_state[PROGRESS_KEY] = known
    return known
