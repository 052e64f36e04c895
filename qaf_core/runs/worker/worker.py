"""The process that executes one queued job: ``python -m qaf_core.runs.worker.worker --workspace DIR``.

In the heavy lane it loads torch first and says it is ready, so that a run starts the moment it is queued; and
it ends after that run, so that the peak memory it reports is the run's own. In the other lanes it is started
when a job waits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from qaf_core.children import PARENT_POLL_SECONDS, end_with
from qaf_core.errors import QafError, RunCancelled
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.kinds import HEAVY, KINDS, PLACES, RUN_KINDS
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import JobFailed, execute_job

POLL_SECONDS = 0.05
HEED_SECONDS = 3.0  # for a job that is no run to end once it was stopped, for this process once told to
_LOADED_AHEAD = ("torch", "torchvision", "qaf_core.runs.jobs.compress")
TOO_LONG = "It took too long."
JOB_INTERRUPTED = "The application ended before this job was done."
_INTERRUPTED = "The application ended before this run was done; finished layers are kept."


class Terminated(BaseException):
    """This process was told to end."""


def main(arguments: list[str] | None = None) -> int:
    """Serve one job; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m qaf_core.runs.worker.worker", description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument(
        "--parent", type=int, default=None, help="end when this process is no longer the parent"
    )
    parser.add_argument("--lane", choices=(*PLACES,), default=HEAVY)
    options = parser.parse_args(arguments)
    pipe, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    threading.Thread(target=_end_on_sigterm, args=(pipe, options.workspace), daemon=True).start()
    signal.signal(signal.SIGTERM, _raise_terminated)
    # Ctrl-C in the terminal of the application reaches it, not us: it then tells us to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.parent is not None:
        end_with(options.parent)
    try:
        with Store(options.workspace) as store:
            return serve_one(store, options.lane)
    except Terminated:
        _mark_own_job(options.workspace)
        return 0
    except QafError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def serve_one(store: Store, lane: str = HEAVY) -> int:
    """Wait for a queued job and execute it; outside the heavy lane only while one is queued."""
    pid = os.getpid()
    try:
        if lane == HEAVY:
            store.put_worker(pid, "starting")
            for module in _LOADED_AHEAD:
                importlib.import_module(module)
            store.put_worker(pid, "ready")
        while (job_id := store.claim_next(pid, lane)) is None:
            if lane != HEAVY and not store.count_queued(lane):
                return 0
            time.sleep(POLL_SECONDS)
        if lane == HEAVY:
            store.put_worker(pid, "running")
        threading.Thread(target=_end_in_time, args=(store, job_id), daemon=True).start()
        with contextlib.suppress(QafError, RunCancelled, JobFailed):  # recorded with the job
            execute_job(store, job_id, discarded_code=0)
        return 0
    finally:
        with contextlib.suppress(QafError):
            store.remove_worker(pid)


def _end_in_time(store: Store, job_id: str) -> None:
    """End this process when its job takes too long, or does not heed a stop; runs are given all the time."""
    job = store.job(job_id)
    if job is None or job.kind in RUN_KINDS:
        return
    limit, requested_at = KINDS[job.kind].limit_seconds, None
    began = time.monotonic()
    while True:
        time.sleep(PARENT_POLL_SECONDS)
        now = time.monotonic()
        with contextlib.suppress(QafError):
            if requested_at is None and store.cancel_requested(job_id):
                requested_at = now
            if requested_at is not None and now - requested_at > HEED_SECONDS:
                store.finish(job_id, RunStatus.CANCELLED)
                os._exit(0)
            if limit is not None and now - began > limit:
                store.finish(job_id, RunStatus.FAILED, error=QafError(TOO_LONG))
                os._exit(0)


def _mark_own_job(workspace: Path) -> None:
    """Say that this process's job was interrupted, through a connection no transaction was cut off in."""
    with contextlib.suppress(QafError), Store(workspace) as store:
        for job_id in store.running_of(os.getpid()):
            job = store.job(job_id)
            is_run = job is None or job.kind in RUN_KINDS
            store.finish(
                job_id, RunStatus.INTERRUPTED, error=QafError(_INTERRUPTED if is_run else JOB_INTERRUPTED)
            )


def _end_on_sigterm(pipe: int, workspace: Path) -> None:
    """End this process some time after SIGTERM, also where ``Terminated`` does not.

    It is raised only once native code returns, and Python drops what is raised in finalizers and callbacks of
    weak references, of which an import has thousands. The number of a signal comes through ``pipe`` at once.
    """
    while os.read(pipe, 1) != bytes([signal.SIGTERM]):
        pass
    time.sleep(HEED_SECONDS)
    _mark_own_job(workspace)
    os._exit(0)


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
