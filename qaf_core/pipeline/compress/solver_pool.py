"""Helper processes that solve small layers ahead of the main process, into the cache it looks in.

Small layers are bound by the calls of Python, not by arithmetic, so threads give nothing and processes do.
The main process takes layers from the front, the helpers from the back; nobody takes one that another has.
One connection to each helper carries its layers there and its events back in order, with a thread of the main
process at this end: a helper that dies shows as the end of its connection, and its layer goes back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Literal, NoReturn

import torch
from torch import Tensor

from qaf_core.children import safe_spawning
from qaf_core.factorization.options import SolveEvent
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask

EVENT_SECONDS = 0.04  # a helper tells of its iterations no more often: the main process has its own layer
GRACE_SECONDS = 2.0  # for a helper that was told to end and is in the middle of a long product
READY, SOLVED, FAILED = "ready", "solved", "failed"


@dataclass(frozen=True, kw_only=True, eq=False)
class SolveJob:
    """One layer to be solved.

    Attributes:
        name: The layer's.
        index: Its place among the layers to be solved.
        weight: What is solved.
        task: How.
        key: Of the result in the cache; empty where it is not known yet.
    """

    name: str
    index: int
    weight: Tensor
    task: SolveTask
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class News:
    """What a helper is about.

    Attributes:
        kind: ``started``; ``iteration``; ``solved``: the result is in the cache; ``lost``: it is not, and
            the layer is free again.
        job: The layer.
        event: Of an iteration.
    """

    kind: Literal["started", "iteration", "solved", "lost"]
    job: SolveJob
    event: SolveEvent | None = None


def spare_cores() -> int:
    """How many cores are left beside the one that a small layer is solved on, 0 or more.

    Whoever limits torch's threads (``OMP_NUM_THREADS``) or this process's cores limits helpers too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(torch.get_num_threads(), cores) - 1)


class SolverPool:
    """The layers still open, shared with helpers while the ``with`` block lasts; no helper outlives it.

    Only the main process's thread may call its methods.

    Args:
        jobs: All layers, in the order in which the main process takes them.
        shared: Names of those that helpers may take, with keys; they begin with the last.
        cache: Where helpers leave results; None without helpers.
        helpers: How many processes; 0 for none. One that cannot be started is done without.
    """

    def __init__(
        self, jobs: Sequence[SolveJob], *, shared: Collection[str], cache: SolveCache | None, helpers: int
    ) -> None:
        self._open = deque(jobs)
        self._shared = set(shared)
        self._cache = cache
        self._helpers = helpers
        self._lock = threading.Lock()
        self._news: SimpleQueue[News] = SimpleQueue()
        self._processes: list[SpawnProcess] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> SolverPool:
        # A daemon process may not have children.
        if self._cache is not None and not multiprocessing.current_process().daemon:
            with contextlib.suppress(OSError):
                for _ in range(self._helpers):
                    self._start(self._cache.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._shared.clear()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for thread in self._threads:
            thread.join()

    def take(self) -> SolveJob | None:
        """The first open layer, for the main process; None if none is open."""
        with self._lock:
            return self._open.popleft() if self._open else None

    def give_back(self, job: SolveJob) -> None:
        """Open a layer again, for the main process alone."""
        with self._lock:
            self._shared.discard(job.name)
            self._open.appendleft(job)

    def news(self, wait_seconds: float = 0.0) -> Iterator[News]:
        """What helpers have told since the last time, after waiting for it at most so long."""
        with contextlib.suppress(Empty):
            news = self._news.get(timeout=wait_seconds) if wait_seconds > 0 else self._news.get_nowait()
            while True:
                if news.kind == "lost":
                    self.give_back(news.job)
                yield news
                news = self._news.get_nowait()

    def _start(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=help_out, args=(theirs, folder), name="qaf-helper", daemon=True)
        try:
            with safe_spawning(), _interrupts_held():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # so that a helper's death ends the connection
        thread = threading.Thread(target=self._serve, args=(ours,), name="qaf-helper", daemon=True)
        self._processes.append(process)
        self._threads.append(thread)
        thread.start()

    def _take_last(self) -> SolveJob | None:
        with self._lock:
            last = next((job for job in reversed(self._open) if job.name in self._shared), None)
            if last is not None:
                self._open.remove(last)
            return last

    def _serve(self, connection: Connection) -> None:
        """Give one helper layer after layer and pass on what it tells, until none is left or it ends."""
        with connection, contextlib.suppress(EOFError, OSError):
            connection.recv()  # it is ready
            while (job := self._take_last()) is not None:
                self._news.put(News(kind="started", job=job))
                solved = False
                try:
                    # Plain pickle copies tensors; the connection's own would share their memory.
                    connection.send_bytes(pickle.dumps(job))
                    while isinstance(message := connection.recv(), SolveEvent):
                        self._news.put(News(kind="iteration", job=job, event=message))
                    solved = message == SOLVED
                finally:
                    self._news.put(News(kind="solved" if solved else "lost", job=job))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from a process begun meanwhile, for good: the terminal sends it to all, and what
    becomes of helpers is the main process's affair.
    """
    resource_tracker.ensure_running()  # it lifts the hold again, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Terminated(BaseException):
    """This helper was told to end."""


def help_out(connection: Connection, folder: Path) -> None:
    """What a helper process does: solve the layers that come, one by one, on one thread.

    It ends when told to (SIGTERM), and when the main process is gone.

    Args:
        connection: To the main process.
        folder: Of the cache.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(_Terminated, EOFError, OSError):
        signal.signal(signal.SIGTERM, _raise_terminated)
        torch.set_num_threads(1)
        connection.send(READY)
        while True:
            job: SolveJob = pickle.loads(connection.recv_bytes())
            connection.send(SOLVED if _solve(job, SolveCache(folder), connection) else FAILED)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself now: no traceback on the way out


def _solve(job: SolveJob, cache: SolveCache, connection: Connection) -> bool:
    """Solve one layer into the cache; whether that went well."""
    sent_at, pending = 0.0, None

    def report(event: SolveEvent) -> None:
        nonlocal sent_at, pending
        now, pending = time.monotonic(), event
        if now - sent_at >= EVENT_SECONDS:
            connection.send(event)
            sent_at, pending = now, None

    try:
        result = job.task.solve(job.weight, layer=job.name, on_event=report)
    except (OSError, EOFError):
        raise  # the main process does not listen any more
    except Exception:  # the main process comes upon it too, and tells it properly
        return False
    if pending is not None:
        connection.send(pending)
    cache.keep(job.key, result)
    return True


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
