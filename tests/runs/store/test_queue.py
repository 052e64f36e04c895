"""Jobs of all kinds in one queue: shared, kept, stopped, lost, in two lanes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store import queue
from qaf_core.runs.store.kinds import HEAVY, LIGHT
from qaf_core.runs.store.request import (
    CheckRequest,
    DeviceKitRequest,
    ExportRequest,
    InspectRequest,
    LatencyRequest,
    PlanRequest,
    RegisterRequest,
    RunRequest,
)
from qaf_core.runs.store.store import Store

LOOK = InspectRequest(model="digits/cnn")
PID = os.getpid()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "request_",
    [
        LOOK,
        CheckRequest(model="digits/cnn", data="builtin", uploads={"data": {"path": "/a", "name": "b.zip"}}),
        RegisterRequest(model="cifar/resnet20", name="my/parts"),
        PlanRequest(model="digits/cnn", bits=4, calibration="/images"),
        LatencyRequest(run="a", threads=2),
        DeviceKitRequest(run="a"),
        ExportRequest(run="a", format="onnx", precision="fp32"),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_job_of_any_kind_goes_from_queued_to_completed_and_keeps_its_result(
    store: Store, workspace: Path, request_: InspectRequest
) -> None:
    job_id = store.ask(request_)
    job = store.job(job_id)
    assert job is not None
    assert (job.status, job.request, job.result) == ("queued", request_, {})
    lane = HEAVY if job.kind in ("plan", "latency") else LIGHT
    assert store.claim_next(PID, LIGHT if lane == HEAVY else HEAVY) is None
    assert store.claim_next(PID, lane) == job_id
    store.append_event(job_id, RunEvent(kind="stage", data={"stage": "a", "message": "b", "fraction": 0.5}))
    store.finish(job_id, "completed", {"found": [1, 2]})
    with Store(workspace) as reopened:  # the server was started anew
        kept = reopened.find_job(request_)
        assert kept is not None
        assert (kept.id, kept.result, kept.is_final) == (job_id, {"found": [1, 2]}, True)
        assert kept.stage["fraction"] == 0.5
        assert reopened.ask(request_) == job_id
        assert reopened.list_runs() == ()
        assert reopened.last_job(kept.kind, request_.about) == kept


def test_what_is_asked_for_twice_is_one_job(store: Store, workspace: Path) -> None:
    found: list[str] = []

    def ask() -> None:
        with Store(workspace) as own:
            found.append(own.ask(LOOK, anew=True))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    job_id = store.claim_next(PID, LIGHT)
    assert store.ask(LOOK) == job_id
    store.finish(found[0], "completed", {})
    assert store.ask(LOOK) == job_id
    assert store.ask(LOOK, anew=True) != job_id


@pytest.mark.parametrize("end", ["failed", "cancelled", "interrupted"])
def test_what_came_to_nothing_is_done_again(store: Store, end: str) -> None:
    job_id = store.ask(LOOK)
    store.claim_next(PID, LIGHT)
    store.finish(job_id, end, error="why")
    assert store.ask(LOOK) != job_id


def test_a_job_that_is_to_stop_is_shared_no_more(store: Store) -> None:
    job_id = store.ask(LOOK)
    assert store.request_cancel(job_id)  # it waits: it is cancelled at once
    assert store.job(job_id).status == "cancelled"  # type: ignore[union-attr]
    running = store.ask(LOOK)
    store.claim_next(PID, LIGHT)
    assert store.request_cancel(running)
    assert store.job(running).status == "running"  # type: ignore[union-attr]
    assert store.ask(LOOK) != running


def test_a_job_whose_process_died_is_interrupted_with_a_sentence_and_not_shared(store: Store) -> None:
    job_id = store.ask(LOOK)
    assert store.claim_next(dead_process(), LIGHT) == job_id
    assert store.ask(LOOK) != job_id
    job = store.job(job_id)
    assert job is not None
    assert job.status == "interrupted"
    assert job.error == "The process working on this job ended before it was done."


def test_a_look_does_not_wait_for_a_run_and_two_are_done_at_once(store: Store) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    waiting = store.create_run(RunRequest(model="digits/cnn"))
    looks = [store.ask(InspectRequest(model=f"torchvision/resnet{depth}")) for depth in (18, 34, 50)]
    assert store.claim_next(PID) == run_id
    assert store.claim_next(PID) is None
    assert [store.claim_next(PID, LIGHT) for _ in range(3)] == [*looks[:2], None]
    assert (store.count_queued(HEAVY), store.count_queued(LIGHT)) == (1, 1)
    assert (store.count_ahead(waiting), store.count_ahead(looks[2])) == (1, 2)
    assert set(store.running_of(PID)) == {run_id, *looks[:2]}
    store.finish(looks[0], "completed", {})
    assert store.claim_next(PID, LIGHT) == looks[2]


def test_nothing_is_measured_beside_other_work(store: Store) -> None:
    look, speed = store.ask(LOOK), store.ask(LatencyRequest(run="a", threads=1))
    assert store.claim_next(PID, LIGHT) == look
    assert store.claim_next(PID) is None
    store.finish(look, "completed", {})
    assert store.claim_next(PID) == speed
    more = store.ask(InspectRequest(model="inspection/vgg"))
    assert store.claim_next(PID, LIGHT) is None
    store.finish(speed, "completed", {})
    assert store.claim_next(PID, LIGHT) == more


def test_old_jobs_are_forgotten_and_runs_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MOST_JOBS_KEPT", 2)
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    store.finish(run_id, "completed", {})
    jobs = [store.ask(InspectRequest(model=f"torchvision/resnet{depth}")) for depth in (18, 34, 50)]
    for job_id in jobs:
        store.append_event(job_id, RunEvent(kind="stage", data={"stage": "a", "message": "b"}))
        store.finish(job_id, "completed", {})
    last = store.ask(LOOK)
    assert [store.job(job_id) is None for job_id in (*jobs, last)] == [True, False, False, False]
    assert store.events_since(jobs[0]) == ()
    assert store.run(run_id).status == "completed"


def test_a_job_is_no_run(store: Store) -> None:
    job_id = store.ask(LOOK)
    with pytest.raises(Exception, match="no such run"):
        store.run(job_id)
    with pytest.raises(Exception, match="no such run"):
        store.find(job_id[:8])
