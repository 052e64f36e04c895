"""Keeping a worker process at hand, so that a queued run starts within a second; and others on demand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from qaf_core.children import child_environment
from qaf_core.data.workspace.uploads import sweep_uploads
from qaf_core.errors import WorkspaceError
from qaf_core.files import PART, sweep_parts
from qaf_core.runs.store.kinds import HEAVY, PLACES
from qaf_core.runs.store.store import Store
from qaf_core.text.said import Said, say

POLL_SECONDS = 0.1
# The next standby loads torch only once the run before it has drawn its first live points: they share cores.
STANDBY_DELAY_SECONDS = 8.0
STOP_SECONDS = 5.0
# A worker that dies while starting (no memory, a broken installation) is tried again ever more slowly.
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
LOCK_NAME = "supervisor.lock"
LOG_NAME = "worker.log"
LOG_LIMIT_BYTES = 4_000_000


class Supervisor:
    """Keeps one worker ready in a workspace, starts others for lighter jobs, tidies up after the dead.

    Only one is at work per workspace: a second one starts no workers and takes over when the first ends.

    Args:
        workspace: Folder of the run store; None for the default one.

    Raises:
        WorkspaceError: If the folder cannot be written to.
    """

    def __init__(self, workspace: Path | str | None = None) -> None:
        self._store = Store(workspace)
        self.workspace = self._store.workspace
        self._stop = threading.Event()
        self._lock_file: IO[str] | None = None
        self._workers: dict[str, list[subprocess.Popen[bytes]]] = {lane: [] for lane in PLACES}
        self._next_start = dict.fromkeys(PLACES, 0.0)
        self._retry_seconds = dict.fromkeys(PLACES, FIRST_RETRY_SECONDS)
        self._problems: dict[str, Said | None] = {}  # as the store has them
        self._thread = threading.Thread(target=self._watch, name="qaf-supervisor", daemon=True)
        self._thread.start()

    @property
    def in_charge(self) -> bool:
        """Whether this supervisor, not another, keeps the workers of the workspace."""
        return self._lock_file is not None

    def ready(self) -> bool:
        """Whether a worker waits with everything loaded."""
        return "ready" in self._store.worker_states().values()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Wait until ``ready``; whether it came to that in time."""
        deadline = time.monotonic() + timeout_seconds
        while not self.ready():
            if time.monotonic() > deadline or self._stop.is_set():
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self) -> None:
        """End the workers (jobs at work become ``interrupted``) and let go of the workspace, for good."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(timeout=2 * STOP_SECONDS)
        for workers in self._workers.values():
            for worker in workers:
                self._end(worker)
            workers.clear()
        with contextlib.suppress(WorkspaceError):
            self._store.mark_interrupted()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None
        self._store.close()

    def _watch(self) -> None:
        while not self._stop.is_set():
            # A full disk or a locked store now need not be one a second later: keep on trying.
            with contextlib.suppress(WorkspaceError, OSError):
                self._store.check_there()
                if self._take_charge():
                    self._tend()
            self._stop.wait(POLL_SECONDS)

    def _take_charge(self) -> bool:
        """Hold the lock file; the system frees it when its holder dies, so a stale one cannot stay."""
        if self._lock_file is None:
            file = (self.workspace / LOCK_NAME).open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self._lock_file = file
            sweep_parts(self.workspace.rglob(f".*{PART}"))
            sweep_uploads(self.workspace)
        return True

    def _tend(self) -> None:
        for lane in PLACES:
            self._collect_ended(lane)
            self._start_missing(lane)
        self._store.mark_interrupted()

    def _start_missing(self, lane: str) -> None:
        """Start the worker that is to stand by, or one for a job that waits unless it is on its way."""
        workers, states = self._workers[lane], self._store.worker_states()
        at_work = sum(bool(self._store.running_of(worker.pid)) for worker in workers)
        if at_work or lane not in self._problems or any(states.get(w.pid) == "ready" for w in workers):
            self._report_problem(lane, None)
            self._retry_seconds[lane] = FIRST_RETRY_SECONDS
        on_way = len(workers) - at_work
        if lane == HEAVY and on_way:
            self._next_start[lane] = time.monotonic() + STANDBY_DELAY_SECONDS
        needed = 1 if lane == HEAVY else min(self._store.count_queued(lane), PLACES[lane] - at_work)
        if on_way < needed and time.monotonic() >= self._next_start[lane]:
            workers.append(start_worker(self.workspace, lane))

    def _collect_ended(self, lane: str) -> None:
        for worker in [worker for worker in self._workers[lane] if worker.poll() is not None]:
            self._workers[lane].remove(worker)
            self._store.remove_worker(worker.pid)
            failed, retry = worker.returncode != 0, self._retry_seconds[lane]
            if failed and not self._store.running_of(worker.pid):  # else its job tells
                self._report_problem(lane, self._describe(worker.returncode))
            self._next_start[lane] = time.monotonic() + (retry if failed else 0.0)
            self._retry_seconds[lane] = (
                min(2 * retry, LONGEST_RETRY_SECONDS) if failed else FIRST_RETRY_SECONDS
            )

    def _report_problem(self, lane: str, problem: Said | None) -> None:
        if lane not in self._problems or self._problems[lane] != problem:
            self._store.put_problem(lane, problem)
            self._problems[lane] = problem

    def _describe(self, code: int) -> Said:
        return say(
            "The process that is to do this cannot start (it ended with code {code}) and is tried again and "
            "again. Its messages are in {log}. Free some memory; if that does not help, install qaf again: "
            "make app.",
            code=code,
            log=str(self.workspace / "logs" / LOG_NAME),
        )

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        with contextlib.suppress(WorkspaceError):
            self._store.remove_worker(worker.pid)


def start_worker(workspace: Path, lane: str = HEAVY) -> subprocess.Popen[bytes]:
    """Start a worker process of its own session, its messages in ``workspace/logs/worker.log``."""
    log = workspace / "logs" / LOG_NAME
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".old.log"))
    command = [
        sys.executable,
        "-m",
        "qaf_core.runs.worker.worker",
        "--workspace",
        str(workspace),
        "--parent",
        str(os.getpid()),
        "--lane",
        lane,
    ]
    with log.open("ab") as messages:
        return subprocess.Popen(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            start_new_session=True,
        )
