"""One claimed job, from its request to what is stored of its end."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from qaf_core.errors import QafError, RunCancelled, WorkspaceError
from qaf_core.files import write_file
from qaf_core.pipeline.events import Progress, RunStatus
from qaf_core.runs.store.kinds import HEAVY, KINDS, RUN_KINDS, kind_of
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.recorder import record_progress
from qaf_core.runs.store.request import JobRequest
from qaf_core.runs.store.store import Store
from qaf_core.text.said import Said, say

POLL_SECONDS = 0.1
STOPPED_RUN = "Stopped before the layers done so far could be evaluated."
DISCARD_POLL_SECONDS = 0.5
EXIT_DISCARDED = 130  # as of other commands that are stopped


class JobFailed(Exception):
    """A fault of ours, not of the input; says in one line what happened and where the traceback lies."""

    def __init__(self, fault: QafError) -> None:
        self.fault = fault
        super().__init__(str(fault))


def execute_job(
    store: Store, job_id: str, progress: Progress | None = None, *, discarded_code: int = EXIT_DISCARDED
) -> dict[str, Any]:
    """Execute a claimed job and store how it ended; a run that is discarded meanwhile ends this process.

    Args:
        store: The run store.
        job_id: A job this process has claimed.
        progress: Told of every event kept; another reason to stop than a request in the store.
        discarded_code: What this process then ends with.

    Returns:
        The job's result: of a run the object that ``qaf compress --json`` prints, also where it was stopped.

    Raises:
        QafError: If the input cannot be used; the job is ``failed``.
        RunCancelled: If a job that keeps nothing was stopped; it is ``cancelled``.
        JobFailed: If anything else goes wrong; the job is ``failed``, the traceback in its folder.
    """
    with _heeding_discard(store, job_id, discarded_code):
        return _execute(store, job_id, record_progress(store, job_id, progress))


def _execute(store: Store, job_id: str, progress: Progress) -> dict[str, Any]:
    job: JobRecord | None = None
    try:
        job = store.job(job_id)
        assert job is not None
        result = _carry_out(store, job, progress)
    except RunCancelled:
        store.finish(job_id, RunStatus.CANCELLED)
        raise
    except QafError as error:
        store.finish(job_id, RunStatus.FAILED, error=error)
        raise
    except Exception as error:
        fault = _keep_traceback(store, job_id, error)
        store.finish(job_id, RunStatus.FAILED, error=fault)
        raise JobFailed(fault) from error
    except KeyboardInterrupt:
        store.finish(
            job_id,
            RunStatus.CANCELLED,
            error=QafError(STOPPED_RUN) if job is not None and job.kind in RUN_KINDS else None,
        )
        raise
    store.finish(job_id, RunStatus(result.get("status", RunStatus.COMPLETED)), result)
    return result


def _carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    module, _, function = KINDS[job.kind].work.partition(":")
    work = getattr(importlib.import_module(f"qaf_core.runs.{module}"), function)
    result: dict[str, Any] = work(store, job, progress)
    return result


def execute_in_turn(
    store: Store,
    request: JobRequest,
    progress: Progress | None = None,
    on_waiting: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Execute a job in this process, once it is its turn in the queue.

    Light work whose result is a file elsewhere is done at once where the store cannot be written to.

    Args:
        store: The run store.
        request: What is to be done.
        progress: As of `execute_job`; asked while waiting, too.
        on_waiting: Called if others must end first.

    Returns:
        The job's result, as `execute_job`.

    Raises:
        RunCancelled: Also if it was stopped while it waited.
        QafError, JobFailed: As `execute_job`.
    """
    pid, waits, kind = os.getpid(), False, kind_of(request)
    try:
        job_id = store.ask_for_own(request, pid)
    except WorkspaceError:
        if kind.lane == HEAVY:
            raise
        now = time.time()
        job = JobRecord(
            id="", kind=kind.name, status=RunStatus.RUNNING, created_at=now, started_at=now, request=request
        )
        return _carry_out(store, job, progress or Progress())
    try:
        while store.claim_next(pid, own=job_id) is None:
            record = store.job(job_id)
            stopped = progress is not None and progress.stopped()
            if stopped or record is None or record.status != RunStatus.QUEUED:
                raise RunCancelled
            if not waits:
                waits = True
                on_waiting()
            time.sleep(POLL_SECONDS)
    except BaseException:
        store.finish(job_id, RunStatus.CANCELLED)
        raise
    return execute_job(store, job_id, progress)


@contextlib.contextmanager
def _heeding_discard(store: Store, job_id: str, code: int) -> Iterator[None]:
    """Meanwhile end this process and its helpers when its run is discarded: no step is waited for."""
    ended = threading.Event()
    threading.Thread(target=_end_when_discarded, args=(store, job_id, ended, code), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _end_when_discarded(store: Store, job_id: str, ended: threading.Event, code: int) -> None:
    while not ended.wait(DISCARD_POLL_SECONDS):
        with contextlib.suppress(QafError):
            if store.discarded(job_id):
                store.discard(job_id)
                shutil.rmtree(store.run_folder(job_id), ignore_errors=True)
                for helper in multiprocessing.active_children():
                    helper.kill()
                os._exit(code)


def _keep_traceback(store: Store, job_id: str, error: Exception) -> QafError:
    path, kind = store.run_folder(job_id) / "traceback.txt", type(error).__name__
    summary: str | Said = say("no message") if not str(error).split() else " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(summary):
        summary = say("memory ran out; choose a smaller model or fewer images, or close other programs")
    try:
        write_file(path, "".join(traceback.format_exception(error)).encode())
    except QafError:
        return QafError(say("Internal error: {kind}: {summary}", kind=kind, summary=summary))
    sentence = say(
        "Internal error: {kind}: {summary}. Details are in {path}", kind=kind, summary=summary, path=str(path)
    )
    return QafError(sentence)
