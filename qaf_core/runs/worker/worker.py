"""The process that executes one queued run: ``python -m qaf_core.runs.worker.worker --workspace DIR``.

It loads torch first and says it is ready, so that a run starts the moment it is queued; and it ends after
that run, so that the peak memory it reports is the run's own.
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

from qaf_core.errors import QafError
from qaf_core.runs.store.record import INTERRUPTED
from qaf_core.runs.store.store import Store

POLL_SECONDS = 0.05
PARENT_POLL_SECONDS = 0.5
LAST_WORDS_SECONDS = 5.0
_LOADED_AHEAD = ("torch", "torchvision", "qaf_core.runs.jobs.compress")
_INTERRUPTED = "The application ended before this run was done; finished layers are kept."


class Terminated(BaseException):
    """This process was told to end."""


def main(arguments: list[str] | None = None) -> int:
    """Serve one run; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m qaf_core.runs.worker.worker", description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument(
        "--parent", type=int, default=None, help="end when this process is no longer the parent"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _raise_terminated)
    # Ctrl-C in the terminal of the application reaches it, not us: it then tells us to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.parent is not None:
        threading.Thread(target=_end_with_parent, args=(options.parent,), daemon=True).start()
    try:
        with Store(options.workspace) as store:
            return serve_one(store)
    except Terminated:
        _mark_own_run(options.workspace)
        return 0
    except QafError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def serve_one(store: Store) -> int:
    """Load everything, wait for a queued run, execute it."""
    pid = os.getpid()
    store.put_worker(pid, "starting")
    try:
        for module in _LOADED_AHEAD:
            importlib.import_module(module)
        from qaf_core.runs.jobs.compress import RunFailed, execute_run

        store.put_worker(pid, "ready")
        while (run_id := store.claim_next(pid)) is None:
            time.sleep(POLL_SECONDS)
        store.put_worker(pid, "running")
        with contextlib.suppress(QafError, RunFailed):  # recorded with the run
            execute_run(store, run_id)
        return 0
    finally:
        with contextlib.suppress(QafError):
            store.remove_worker(pid)


def _mark_own_run(workspace: Path) -> None:
    """Say that this process's run was interrupted, through a connection no transaction was cut off in."""
    with contextlib.suppress(QafError), Store(workspace) as store:
        for record in store.list_runs():
            if record.status == "running" and store.worker_of(record.id) == os.getpid():
                store.finish(record.id, INTERRUPTED, error=_INTERRUPTED)


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_WORDS_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
