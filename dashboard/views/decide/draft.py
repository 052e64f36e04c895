"""Criteria that are being set: until they are kept with a run they are held by a short id in the address."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import streamlit as st

from dashboard.state import address
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.files import ContentCache, digest_of
from qaf_core.review.decision.criteria import KINDS, LONGEST_TEXT, Criterion

NAME = "criteria"
FOLDER = ("decisions", "drafts")
ID_LENGTH = 12
LARGEST_LIMIT = 1e15
FIELDS = ("kind", "limit", "source", "owner", "class_name", "ok_class", "file", "device")
Row = dict[str, Any]


def rows(place: str, run_id: str, kept: Sequence[Criterion]) -> list[Row]:
    """The rows of the form: as typed, as the address names them, or as they are kept with the run.

    Args:
        place: Of the form in the session.
        run_id: The run whose criteria they are.
        kept: What is kept with it.
    """
    came = _take_up(place, run_id)
    held: list[Row] | None = st.session_state.get(place)
    draft: Mapping[str, Any] | None = st.session_state.get(_key(place))
    gone = bool(held) and held is not None and f"{place}-{held[0]['number']}-kind" not in st.session_state
    if held is None or came or (gone and draft is not None):
        first = time.time_ns()  # other widgets than before: they begin with what the rows say
        values = [criterion.to_dict() for criterion in kept] if draft is None else draft["rows"]
        st.session_state[place] = [{"number": first + step, **value} for step, value in enumerate(values)]
    found: list[Row] = st.session_state[place]
    return found


def hold(place: str, run_id: str, values: Sequence[Row], kept: Sequence[Criterion]) -> None:
    """Hold what the form says where it is other than what is kept, and name it in the address."""
    st.session_state[_key(place)] = None
    if not _same(values, kept):
        content = {"run": run_id, "rows": list(values)}
        cache, draft_id = _cache(), digest_of(content)[:ID_LENGTH]
        if not cache.path(draft_id).is_file():
            cache.keep(draft_id, content)
        held = draft_id if cache.path(draft_id).is_file() else None  # a workspace may only be readable
        st.session_state[_key(place)] = {**content, "id": held}
    name(place)


def name(place: str) -> None:
    """Have the address name what is held; also where the form is not to be seen."""
    if address.values_of(NAME):  # not taken up yet
        return
    draft = st.session_state.get(_key(place))
    address.set_values(NAME, *([draft["id"]] if draft is not None and draft["id"] else []))


def _take_up(place: str, run_id: str) -> bool:
    """Take up what an address that was come to names, or does not name any more; whether it did."""
    named = address.values_of(NAME)
    if not named:
        if not address.going_back(NAME):
            return False
        st.session_state[_key(place)] = None
        return True
    address.set_values(NAME, named[-1])
    known = re.fullmatch(rf"[0-9a-f]{{{ID_LENGTH}}}", named[-1])
    content = _cache().read(named[-1]) if known else None
    if content is None or not _is_draft(content, run_id):
        address.fault(NAME, named[-1])
        return False
    st.session_state[_key(place)] = {**content, "id": named[-1]}
    return True


def _is_draft(content: Any, run_id: str) -> bool:
    """Whether a file, which may be anyone's, holds criteria of this run."""
    return (
        isinstance(content, dict)
        and content.get("run") == run_id
        and isinstance(content.get("rows"), list)
        and all(isinstance(row, dict) and _is_row(row) for row in content["rows"])
    )


def _is_row(row: Row) -> bool:
    limit = row.get("limit")
    texts = [value for field, value in row.items() if field != "limit"]
    return (
        set(row) <= set(FIELDS)
        and row.get("kind") in KINDS
        and isinstance(limit, int | float)
        and isfinite(limit)
        and 0 <= limit <= LARGEST_LIMIT
        and all(text is None or (isinstance(text, str) and len(text) <= LONGEST_TEXT) for text in texts)
    )


def _same(values: Sequence[Row], kept: Sequence[Criterion]) -> bool:
    try:
        return [Criterion(**row) for row in values] == list(kept)
    except QafError:
        return False


def _cache() -> ContentCache:
    return ContentCache(ui.open_store().workspace.joinpath(*FOLDER))


def _key(place: str) -> str:
    return f"{place}-draft"
