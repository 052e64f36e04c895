"""What the pages share: the store, the worker's keeper, the ground colour, links, small pieces of layout."""

from __future__ import annotations

import atexit
import functools
import html
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import streamlit as st

from dashboard.state import address
from dashboard.text import _, translation
from qaf_core.data.workspace.trust import UntrustedCode, trust
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunStatus, stage_text
from qaf_core.runs.store.record import JobRecord, RunRecord
from qaf_core.runs.store.request import JobRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.runs.worker.supervisor import Supervisor
from qaf_core.text.glossary import meanings_by_title
from qaf_core.text.units import duration_text

LOG = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
GUIDED_RUN_KEY = "guided-run"
PAGES_KEY = "pages"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
# Signs that Markdown reads, and colons that begin one of Streamlit's directives.
_MARKS = re.compile(r"[\\`*_\[\]<>~$&|]|:(?=[A-Za-z:\u2060])|^[#+=-]")
# Icons, links and arrows, which are looked for in finished text, where no escape helps; numbers of lists.
_FOUND_LATER = re.compile(
    r":(?=[\w+/-]+:)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)(?=\w)|-(?=[->])|<(?=-)|^\d{1,9}(?=[.)])",
    re.IGNORECASE,
)
_WORD_JOINER = "\u2060"  # without width; it parts what would be taken for one of these


def workspace() -> Path:
    """The folder everything is kept in: ``QAF_WORKSPACE``, or the user's data folder."""
    return default_workspace()


def open_store() -> Store:
    """The run store of the workspace, one for all sessions.

    Raises:
        WorkspaceError: If the folder cannot be written to or the store is damaged.
    """
    return _store(str(workspace()))


@st.cache_resource(show_spinner=False)
def _store(folder: str) -> Store:
    return Store(Path(folder))


def keep_worker() -> None:
    """Have one worker process ready in the workspace (once per server, not per session)."""
    _supervisor(str(workspace()))


@st.cache_resource(show_spinner=False)
def _supervisor(folder: str) -> Supervisor:
    supervisor = Supervisor(Path(folder))
    atexit.register(supervisor.stop)
    return supervisor


def worker_ready() -> bool:
    """Whether a run would start at once."""
    return "ready" in open_store().worker_states().values()


def ask_to_stop(job_id: str) -> None:
    """Have a job, or a run, end soon."""
    open_store().request_cancel(job_id)


def job_at_work(job: JobRecord | None, text: str) -> bool:
    """A job that is not done, with a button that stops it, or why it came to nothing; whether it goes on.

    Args:
        job: As the store has it just now; None for none.
        text: What it is about; ``{time}`` is how long it has taken.
    """
    if job is None or job.is_final:
        if job is not None and job.status in (RunStatus.FAILED, RunStatus.INTERRUPTED):
            say_error(job.failure or status_label(job.status))
        return False
    message, stop = st.columns([4, 1], vertical_alignment="center")
    with message:
        _follow_job(job.id, text)
    with stop:
        stop_button(job)
    return True


def ask_button(label: str, request: JobRequest, **options: Any) -> None:
    """A button that asks for a job. The click counts before the page is drawn, whatever is drawn then.

    Args:
        label: What it says.
        request: What is asked for, anew unless it waits or is at work.
        options: Of ``st.button``.
    """
    st.button(label, on_click=_ask, args=(request,), **options)


def _ask(request: JobRequest) -> None:
    open_store().ask(request, anew=True)


def stop_button(job: JobRecord) -> None:
    """Has a job end soon; outside of what a clock draws anew, where clicks are lost now and then."""
    st.button(
        _("Stop"), icon=":material/stop_circle:", key=f"stop-{job.kind}-{job.id}", width="stretch",
        on_click=ask_to_stop, args=(job.id,),
        disabled=open_store().cancel_requested(job.id),
    )  # fmt: skip


def say_problem(job: JobRecord) -> None:
    """Why a job that waits is not begun, where no process for it comes up."""
    problem = open_store().problem_of(job.kind)
    if problem is not None and job.status == RunStatus.QUEUED:
        st.warning(plain(problem.text(_)), icon=":material/warning:")


def find_run(run_id: str) -> RunRecord | None:
    """A run, or None where the workspace has none with this id."""
    try:
        return open_store().run(run_id)
    except WorkspaceError:
        return None


def is_dark() -> bool:
    """Whether the page stands on a dark ground just now."""
    return st.context.theme.type == "dark"


def go_to(page: str, **query: str | Sequence[str]) -> None:
    """Leave for another page (``explore``, ``run``, ``tradeoffs``, ``layers``)."""
    st.switch_page(st.session_state[PAGES_KEY][page], query_params=query or None)


def link_to(page: str, label: str, icon: str, **query: str | Sequence[str]) -> None:
    """A link to another page."""
    st.page_link(st.session_state[PAGES_KEY][page], label=label, icon=icon, query_params=query or None)


def link_to_the_guide(run_id: str) -> None:
    """The way back to the guided example, on the run that was started there."""
    if st.session_state.get(GUIDED_RUN_KEY) == run_id:
        link_to("start", _("Back to the example"), ":material/arrow_back:", step="3")


def run_title(run: RunRecord) -> str:
    """The name people see: the one they gave, else model and time."""
    return run.title


def empty_state(icon: str, title: str, body: str, link: tuple[str, str] | None = None) -> None:
    """A friendly page for when there is nothing to show yet.

    Args:
        icon: A Material icon's name.
        title: What is missing, in a few words.
        body: What to do about it.
        link: Page and label of the way on.
    """
    left, middle, right = st.columns([1, 2, 1])
    del left, right
    with middle, st.container(key="empty-state", horizontal_alignment="center", gap="small"):
        st.markdown(f":material/{icon}:", text_alignment="center")
        st.subheader(title, anchor=False, text_alignment="center")
        st.markdown(body, text_alignment="center")
        if link is not None and st.button(link[1], type="primary", icon=":material/arrow_forward:"):
            go_to(link[0])


def guarded(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn faults into words on the page: bad input in its own, anything else with where the details are.

    A fragment drawn anew also writes the address.
    """

    @functools.wraps(draw)
    def draw_or_explain(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            draw(*args, **kwargs)
            address.settle()
        except QafError as error:
            say_error(error)
        except Exception:
            LOG.exception("a page could not be drawn")
            st.error(
                _(
                    "This part of the page could not be drawn. Nothing is lost: runs go on and are kept. "
                    "Load the page again; the details are in the terminal the dashboard was started from."
                ),
                icon=":material/error:",
            )

    return draw_or_explain


@st.fragment(run_every=2.0)
@guarded
def _follow_job(job_id: str, text: str) -> None:
    """How long a job has taken and what it does; drawn again and again only while it runs.

    A part that was always drawn anew would end the drawing of the plan around it early now and then, and
    what an edit had made untrue stayed on the screen.
    """
    job = open_store().job(job_id)
    if job is None or job.is_final:
        st.rerun(scope="app")
    say_problem(job)
    if job.status != RunStatus.RUNNING:
        text = _("Waiting for a free place") + " · {time}"
    told = [text.format(time=duration_text(job.elapsed_seconds))]
    if stage := stage_text(job.stage, _):
        told.append(f"{plain(stage)}.")
    st.info(" ".join(told), icon=":material/hourglass_top:")


def plain(text: object) -> str:
    """Text from outside for Streamlit's Markdown: it is shown as it stands, in one line.

    Names of classes, layers, files and runs, titles, paths and errors may hold pictures, links, formulas or
    colours, and all of that would be drawn.
    """
    line = " ".join(str(text).split())
    line = _FOUND_LATER.sub(lambda match: match.group() + _WORD_JOINER, line)
    return _MARKS.sub(lambda match: "\\" + match.group(), line)


def say_error(problem: QafError | str) -> None:
    """What went wrong, in the user's language; for code that is not trusted yet, with a way to trust it."""
    if not isinstance(problem, UntrustedCode):
        st.error(plain(problem if isinstance(problem, str) else problem.text(_)), icon=":material/error:")
        return
    st.warning(
        _(
            "This workspace names code: {factory} in {folder}. It can do whatever you can do on this "
            "computer. If you do not know where it comes from, do not run it."
        ).format(factory=plain(problem.factory), folder=plain(problem.folder)),
        icon=":material/gpp_maybe:",
    )
    st.button(
        _("I trust this code, run it"), key=f"trust-{problem.factory}",
        on_click=trust, args=(problem.factory, problem.code_path),
    )  # fmt: skip


def show_damaged(path: Path) -> None:
    """Name a file of a run that is there and could not be read; the rest of the page goes on without it."""
    if path.is_file():
        text = _("{file} of this run is damaged and left out.").format(file=plain(path.name))
        st.warning(text, icon=":material/warning:")


def page_title(title: str, lead: str) -> None:
    """A page's heading and one sentence on what it is for."""
    with st.container(gap=None):
        st.header(title, anchor=False)
        st.caption(lead)


def status_badge(status: str) -> None:
    """A run's status as a coloured word with an icon, never by colour alone."""
    label, icon, colour = _status_looks().get(status, (status, "help", "gray"))
    st.badge(label, icon=f":material/{icon}:", color=colour)  # type: ignore[arg-type]


def status_label(status: str) -> str:
    """A run's status in the user's language."""
    return _status_looks().get(status, (status, "", ""))[0]


def _status_looks() -> dict[str, tuple[str, str, str]]:
    return {
        RunStatus.QUEUED: (_("Waiting"), "schedule", "gray"),
        RunStatus.RUNNING: (_("Running"), "play_circle", "blue"),
        RunStatus.COMPLETED: (_("Finished"), "check_circle", "green"),
        RunStatus.FAILED: (_("Failed"), "error", "red"),
        RunStatus.CANCELLED: (_("Stopped"), "stop_circle", "orange"),
        RunStatus.INTERRUPTED: (_("Interrupted"), "power_off", "orange"),
    }


def stepper(steps: Iterable[tuple[str, str]]) -> None:
    """A row of steps, each with a state: ``done``, ``now`` or ``later``."""
    signs = {"done": "✓", "now": "●", "later": "○"}
    items = "".join(
        f'<li class="{state}"><span>{signs[state]}</span>{html.escape(label)}</li>' for label, state in steps
    )
    st.html(f'<ol class="qaf-steps">{items}</ol>')


def inject_style() -> None:
    """The few rules Streamlit's theme has no option for."""
    ground = {
        "ground": "#0F151E",
        "line": "#2A3646",
        "soft": "#18212E",
        "ink": "#E6EBF2",
        "mute": "#9AA8BA",
        "accent": "#7CB8F2",
        "good": "#2BC49A",
        "bad": "#F07167",
        "warn": "#E6A93C",
    }
    if not is_dark():
        ground = {
            "ground": "#FFFFFF",
            "line": "#DCE2EA",
            "soft": "#F4F6F9",
            "ink": "#18222F",
            "mute": "#5B6B7F",
            "accent": "#0B5CAD",
            "good": "#00805C",
            "bad": "#C0392B",
            "warn": "#B7791F",
        }
    variables = ";".join(f"--qaf-{name}:{colour}" for name, colour in ground.items())
    st.html(f"<style>:root{{{variables}}}{_asset('style.css')}</style>")


def count_steps() -> None:
    """Have Back lead to where a click or a key led away from, not to an address that a page completed."""
    with st.container(key="history"):
        st.html(f"<script>{_asset('history.js')}</script>", unsafe_allow_javascript=True)


@st.cache_resource(show_spinner=False)
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def metric_card(label: str, value: str, note: str = "", help_text: str | None = None, **options: Any) -> None:
    """One number with its label and a quiet note under it; a label that is a term explains itself."""
    st.metric(
        plain(label),
        plain(value),
        delta=plain(note) or None,
        delta_color="off",
        delta_arrow="off",
        help=help_text or meanings_by_title(translation()).get(label),
        border=True,
        **options,
    )
