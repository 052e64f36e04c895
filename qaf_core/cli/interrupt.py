"""A command's work in its turn, Ctrl-C as a request to stop, and what a command may end with."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from qaf_core.cli.text import warn
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.text.said import Said

if TYPE_CHECKING:
    from qaf_core.runs.store.request import JobRequest
    from qaf_core.runs.store.store import Store

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_CANCELLED = 130


@contextlib.contextmanager
def stop_on_interrupt(kept: str, report: Callable[[RunEvent], None]) -> Iterator[Progress]:
    """Turn the first Ctrl-C into a request to stop; a second one ends at once.

    Args:
        kept: What a stop keeps, for the message.
        report: Prints what happens.
    """
    stopping = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        warn("Stopping: {kept}. Press Ctrl-C again to end at once.", kept=Said(kept))

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield Progress(report, lambda: stopping)
    finally:
        signal.signal(signal.SIGINT, before)


def execute(store: Store, request: JobRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Execute a job here, in its turn in the workspace's queue; raises as ``execute_in_turn``."""
    from qaf_core.runs.worker.execute import execute_in_turn

    return execute_in_turn(store, request, progress, _report_waiting)


def _report_waiting() -> None:
    warn("Waiting until other work in this workspace has ended. Press Ctrl-C to leave.")
