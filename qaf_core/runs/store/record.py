"""A job, and a run in particular, as the store remembers it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.pipeline.events import RunEvent, RunStatus
from qaf_core.runs.store.request import RunRequest


@dataclass(frozen=True, kw_only=True)
class StoredEvent:
    """An event with its place in the store's order."""

    seq: int
    event: RunEvent


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of any kind.

    Attributes:
        id: Sortable by time, safe in a URL.
        kind: One of ``KINDS``.
        status: How far it is, or how it ended.
        created_at, started_at, finished_at: Seconds since 1970, UTC; None if not yet.
        request: What was asked for, of its kind's class.
        result: What came of it, ready for JSON; files are named, not held. Empty until completed.
        error: One line, if it failed or was interrupted.
        stage: The last it told: ``stage``, ``message``, ``fraction``; empty before.
    """

    id: str
    kind: str
    status: RunStatus
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    request: Any
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    stage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status.is_final

    @property
    def elapsed_seconds(self) -> float:
        """Since it was asked for; of an ended job, how long that took."""
        return max(0.0, (self.finished_at or time.time()) - self.created_at)


@dataclass(frozen=True, kw_only=True)
class RunRecord(JobRecord):
    """Everything the screens show of one run: what they show of a job, and this.

    Attributes:
        schema_version: Of the store's tables when the record was read.
        plan: The plan as plain data.
        layers: A row per layer finished so far: name, structure, rank, bits, relative_error,
            float_relative_error, status, iterations, seconds, output_error.
        cost, baseline_cost: params, size_bytes, macs, bops, … of the compressed network and the original.
        baseline, compressed: metric, value, n, ci95 (fractions) of both; None if not evaluated.
        drop, drop_ci95: Baseline minus compressed and its 95 % interval, fractions.
        seconds: factorize, calibrate, evaluate, total.
        peak_memory_bytes: Largest resident size of the process that worked on it.
        environment: Versions, processor, threads.
        latencies: Measured rows, empty until measured.
        result: The whole JSON object of ``qaf compress --json``, empty until finished.
    """

    schema_version: int
    request: RunRequest
    plan: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    cost: Mapping[str, Any] | None = None
    baseline_cost: Mapping[str, Any] | None = None
    baseline: Mapping[str, Any] | None = None
    compressed: Mapping[str, Any] | None = None
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    latencies: tuple[Mapping[str, Any], ...] = ()

    @property
    def model(self) -> str:
        """Model id."""
        return self.request.model

    @property
    def method(self) -> str:
        """Method asked for."""
        return self.request.method
