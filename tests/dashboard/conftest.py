"""Pages drawn by Streamlit's test runner over a temporary store, without a worker process."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.testing.v1 import AppTest, local_script_runner
from streamlit.testing.v1.element_tree import parse_tree_from_messages

from dashboard.state import jobs, sheets
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.kinds import PLACES
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.store import Store

Draw = Callable[..., AppTest]


@pytest.fixture
def draw(store: Store, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws a page: ``draw("run", run="ID")``; faults of the page fail the test."""
    st.cache_resource.clear()
    st.cache_data.clear()
    monkeypatch.setattr(ui, "open_store", lambda: store)
    monkeypatch.setattr(ui, "keep_worker", lambda: None)
    monkeypatch.setattr(jobs, "LONGEST_WAIT_SECONDS", 5.0)
    monkeypatch.setattr(local_script_runner, "parse_tree_from_messages", read_page)

    def draw_page(page: str, **query: str) -> AppTest:
        test = AppTest.from_string(f"from dashboard import app\napp.main({page!r})", default_timeout=60)
        for name, value in query.items():
            test.query_params[name] = value
        return test.run()

    return draw_page


def read_page(messages: Sequence[ForwardMsg]) -> Any:
    """A page as it was drawn, after checking that a clock draws no button anew: its clicks would be lost."""
    clocked = {message.auto_rerun.fragment_id for message in messages if message.HasField("auto_rerun")}
    for message in messages:
        if message.HasField("delta") and message.delta.fragment_id in clocked:
            kind = message.delta.new_element.WhichOneof("type")
            assert kind not in ("button", "download_button"), message.delta.new_element
    return parse_tree_from_messages(messages)


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


def words_of(table: Any) -> Any:
    """The cells of a table as they are shown, where they have words of their own."""
    return convert_arrow_bytes_to_pandas_df(table.proto.arrow_data.styler.display_values)


def table_rows(test: AppTest) -> list[dict[str, Any]]:
    """The rows of Explore's table of layers."""
    (table,) = (element for element in test.get("bidi_component") if "plan-table" in (element.key or ""))
    rows: list[dict[str, Any]] = json.loads(table.proto.json)["rows"]
    return rows


def type_into(test: AppTest, layer: str, column: str, text: str) -> AppTest:
    """Type into a cell of Explore's table of layers, as the browser tells of it."""
    (table,) = (element for element in test.get("bidi_component") if "plan-table" in (element.key or ""))
    test.session_state[table.key] = {"edits": [[time.time_ns() // 1000, layer, column, text]]}
    return test.run()


def base_of(test: AppTest, model: str) -> Plan:
    """The plan that fills Explore's table of layers."""
    base = test.session_state[sheets.BOOK_KEY].sheets[model].base
    assert isinstance(base, Plan)
    return base


Answer = Callable[[JobRecord], Mapping[str, Any]]


def serve(store: Store, answer: Answer) -> list[JobRecord]:
    """Carry out all jobs that wait, as a worker would, with this answer to each; what they were."""
    served = []
    while job_id := next(filter(None, (store.claim_next(os.getpid(), lane) for lane in PLACES)), None):
        job = store.job(job_id)
        assert job is not None
        served.append(job)
        try:
            store.finish(job_id, RunStatus.COMPLETED, answer(job))
        except QafError as error:
            store.finish(job_id, RunStatus.FAILED, error=str(error))
    return served


@pytest.fixture
def served(store: Store) -> Iterator[Callable[[Answer], list[JobRecord]]]:
    """Answers jobs aside as they come, for pages that wait for them; call it with the answer."""
    told: list[JobRecord] = []
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def watch(answer: Answer) -> None:
        while not ended.is_set():
            told.extend(serve(store, answer))
            time.sleep(0.01)

    def begin(answer: Answer) -> list[JobRecord]:
        threads.append(threading.Thread(target=watch, args=(answer,)))
        threads[-1].start()
        return told

    yield begin
    ended.set()
    for thread in threads:
        thread.join()


ROOT = Path(__file__).resolve().parents[2]
