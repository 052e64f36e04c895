"""Child processes of Python: they import nothing that lies where they start, and end with their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PARENT_POLL_SECONDS = 0.5
LAST_WORDS_SECONDS = 5.0
_HOME = Path(__file__).resolve().parent.parent


def child_environment() -> dict[str, str]:
    """The environment for a child: Python puts no folder before its own there, and finds this product."""
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if _HOME.name not in ("site-packages", "dist-packages"):
        paths.append(str(_HOME))  # a checkout that is not installed
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


@contextlib.contextmanager
def safe_spawning() -> Iterator[None]:
    """Processes that `multiprocessing` spawns meanwhile get ``child_environment`` too."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def end_with(parent: int) -> None:
    """From now on end this process, as SIGTERM does, once process ``parent`` is no longer its parent."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_WORDS_SECONDS)
    os._exit(1)
