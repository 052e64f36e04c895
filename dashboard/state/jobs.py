"""Work that takes longer than a page may wait: done aside, looked at again and again.

A page starts a job under a key and draws its state; a fragment that runs every second sees it end. Jobs never
call Streamlit. What needs torch runs in another process, as the command line (``run_command``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from qaf_core.errors import QafError
from qaf_core.pipeline.events import PROGRESS_MARK, PROGRESS_VARIABLE

MOST_AT_ONCE = 2
KEPT = 200  # ended jobs remembered
POLL_SECONDS = 0.2
STOP_SECONDS = 5.0

Work = Callable[["Job"], Any]


@dataclass(kw_only=True)
class Job:
    """One piece of work and how it stands.

    Attributes:
        key: What the page calls it.
        state: ``running``, ``done`` or ``failed``.
        result: What the work gave back, once done.
        error: Why it failed, in words.
        progress: The work's own last word on how far it is.
        fraction: The same as a share from 0 to 1, or None where the work cannot tell.
        began: Reading of ``time.monotonic``.
        stop: Set to ask the work to end.
    """

    key: str
    state: Literal["running", "done", "failed"] = "running"
    result: Any = None
    error: str = ""
    progress: str = ""
    fraction: float | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def elapsed_seconds(self) -> float:
        """Since it began; of an ended job, how long it took."""
        return time.monotonic() - self.began if self.state == "running" else self.seconds


class Jobs:
    """The jobs of one server; safe to use from all sessions."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(max_workers=MOST_AT_ONCE, thread_name_prefix="qaf-job")

    def start(self, key: str, work: Work) -> Job:
        """Begin ``work`` under ``key``; a job of this key that still runs is left running."""
        with self._lock:
            running = self._jobs.get(key)
            if running is not None and running.state == "running":
                return running
            job = self._jobs[key] = Job(key=key)
            for old in list(self._jobs)[:-KEPT]:
                if self._jobs[old].state != "running":
                    del self._jobs[old]
        self._threads.submit(_carry_out, job, work)
        return job

    def find(self, key: str) -> Job | None:
        """The last job of this key, or None."""
        with self._lock:
            return self._jobs.get(key)

    def forget(self, key: str) -> None:
        """Ask a running job to end, and drop it."""
        with self._lock:
            job = self._jobs.pop(key, None)
        if job is not None:
            job.stop.set()


def _carry_out(job: Job, work: Work) -> None:
    try:
        job.result = work(job)
        state: Literal["done", "failed"] = "done"
    except QafError as error:
        job.error, state = str(error), "failed"
    except Exception as error:
        job.error, state = f"{type(error).__name__}: {error}", "failed"
    job.seconds = time.monotonic() - job.began
    job.state = state


@st.cache_resource(show_spinner=False)
def shared() -> Jobs:
    """The jobs of this server."""
    return Jobs()


def run_command(
    arguments: Sequence[str], *, job: Job | None = None, timeout_seconds: float = 600.0
) -> dict[str, Any]:
    """Run a ``qaf`` command that prints one JSON object, in a process of its own.

    Args:
        arguments: Of ``qaf``, with ``--json`` among them.
        job: Told of progress and asked whether to stop.
        timeout_seconds: Longest run.

    Raises:
        QafError: In the command's own words when it refuses, or when it takes too long or is stopped.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, PROGRESS_VARIABLE: "1"}
    told: list[str] = []
    output: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "qaf_core.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment,
    ) as process:  # fmt: skip
        readers = [
            threading.Thread(target=_read_lines, args=(process.stderr, told, job)),
            threading.Thread(target=lambda: output.append(process.stdout.read() if process.stdout else "")),
        ]
        for reader in readers:
            reader.start()
        problem = _wait(process, job, timeout_seconds)
        for reader in readers:
            reader.join()
    if problem:
        raise QafError(problem, got=f"qaf {arguments[0]}")
    if process.returncode:
        raise QafError(told[-1] if told else f"qaf {arguments[0]} failed")
    found: dict[str, Any] = json.loads("".join(output))
    return found


def _wait(process: subprocess.Popen[str], job: Job | None, timeout_seconds: float) -> str | None:
    """Wait for the end; why it had to be ended, or None."""
    deadline = time.monotonic() + timeout_seconds
    while process.poll() is None:
        stopped = job is not None and job.stop.is_set()
        if stopped or time.monotonic() > deadline:
            _end(process)
            return "stopped" if stopped else "it took too long"
        time.sleep(POLL_SECONDS)
    return None


def _read_lines(stream: Any, told: list[str], job: Job | None) -> None:
    for line in stream or ():
        if line.startswith(PROGRESS_MARK):
            if job is not None:
                job.progress = line.removeprefix(PROGRESS_MARK).strip()
        elif line.strip():
            told.append(line.strip())


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
