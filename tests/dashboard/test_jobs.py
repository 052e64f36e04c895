"""Work done aside: one at a time per key, its end seen, its faults in words."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dashboard.state.jobs import Job, Jobs, run_command
from qaf_core.errors import DataError, QafError


def ended(jobs: Jobs, key: str, timeout_seconds: float = 10.0) -> Job:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        job = jobs.find(key)
        if job is not None and job.state != "running":
            return job
        time.sleep(0.01)
    raise AssertionError(f"job {key} did not end")


def test_a_job_gives_its_result() -> None:
    jobs = Jobs()
    jobs.start("a", lambda job: job.key + "!")
    job = ended(jobs, "a")
    assert (job.state, job.result) == ("done", "a!")
    assert job.elapsed_seconds == job.seconds


def test_a_running_job_is_not_begun_again() -> None:
    jobs, gate = Jobs(), threading.Event()
    first = jobs.start("a", lambda job: gate.wait(10))
    assert jobs.start("a", lambda job: "second") is first
    gate.set()
    assert ended(jobs, "a").result is True
    assert jobs.start("a", lambda job: "third") is not first
    assert ended(jobs, "a").result == "third"


def test_faults_are_words() -> None:
    jobs = Jobs()

    def refuse(_job: Job) -> None:
        raise DataError("the folder is empty", remedy="add images")

    jobs.start("bad input", refuse)
    jobs.start("fault", lambda job: 1 / 0)
    assert ended(jobs, "bad input").error == str(DataError("the folder is empty", remedy="add images"))
    assert "ZeroDivisionError" in ended(jobs, "fault").error


def test_a_forgotten_job_is_asked_to_end() -> None:
    jobs = Jobs()
    job = jobs.start("a", lambda job: job.stop.wait(10))
    jobs.forget("a")
    assert jobs.find("a") is None
    assert job.stop.is_set()


def test_a_command_gives_its_json() -> None:
    found = run_command(["cost", "inspection/resnet20", "--ratio", "2", "--bits", "4", "--json"])
    assert found["cost"]["params"] > 0


def test_a_command_that_refuses_says_so_in_its_own_words() -> None:
    with pytest.raises(QafError, match="unknown model"):
        run_command(["inspect", "no/such", "--json"])


def test_a_command_tells_how_far_it_is_beside_its_json(tmp_path: Path) -> None:
    job = Job(key="a")
    arguments = ["plan", "digits/cnn", "--structure", "auto", "--bits", "8", "--error-bound", "0.01"]
    found = run_command([*arguments, "--threads", "1", "--json", "--workspace", str(tmp_path)], job=job)
    assert found["plan"]["model"] == "digits/cnn"
    assert job.progress.startswith(("Trying forms of", "Timing the network as a whole", "Comparing"))


def test_a_command_can_be_stopped() -> None:
    job = Job(key="a")
    job.stop.set()
    with pytest.raises(QafError, match="stopped"):
        run_command(["inspect", "torchvision/vit_b_16", "--json"], job=job)
