"""Ctrl-C as a request to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from qaf_core.pipeline.events import Progress, RunEvent


@contextlib.contextmanager
def stop_on_interrupt(kept: str, tell: Callable[[RunEvent], None]) -> Iterator[Progress]:
    """Turn the first Ctrl-C into a request to stop; a second one ends at once.

    Args:
        kept: What a stop keeps, for the message.
        tell: Prints what happens.
    """
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print(f"Stopping: {kept}. Press Ctrl-C again to end at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield Progress(tell, lambda: asked)
    finally:
        signal.signal(signal.SIGINT, before)
