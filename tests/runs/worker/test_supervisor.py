import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qaf_core.runs.store.kinds import HEAVY, QUICK
from qaf_core.runs.store.request import CheckRequest, InspectRequest, RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker import supervisor as supervision
from qaf_core.runs.worker.supervisor import Supervisor
from qaf_core.text.catalogue import translator
from qaf_core.text.said import say

# What a worker does, without loading torch and without compressing anything.
STUB = """
import os, sys, time
from qaf_core.runs.store.store import Store
store, lane = Store(sys.argv[1]), sys.argv[2]
if lane == "heavy":
    store.put_worker(os.getpid(), "ready")
while (run_id := store.claim_next(os.getpid(), lane)) is None:
    time.sleep(0.02)
if lane == "heavy":
    store.put_worker(os.getpid(), "running")
if getattr(store.job(run_id).request, "name", "") == "die":
    os._exit(9)
time.sleep(0.3)
store.finish(run_id, "completed", {})
"""


@pytest.fixture
def left_behind(workspace: Path) -> Path:
    """What an upload left in the workspace that was cut off long ago."""
    folder = workspace / "models" / ".upload-left"
    folder.mkdir(parents=True)
    os.utime(folder, (1, 1))
    return folder


@pytest.fixture
def supervisor(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    def start(folder: Path, lane: str = HEAVY) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", STUB, str(folder), lane], start_new_session=True)

    monkeypatch.setattr(supervision, "start_worker", start)
    supervisor = Supervisor(workspace)
    yield supervisor
    supervisor.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_queued_run_starts_at_once_on_the_standby_worker(supervisor: Supervisor, store: Store) -> None:
    assert supervisor.wait_ready(20)
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    began = time.monotonic()
    wait_for(lambda: store.run(run_id).status != "queued")
    assert time.monotonic() - began < 1.0
    wait_for(lambda: store.run(run_id).status == "completed")


def test_it_tidies_up_as_it_takes_charge(left_behind: Path, supervisor: Supervisor) -> None:
    wait_for(lambda: not left_behind.exists())
    assert supervisor.in_charge


def test_runs_follow_each_other_each_in_its_own_process(supervisor: Supervisor, store: Store) -> None:
    ids = [store.create_run(RunRequest(model="digits/cnn")) for _ in range(2)]
    wait_for(lambda: all(store.run(run_id).status == "completed" for run_id in ids))
    assert store.worker_of(ids[0]) != store.worker_of(ids[1])
    first, second = (store.run(run_id) for run_id in ids)
    assert second.started_at >= first.finished_at


def test_the_run_of_a_worker_that_dies_is_interrupted_and_the_next_one_runs(
    supervisor: Supervisor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = store.create_run(RunRequest(model="digits/cnn", name="die"))
    following = store.create_run(RunRequest(model="digits/cnn"))
    wait_for(lambda: store.run(dying).status == "interrupted")
    assert "ended before it was done" in str(store.run(dying).error)
    wait_for(lambda: store.run(following).status == "completed")


def test_light_jobs_are_done_beside_a_run_by_workers_of_their_own(
    supervisor: Supervisor, store: Store
) -> None:
    wait_for(lambda: supervisor.in_charge)
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    looks = [store.ask(InspectRequest(model=f"torchvision/resnet{depth}")) for depth in (18, 34, 50)]
    wait_for(lambda: all(store.job(job_id).status == "completed" for job_id in looks))
    wait_for(lambda: store.run(run_id).status == "completed")
    assert len({store.worker_of(job_id) for job_id in (run_id, *looks)}) == 4
    dying = store.ask(CheckRequest(model="digits/cnn", name="die"))
    wait_for(lambda: store.job(dying).status == "interrupted")
    assert "this job ended before it was done" in str(store.job(dying).error)


def test_a_second_supervisor_waits_until_the_first_ends(supervisor: Supervisor, workspace: Path) -> None:
    wait_for(lambda: supervisor.in_charge)
    second = Supervisor(workspace)
    try:
        time.sleep(0.5)
        assert not second.in_charge
        supervisor.stop()
        wait_for(lambda: second.in_charge)
        wait_for(second.ready)
    finally:
        second.stop()


def test_stopping_ends_the_workers_and_what_they_work_on(supervisor: Supervisor, workspace: Path) -> None:
    assert supervisor.wait_ready(20)
    with Store(workspace) as store:
        worker = next(iter(store.worker_states()))
        run_id = store.create_run(RunRequest(model="digits/cnn"))
        wait_for(lambda: store.run(run_id).status == "running")
        supervisor.stop()
        assert store.worker_states() == {}
        assert store.run(run_id).status == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    supervisor.stop()


@pytest.mark.parametrize("lane", [HEAVY, QUICK])
def test_a_lane_whose_workers_cannot_start_is_tried_ever_more_slowly_and_told_until_they_do(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    starts: list[float] = []
    broken = True
    kind, other = ("compress", "inspect") if lane == HEAVY else ("inspect", "compress")

    def start(folder: Path, of: str) -> subprocess.Popen[bytes]:
        if of == lane:
            starts.append(time.monotonic())
        script = "raise SystemExit(1)" if broken and of == lane else STUB
        return subprocess.Popen([sys.executable, "-c", script, str(folder), of], start_new_session=True)

    monkeypatch.setattr(supervision, "start_worker", start)
    monkeypatch.setattr(supervision, "FIRST_RETRY_SECONDS", 0.2)
    store.put_problem(lane, say("told by a supervisor that died"))
    if lane == QUICK:
        store.ask(InspectRequest(model="digits/cnn"))
    supervisor = Supervisor(workspace)
    try:
        wait_for(lambda: store.problem_of(kind) is None)
        wait_for(lambda: len(starts) >= 3)
        assert starts[2] - starts[1] > starts[1] - starts[0]
        assert "cannot start (it ended with code 1)" in str(store.problem_of(kind))
        assert "worker.log. Free some memory" in str(store.problem_of(kind))
        told = store.problem_of(kind)
        assert told is not None
        assert told.text(translator("ja")).startswith("処理用のプロセスを起動できません（終了コード 1）")
        assert store.problem_of(other) is None
        wait_for(lambda: lane == HEAVY or supervisor.ready())  # which tells nothing of the other lane
        assert store.problem_of(kind) is not None
        broken = False
        wait_for(lambda: store.problem_of(kind) is None)
    finally:
        supervisor.stop()


def test_the_log_of_the_workers_does_not_grow_for_ever(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "LOG_LIMIT_BYTES", 10)
    log = workspace / "logs" / supervision.LOG_NAME
    log.parent.mkdir(parents=True)
    log.write_text("x" * 100)
    Store(workspace).close()
    worker = supervision.start_worker(workspace)
    worker.kill()
    worker.wait()
    assert log.stat().st_size < 100
    assert log.with_suffix(".old.log").stat().st_size == 100
