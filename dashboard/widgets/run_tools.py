"""What is done with runs of a list: searched, compared, named, tagged, put away, deleted, brought back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard.state import address
from dashboard.text import _, plural
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.report.review import MOST_RUNS
from qaf_core.runs import management
from qaf_core.runs.listing import RunRow, list_rows
from qaf_core.runs.store.request import LONGEST_NAME

UNDO_KEY = "runs-put-away"


@dataclass(frozen=True, kw_only=True)
class Undo:
    """What can be taken back.

    Attributes:
        ids: The runs.
        title: Of the first.
        archived: Whether they were archived, not deleted.
    """

    ids: Sequence[str]
    title: str
    archived: bool = False


def filtered(rows: Sequence[RunRow], *, key: str) -> list[RunRow]:
    """Widgets that search runs by their words and tags, and show archived ones; the rows that pass."""
    tags = sorted({tag for row in rows for tag in row.tags})
    archived = sum(row.archived for row in rows)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            _("Search"), key=address.text("find", key=f"{key}-find"), icon=":material/search:", width=280,
            placeholder=_("Name, model, plan, note, tag"),
        )  # fmt: skip
        picked_tags = st.multiselect(
            _("Tags"), tags, key=address.several("tag", tags, [], key=f"{key}-tags"), width=240,
            placeholder=_("Any"),
        ) if tags else []  # fmt: skip
        shown = st.toggle(
            _("Archived too ({count})").format(count=archived),
            key=address.choice("archived", (False, True), False, key=f"{key}-archived"),
        ) if archived else False  # fmt: skip
    terms = words.casefold().split()
    return [
        row
        for row in rows
        if (shown or not row.archived)
        and set(picked_tags) <= set(row.tags)
        and (not terms or all(word in _words_of(row) for word in terms))
    ]


def _words_of(row: RunRow) -> str:
    parts = (row.title, row.model, row.method, row.plan, row.note, row.id, *row.tags)
    return " ".join(parts).casefold()


def tools(rows: Sequence[RunRow], *, key: str) -> None:
    """What can be done with the chosen runs, and how the last that put some away is taken back."""
    _offer_undo()
    if not rows:
        st.caption(_("Tick runs at their left edge to compare, name, tag, archive or delete them."))
        return
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}-tools"):
        st.markdown(plural("**{count} run**", "**{count} runs**", len(rows)), width="content")
        measured = [row.id for row in rows if row.value is not None]
        if st.button(
            _("Compare"), icon=":material/compare:", type="primary", key=f"{key}-compare",
            disabled=not 2 <= len(measured) <= MOST_RUNS,
            help=_("Two to five finished runs of one model, side by side."),
        ):  # fmt: skip
            ui.go_to("compare", run=measured)
        if len(rows) == 1:
            _name_and_note(rows[0], key)
        _tag(rows, key)
        away = not all(row.archived for row in rows)
        st.button(
            _("Archive") if away else _("Take out again"), icon=":material/archive:", key=f"{key}-archive",
            on_click=_archive, args=(rows, away),
            help=_("Archived runs are left out of lists and charts; nothing of them is lost."),
        )  # fmt: skip
        cut_off = [row.id for row in rows if row.status == RunStatus.INTERRUPTED]
        if cut_off:
            st.button(
                _("Resume"), icon=":material/resume:", key=f"{key}-resume", on_click=_resume, args=(cut_off,)
            )
        st.button(
            _("Delete"), icon=":material/delete:", key=f"{key}-delete", on_click=_delete, args=(rows, key),
            disabled=not all(row.is_final for row in rows),
            help=_("They can be brought back for 30 days."),
        )  # fmt: skip


def _name_and_note(row: RunRow, key: str) -> None:
    with (
        st.popover(_("Name and note"), icon=":material/edit:"),
        st.form(f"{key}-form-{row.id}", border=False),
    ):
        name = st.text_input(
            _("Name"), row.title if row.named else "", max_chars=LONGEST_NAME, placeholder=row.title
        )
        note = st.text_area(_("Note"), row.note, max_chars=management.LONGEST_NOTE)
        if st.form_submit_button(_("Save"), type="primary"):
            store = ui.open_store()
            if _try(lambda: management.rename(store, row.id, name)):
                _try(lambda: management.set_note(store, row.id, note))
            st.rerun()


def _tag(rows: Sequence[RunRow], key: str) -> None:
    known = sorted({tag for row in list_rows(ui.open_store()) for tag in row.tags})
    on_all = sorted(set.intersection(*(set(row.tags) for row in rows)))
    ids = [row.id for row in rows]
    form = f"{key}-tags-{hash(tuple(ids))}"
    with st.popover(_("Tags"), icon=":material/sell:"), st.form(form, border=False):
        with st.container(horizontal=True, vertical_alignment="bottom"):  # below, the list would cover it
            chosen = st.multiselect(
                _("Tags of all chosen runs"), known, on_all, accept_new_options=True, width=280,
                placeholder=_("Choose or type new ones"),
            )  # fmt: skip
            saved = st.form_submit_button(_("Save"), type="primary")
        if saved:
            removed = set(on_all) - set(chosen)
            _try(lambda: management.tag(ui.open_store(), ids, add=chosen, remove=removed))
            st.rerun()


def _delete(rows: Sequence[RunRow], key: str) -> None:
    ids = [row.id for row in rows]
    if _try(lambda: management.delete(ui.open_store(), ids)):
        st.session_state[UNDO_KEY] = Undo(ids=ids, title=rows[0].title)


def _resume(ids: Sequence[str]) -> None:
    for run_id in ids:
        management.resume(ui.open_store(), run_id)


def _offer_undo() -> None:
    """The last deletion or archiving, until the next one or until it is taken back."""
    kept: Undo | None = st.session_state.get(UNDO_KEY)
    if kept is None:
        return
    with st.container(horizontal=True, vertical_alignment="center", key="undo-delete"):
        if kept.archived:
            text = plural("{count} run was archived", "{count} runs were archived", len(kept.ids))
        else:
            text = plural("{count} run was deleted", "{count} runs were deleted", len(kept.ids))
        st.markdown(ui.plain(f"{text}: {kept.title}" if len(kept.ids) == 1 else text), width="content")
        st.button(
            _("Undo"), icon=":material/undo:", key="undo", type="primary",
            on_click=_archive_back if kept.archived else _undo, args=(kept.ids,),
        )  # fmt: skip


def _undo(ids: Sequence[str]) -> None:
    _try(lambda: management.restore(ui.open_store(), ids))
    st.session_state.pop(UNDO_KEY, None)


def _archive_back(ids: Sequence[str]) -> None:
    _try(lambda: management.archive(ui.open_store(), ids, False))
    st.session_state.pop(UNDO_KEY, None)


def _archive(rows: Sequence[RunRow], away: bool) -> None:
    moved = [row for row in rows if row.archived != away]
    ids = [row.id for row in moved]
    if _try(lambda: management.archive(ui.open_store(), ids, away)):
        st.session_state.pop(UNDO_KEY, None)
        if away:
            st.session_state[UNDO_KEY] = Undo(ids=ids, title=moved[0].title, archived=True)


def _purge() -> None:
    management.purge(ui.open_store())


def _try(change: Callable[[], object]) -> bool:
    """Change something, or say why it cannot be; whether it went well."""
    try:
        change()
    except QafError as problem:
        st.toast(ui.plain(problem.text(_)), icon=":material/error:")
        return False
    return True


def deleted() -> None:
    """The runs that can still be brought back, with buttons for that and for their end."""
    store = ui.open_store()
    rows = list_rows(store, deleted=True)
    if not rows:
        return
    with st.expander(
        plural("{count} deleted run", "{count} deleted runs", len(rows)), icon=":material/delete:"
    ):
        by_id = {row.id: row for row in rows}
        chosen = st.multiselect(
            _("Deleted runs"), list(by_id), key="deleted-runs", placeholder=_("Choose runs"),
            format_func=lambda run_id: f"{by_id[run_id].title} · {run_id}",
        )  # fmt: skip
        with st.container(horizontal=True):
            st.button(
                _("Bring back"), icon=":material/undo:", key="restore-runs", type="primary",
                on_click=_undo, args=(chosen,), disabled=not chosen,
            )  # fmt: skip
            st.button(
                _("Take all away for good"), icon=":material/delete_forever:", key="purge-runs",
                on_click=_purge,
                help=_("Their files too: this cannot be taken back. It happens by itself after 30 days."),
            )  # fmt: skip
