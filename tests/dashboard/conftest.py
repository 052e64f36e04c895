"""Pages drawn by Streamlit's test runner over a temporary store, without a worker process."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from dashboard.state import jobs
from dashboard.widgets import ui
from qaf_core.runs.store.store import Store

Draw = Callable[..., AppTest]


@pytest.fixture
def draw(store: Store, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws a page: ``draw("run", run="ID")``; faults of the page fail the test."""
    st.cache_resource.clear()
    st.cache_data.clear()
    monkeypatch.setattr(ui, "open_store", lambda: store)
    monkeypatch.setattr(ui, "keep_worker", lambda: None)

    def draw_page(page: str, **query: str) -> AppTest:
        test = AppTest.from_string(f"from dashboard import app\napp.main({page!r})", default_timeout=60)
        for name, value in query.items():
            test.query_params[name] = value
        return test.run()

    return draw_page


def words(test: AppTest) -> str:
    """All texts on a page, in one string, as they are read: without the signs that keep them plain."""
    parts: list[str] = []
    for kind in ("header", "subheader", "markdown", "caption", "error", "warning", "info", "success"):
        parts += [str(element.value) for element in getattr(test, kind)]
    for metric in test.metric:
        parts += [str(metric.label), str(metric.value), str(metric.delta)]
    parts += [str(button.label) for button in test.button]
    return re.sub(r"\\([\\`*_\[\]<>~$&|:#+=-])", r"\1", "\n".join(parts)).replace("\u2060", "")


def shown(test: AppTest) -> str:
    """The same, after checking that nothing went wrong while drawing."""
    assert not test.exception, test.exception
    text = words(test)
    assert "could not be drawn" not in text
    return text


def settle(key: str) -> None:
    """Wait until a job has ended."""
    for _ in range(400):
        job = jobs.shared().find(key)
        if job is not None and job.state != "running":
            return
        time.sleep(0.05)
    raise AssertionError("the job did not end")


ROOT = Path(__file__).resolve().parents[2]
