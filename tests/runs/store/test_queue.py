"""Jobs of all kinds in one queue: shared, kept, stopped, lost, in two lanes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qaf_core.errors import WorkspaceError
from qaf_core.pipeline.events import RunEvent, RunStatus
from qaf_core.runs.store import queue
from qaf_core.runs.store.kinds import HEAVY, LIGHT, PLACES, QUICK, kind_of
from qaf_core.runs.store.request import (
    CheckRequest,
    DeviceKitRequest,
    ExportRequest,
    InspectRequest,
    LatencyRequest,
    PlanRequest,
    RegisterRequest,
    RunRequest,
    SearchRequest,
)
from qaf_core.runs.store.store import Store
from qaf_core.text.catalogue import translator
from qaf_core.text.said import say

LOOK = InspectRequest(model="digits/cnn")
EXPORT = ExportRequest(run="a", format="packed")
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
    lane = kind_of(request_).lane
    assert [store.claim_next(PID, other) for other in PLACES if other != lane] == [None, None]
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
    job_id = store.claim_next(PID, QUICK)
    assert store.ask(LOOK) == job_id
    store.finish(found[0], "completed", {})
    assert store.ask(LOOK) == job_id
    assert store.ask(LOOK, anew=True) != job_id


@pytest.mark.parametrize("end", ["failed", "cancelled", "interrupted"])
def test_what_came_to_nothing_is_done_again(store: Store, end: str) -> None:
    job_id = store.ask(LOOK)
    store.claim_next(PID, QUICK)
    store.finish(job_id, end, error="why")
    assert store.ask(LOOK) != job_id


def test_a_job_that_is_to_stop_is_shared_no_more(store: Store) -> None:
    job_id = store.ask(LOOK)
    assert store.request_cancel(job_id)  # it waits: it is cancelled at once
    assert store.job(job_id).status == "cancelled"  # type: ignore[union-attr]
    running = store.ask(LOOK)
    store.claim_next(PID, QUICK)
    assert store.request_cancel(running)
    assert store.job(running).status == "running"  # type: ignore[union-attr]
    assert store.ask(LOOK) != running


def test_a_job_whose_process_died_is_interrupted_with_a_sentence_and_not_shared(store: Store) -> None:
    job_id = store.ask(LOOK)
    assert store.claim_next(dead_process(), QUICK) == job_id
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
    assert [store.claim_next(PID, QUICK) for _ in range(3)] == [*looks[:2], None]
    assert (store.count_queued(HEAVY), store.count_queued(QUICK)) == (1, 1)
    assert (store.count_ahead(waiting), store.count_ahead(looks[2])) == (1, 2)
    assert set(store.running_of(PID)) == {run_id, *looks[:2]}
    store.finish(looks[0], "completed", {})
    assert store.claim_next(PID, QUICK) == looks[2]


def test_nothing_is_measured_beside_other_work_but_quick_looks(store: Store) -> None:
    export, speed = store.ask(EXPORT), store.ask(LatencyRequest(run="a", threads=1))
    assert store.claim_next(PID, LIGHT) == export
    assert store.claim_next(PID) is None
    store.finish(export, "completed", {})
    look = store.ask(LOOK)
    assert store.claim_next(PID, QUICK) == look
    assert store.claim_next(PID) == speed
    more, next_look = store.ask(DeviceKitRequest(run="a")), store.ask(InspectRequest(model="inspection/vgg"))
    assert store.claim_next(PID, LIGHT) is None
    assert store.claim_next(PID, QUICK) == next_look
    store.finish(speed, "completed", {})
    assert store.claim_next(PID, LIGHT) == more


def test_what_must_be_alone_is_kept_waiting_by_no_more_than_is_at_work(store: Store) -> None:
    store.put_worker(PID, "ready")
    run, first = store.create_run(RunRequest(model="digits/cnn")), store.ask(EXPORT)
    assert store.claim_next(PID) == run
    speed, second = store.ask(LatencyRequest(run="a", threads=1)), store.ask(DeviceKitRequest(run="a"))
    assert store.claim_next(PID, LIGHT) == first  # hours may go by until the run ends
    store.finish(run, "completed", {})
    assert store.claim_next(PID, LIGHT) is None
    assert store.claim_next(PID) is None
    store.finish(first, "completed", {})
    assert store.claim_next(PID, LIGHT) is None
    store.remove_worker(PID)  # none comes up that would measure
    assert store.claim_next(PID, LIGHT) == second
    store.finish(second, "completed", {})
    assert store.claim_next(PID) == speed


def test_two_long_checks_leave_a_look_its_place(store: Store) -> None:
    checks = [store.ask(CheckRequest(model=model)) for model in ("digits/cnn", "inspection/vgg")]
    assert [store.claim_next(PID, LIGHT) for _ in range(2)] == checks
    look = store.ask(LOOK)
    assert store.claim_next(PID, QUICK) == look


def test_a_process_claims_its_own_job_in_its_turn_and_nobody_elses(store: Store) -> None:
    own, waiting = store.ask_for_own(EXPORT, PID), store.ask(DeviceKitRequest(run="a"))
    assert store.ask(EXPORT) == own  # whoever asks for the same shares it
    assert store.count_queued(LIGHT) == 1
    assert store.claim_next(PID, LIGHT) is None  # it comes first, and no worker takes it
    assert store.claim_next(PID, own=own) == own
    assert store.claim_next(PID, LIGHT) == waiting
    run, later = store.create_run(RunRequest(model="digits/cnn")), RunRequest(model="digits/cnn", seed=1)
    mine = store.ask_for_own(later, PID)
    store.put_worker(PID, "ready")
    assert store.claim_next(PID, own=mine) is None  # a worker will take the older one first
    store.remove_worker(PID)
    assert store.claim_next(PID, own=mine) == mine  # nobody is there who would
    assert store.claim_next(PID) is None
    store.finish(mine, "completed", {})
    assert store.claim_next(PID) == run


def test_a_run_that_follows_a_search_comes_before_later_searches(store: Store) -> None:
    searches = [store.ask(SearchRequest(model="digits/cnn", budgets=(f"size={size}kB",))) for size in (9, 8)]
    assert store.claim_next(PID) == searches[0]
    run = store.create_run(RunRequest(model="digits/cnn"), follows=store.job(searches[0]))
    store.finish(searches[0], "completed", {})
    assert store.count_ahead(searches[1]) == 1
    assert store.count_ahead(run) == 0
    assert store.claim_next(PID) == run
    store.finish(run, "completed", {})
    assert store.claim_next(PID) == searches[1]


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


def test_a_failed_job_keeps_the_parts_of_its_error_beside_the_line(store: Store) -> None:
    error = WorkspaceError(say("{name} is no address", name="{mirror}"), got=1, remedy="check the path")
    told, plain = (store.ask(InspectRequest(model=model)) for model in ("one", "two"))
    store.finish(told, RunStatus.FAILED, error=error)
    store.finish(plain, RunStatus.FAILED, error="as it was; got 1.")
    kept, old = (store.job(job_id) for job_id in (told, plain))
    assert kept is not None
    assert kept.error == str(error) == str(kept.failure)
    assert kept.failure is not None
    assert kept.failure.text(translator("ja")) == (
        "{mirror} がアドレスではありません（実際: 1）。パスを確認してください。"
    )
    assert old is not None
    assert old.failure is not None
    assert old.failure.text(translator("ja")) == "as it was; got 1."
