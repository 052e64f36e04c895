"""Short jobs that pages wait for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st

from dashboard.state import catalogue, jobs
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import QafError
from qaf_core.runs.jobs.models import inspect_model
from qaf_core.runs.store.kinds import HEAVY, QUICK
from qaf_core.runs.store.request import InspectRequest, LatencyRequest, RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.said import say

from .conftest import Draw, shown

REQUEST = InspectRequest(model="digits/cnn")


def test_a_result_is_waited_for_and_not_sought_twice(
    workspace: Path, store: Store, served: Callable[..., Any]
) -> None:
    told = served(lambda job: {"model": job.request.model})
    for _time in range(2):
        assert jobs.wait_for(workspace, REQUEST) == {"model": "digits/cnn"}
    assert len(told) == 1
    jobs.wait_for(workspace, REQUEST, anew=True)
    assert len(told) == 2


def test_a_refusal_comes_in_its_own_words(workspace: Path, store: Store, served: Callable[..., Any]) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise QafError("the folder is empty", remedy="add images")

    served(refuse)
    with pytest.raises(QafError, match=r"^the folder is empty; add images\.$"):
        jobs.wait_for(workspace, REQUEST)


def test_nobody_waits_for_ever(workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LONGEST_WAIT_SECONDS", 0.2)
    with pytest.raises(jobs.NoAnswerYet, match="it took too long"):
        jobs.wait_for(workspace, REQUEST)


def test_that_there_is_no_answer_yet_is_told_at_once_and_not_kept(
    workspace: Path, store: Store, served: Callable[..., Any]
) -> None:
    st.cache_data.clear()
    store.put_problem(QUICK, say("The process cannot start."))
    with pytest.raises(jobs.NoAnswerYet, match="The process cannot start"):
        catalogue.inventory_of(find_model("cifar/resnet20"), workspace)
    store.put_problem(QUICK, None)
    served(lambda job: inspect_model(job.request, workspace))
    assert len(catalogue.inventory_of(find_model("cifar/resnet20"), workspace)) > 19


def test_a_page_that_waits_in_vain_says_why(draw: Draw, seeded_store: Store) -> None:
    done = next(run.id for run in seeded_store.list_runs() if run.status == "completed")
    (seeded_store.run_folder(done)).mkdir(parents=True)
    (seeded_store.run_folder(done) / PACKED_NAME).write_bytes(b"packed")
    run_id = seeded_store.create_run(RunRequest(model="digits/cnn"))
    assert "cannot start" not in shown(draw("run", run=run_id))
    seeded_store.put_problem(HEAVY, say("The process cannot start; see /logs/worker.log."))
    assert "The process cannot start; see /logs/worker.log." in shown(draw("run", run=run_id))
    seeded_store.ask(LatencyRequest(run=done, threads=1))
    assert "The process cannot start" in shown(draw("export", run=done))
    assert seeded_store.claim_next(os.getpid()) == run_id
    assert "The process cannot start" not in shown(draw("run", run=run_id))
