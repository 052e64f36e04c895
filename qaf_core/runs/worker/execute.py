"""One claimed job, from its request to what is stored of its end."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from qaf_core.errors import QafError, RunCancelled
from qaf_core.files import write_file
from qaf_core.pipeline.events import Progress, RunStatus
from qaf_core.runs.store.kinds import KINDS
from qaf_core.runs.store.recorder import record_progress
from qaf_core.runs.store.store import Store


class JobFailed(Exception):
    """A fault of ours, not of the input; says in one line what happened and where the traceback lies."""


def execute_job(store: Store, job_id: str, progress: Progress | None = None) -> dict[str, Any]:
    """Execute a claimed job and store how it ended.

    Args:
        store: The run store.
        job_id: A job this process has claimed.
        progress: Told of every event kept; another reason to stop than a request in the store.

    Returns:
        The job's result: of a run the object that ``qaf compress --json`` prints, also where it was stopped.

    Raises:
        QafError: If the input cannot be used; the job is ``failed``.
        RunCancelled: If a job that keeps nothing was stopped; it is ``cancelled``.
        JobFailed: If anything else goes wrong; the job is ``failed``, the traceback in its folder.
    """
    progress = record_progress(store, job_id, progress)
    try:
        job = store.job(job_id)
        assert job is not None
        module, _, function = KINDS[job.kind].work.partition(":")
        work = getattr(importlib.import_module(f"qaf_core.runs.{module}"), function)
        result: dict[str, Any] = work(store, job, progress)
    except RunCancelled:
        store.finish(job_id, RunStatus.CANCELLED)
        raise
    except QafError as error:
        store.finish(job_id, RunStatus.FAILED, error=str(error))
        raise
    except Exception as error:
        message = _keep_traceback(store, job_id, error)
        store.finish(job_id, RunStatus.FAILED, error=message)
        raise JobFailed(message) from error
    except KeyboardInterrupt:
        store.finish(
            job_id, RunStatus.CANCELLED, error="Stopped before the layers done so far could be evaluated."
        )
        raise
    store.finish(job_id, RunStatus(result.get("status", RunStatus.COMPLETED)), result)
    return result


def _keep_traceback(store: Store, job_id: str, error: Exception) -> str:
    path = store.run_folder(job_id) / "traceback.txt"
    summary = " ".join(str(error).split())[:200] or "no message"
    if isinstance(error, MemoryError) or "can't allocate memory" in summary:
        summary = "memory ran out; choose a smaller model or fewer images, or close other programs"
    try:
        write_file(path, "".join(traceback.format_exception(error)).encode())
    except QafError:
        return f"Internal error: {type(error).__name__}: {summary}."
    return f"Internal error: {type(error).__name__}: {summary}. Details are in {path}."
