"""The worker as it is: a process that loads torch and compresses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.store.kinds import QUICK
from qaf_core.runs.store.processes import process_token
from qaf_core.runs.store.queue import DISCARDED
from qaf_core.runs.store.request import InspectRequest, RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker import worker
from qaf_core.runs.worker.supervisor import Supervisor, start_worker

START_SECONDS = 240  # on a machine that has much else to do


def wait_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def request(**options: Any) -> RunRequest:
    inventory = load_inventory(find_model("digits/cnn"))
    plan = replace(plan_for_ratio(inventory, model="digits/cnn", ratio=2.0, bits=4), options=options)
    return RunRequest(model="digits/cnn", plan=plan.to_dict(), images=100)


LONG = {"rounding_rounds": 100_000, "patience": 100_000, "tolerance": 0.0}
SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}


def test_a_run_starts_within_a_second_can_be_stopped_and_the_next_one_finishes(
    workspace: Path, store: Store
) -> None:
    supervisor = Supervisor(workspace)
    try:
        assert supervisor.wait_ready(START_SECONDS)
        run_id = store.create_run(request(**LONG))
        began = time.monotonic()
        wait_for(lambda: bool(store.events_since(run_id)))
        assert time.monotonic() - began < 1.0
        wait_for(lambda: bool(store.events_since(run_id, kinds=("iteration",), layer="features.3")))
        store.request_cancel(run_id)
        wait_for(lambda: store.run(run_id).is_final)
        assert store.run(run_id).status == "cancelled"
        assert [row.name for row in store.run(run_id).layers][:1] == ["features.0"]
        following = store.create_run(request(**SHORT))
        wait_for(lambda: store.run(following).is_final)
        record = store.run(following)
        assert record.status == "completed", record.error
        assert store.worker_of(following) != store.worker_of(run_id)
    finally:
        supervisor.stop()


def test_a_worker_told_to_end_leaves_its_run_interrupted(workspace: Path, store: Store) -> None:
    run_id = store.create_run(request(**LONG))
    process = start_worker(workspace)
    wait_for(lambda: len(store.run(run_id).layers) > 0)
    process.terminate()
    assert process.wait(20) == 0
    record = store.run(run_id)
    assert record.status == "interrupted"
    assert record.layers[0].name == "features.0"
    wait_for(lambda: store.worker_states() == {}, 20)


@pytest.mark.parametrize("how", ["killed", "discarded"])
def test_helpers_go_with_their_worker(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Even with one that is killed; one that may say so ends its pool of helpers, which has its own test.

    One whose run is discarded ends itself, in the middle of whatever it does, and keeps nothing.
    """
    if not Path("/proc/self/task").exists() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has none to spare for a helper")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    # A network with work for a helper, solved at once: no moments of inputs before.
    inventory = load_inventory(find_model("inspection/resnet20"))
    plan = plan_for_ratio(inventory, model="inspection/resnet20", ratio=2.0, bits=4, activation_bits=32)
    long = replace(plan, options={**LONG, "output_fit": False, "moment_weight": 0.0})
    run_id = store.create_run(RunRequest(model=plan.model, plan=long.to_dict(), images=10))
    process = start_worker(workspace)
    try:
        # The worker is at the first layers: this one, the last before the classifier, is a helper's.
        wait_for(lambda: bool(store.events_since(run_id, kinds=("iteration",), layer="layer3.2.conv2")))
        children = children_of(process.pid)
        assert children
        if how == "killed":
            process.kill()
        else:
            store.discard(run_id)
            assert store.run(run_id).status == "cancelled"
        assert process.wait(20) == (0 if how == "discarded" else -signal.SIGKILL)
        wait_for(lambda: not any(process_token(child) for child in children), 20)
    finally:
        process.kill()
        process.wait()
    if how == "discarded":
        record = store.run(run_id)
        assert (record.status, record.layers, record.error) == ("cancelled", (), DISCARDED)
        assert not store.run_folder(run_id).exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """What this process does on signals is as before, though a worker ran in it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
def test_a_failed_run_ends_the_worker_in_peace(
    workspace: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = store.create_run(replace(request(), data="nowhere"))
    assert worker.main(["--workspace", str(workspace)]) == 0
    record = store.run(run_id)
    assert record.status == "failed"
    assert "nowhere" in str(record.error)
    assert store.worker_states() == {}
    assert capfd.readouterr().err == ""


def test_a_quick_worker_does_one_job_and_another_finds_nothing(workspace: Path, store: Store) -> None:
    job_id = store.ask(InspectRequest(model="digits/cnn"))
    workers = [start_worker(workspace, QUICK) for _ in range(2)]
    assert all(f"--parent {os.getpid()}" in " ".join(map(str, process.args)) for process in workers)
    assert [process.wait(START_SECONDS) for process in workers] == [0, 0]
    job = store.job(job_id)
    assert job is not None
    assert job.status == "completed", job.error
    assert len(job.result["layers"]) > 3
    assert store.worker_of(job_id) in {process.pid for process in workers}
    assert (workspace / "logs" / "worker.log").read_text() == ""


# A worker whose job neither ends nor looks whether it is to stop.
STUBBORN = """
import hashlib, sys, threading, time
from qaf_core.runs.jobs import models
from qaf_core.runs.store import kinds
from qaf_core.runs.worker import worker
class Dropped:
    def __del__(self):
        print("at work", flush=True)
        time.sleep(600)
def drop():
    Dropped()  # what is raised in there goes no further
    time.sleep(600)
def compute():
    threading.Timer(0.5, print, ["at work"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # lets no signal's handler in
workspace, limit, how, *more = sys.argv[1:]
work = {"sleeps": lambda: time.sleep(600), "drops": drop, "computes": compute}[how]
models.carry_out_inspection = lambda *_: work()
object.__setattr__(kinds.KINDS["inspect"], "limit_seconds", float(limit))
sys.exit(worker.main(["--workspace", workspace, "--lane", "quick", *more]))
"""
# A parent that starts such a worker and dies without a word.
MORTAL = """
import os, subprocess, sys, time
worker = subprocess.Popen([*sys.argv[1:], "--parent", str(os.getpid())], stdout=subprocess.DEVNULL)
print(worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["sleeps", "drops", "computes"])
def test_a_light_worker_told_to_end_leaves_its_job_interrupted(
    workspace: Path, store: Store, how: str
) -> None:
    """Also where the exception that ends it is dropped, or cannot be raised."""
    job_id = store.ask(InspectRequest(model="digits/cnn"))
    command = [sys.executable, "-c", STUBBORN, str(workspace), "600", how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: store.job(job_id).status == "running")  # type: ignore[union-attr]
        assert process.stdout is not None
        assert how == "sleeps" or process.stdout.readline() == "at work\n"
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    job = store.job(job_id)
    assert job is not None
    assert (job.status, job.error) == ("interrupted", worker.JOB_INTERRUPTED)


def test_a_worker_ends_with_its_parent(workspace: Path, store: Store) -> None:
    job_id = store.ask(InspectRequest(model="digits/cnn"))
    command = [sys.executable, "-c", MORTAL, sys.executable, "-c", STUBBORN, str(workspace), "600", "sleeps"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for(lambda: store.job(job_id).status == "running")  # type: ignore[union-attr]
    parent.kill()
    parent.communicate()
    wait_for(lambda: not process_token(pid), 20)
    job = store.job(job_id)
    assert job is not None
    assert (job.status, job.error) == ("interrupted", worker.JOB_INTERRUPTED)


@pytest.mark.parametrize(("limit", "status"), [(600.0, "cancelled"), (0.1, "failed")])
def test_a_job_that_heeds_nothing_is_ended(workspace: Path, store: Store, limit: float, status: str) -> None:
    job_id = store.ask(InspectRequest(model="digits/cnn"))
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, str(workspace), str(limit), "sleeps"])
    wait_for(lambda: store.job(job_id).status != "queued")  # type: ignore[union-attr]
    if status == "cancelled":
        store.request_cancel(job_id)
    assert process.wait(START_SECONDS) == 0
    job = store.job(job_id)
    assert job is not None
    assert job.status == status
    assert job.error == (worker.TOO_LONG if status == "failed" else None)


@pytest.mark.usefixtures("_own_signals")
def test_a_worker_without_a_workspace_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert worker.main(["--workspace", str(tmp_path / "file")]) == 2
    assert "workspace cannot be written to" in capsys.readouterr().err
