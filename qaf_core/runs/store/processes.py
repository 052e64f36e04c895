"""Telling whether the process that works on a run still lives."""

from __future__ import annotations

import os
from pathlib import Path


def process_token(pid: int) -> str | None:
    """What tells this process from a later one that got the same number.

    Args:
        pid: Process number.

    Returns:
        Its start time in clock ticks where ``/proc`` tells it, ``"?"`` where a live process's start is
        unknown, None if there is no such process or only its remains.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "?" if not Path("/proc/self/stat").exists() and _answers(pid) else None
    # The command name, in parentheses, may hold blanks: count the fields after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def is_alive(pid: int | None, token: str | None) -> bool:
    """Whether process ``pid`` lives and is still the one that had ``token``."""
    if pid is None or token is None:
        return False
    now = process_token(pid)
    return now is not None and ("?" in (now, token) or now == token)


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
