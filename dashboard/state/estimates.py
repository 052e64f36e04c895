"""How long runs take here, as pages tell it: before they begin, and while they are at work."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from dashboard.state import catalogue
from dashboard.state.overrides import overrides_of
from qaf_core.errors import QafError
from qaf_core.runs.estimate import History, Work, count_work, read_history
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

FRESH_SECONDS = 10.0  # the page is drawn again at every edit, which no run ends by


def history_of(store: Store, request: RunRequest) -> History:
    """What earlier runs tell of one like this, read a moment ago at most."""
    return _history(
        replace(request, plan={}, name=None, controls=None).to_json(), str(store.workspace), store
    )


@st.cache_data(show_spinner=False, ttl=FRESH_SECONDS, max_entries=64)
def _history(text: str, workspace: str, _store: Store) -> History:
    return read_history(_store, RunRequest.from_json(text))


def work_of(store: Store, request: RunRequest, history: History) -> Work | None:
    """What a run has to do, before it tells so itself; None where its network is not at hand."""
    if ":" in request.model:
        return None
    try:
        overrides = overrides_of(request)
        source = catalogue.open_model(request.model, store.workspace, overrides)
        return count_work(request, catalogue.inventory_of(source, store.workspace, overrides), history)
    except (QafError, KeyError):
        return None
