"""What the entry of a run must look like for screens, commands and reports to read it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qaf_core.records import from_plain
from qaf_core.runs.store.record import RunRecord

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # it names a folder, and stands in addresses


@dataclass(frozen=True, kw_only=True)
class _File:
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What is read without a record of its own; the rest reads as not known where it is of another form."""

    plan: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None
    baseline_cost: Mapping[str, Any] | None = None
    baseline: Mapping[str, Any] | None = None
    compressed: Mapping[str, Any] | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    seconds: Mapping[str, float | None] | None = None
    peak_memory_bytes: int | None = None
    environment: Mapping[str, Any] | None = None
    latencies: tuple[Mapping[str, Any], ...] | None = None
    file: _File | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    id: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    plan: Mapping[str, Any]
    result: _Result


def check_run(run: RunRecord) -> None:
    """Check what was stored of a run.

    Raises:
        ValueError, TypeError: If something is missing, of another kind, or no number that can be.
    """
    from_plain(_Entry, {**vars(run), "plan": run.request.plan})
    if not _ID.fullmatch(run.id):
        raise ValueError("its id is none")
    for key in ("cost", "baseline_cost"):
        part = run.result.get(key) or {}
        values = [part[name] for name in ("size_bytes", "bops") if name in part]
        if not all(_is_number(value) and value > 0 for value in values):
            raise ValueError(f"{key} holds what is no number above 0")
    for evaluation in filter(None, (run.baseline, run.compressed)):
        if not all(map(_is_number, (evaluation.value, *evaluation.ci95))):
            raise ValueError("a measured value is no number")
    len(run.layers)  # reads them


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
