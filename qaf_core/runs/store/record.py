"""A job, and a run in particular, as the store remembers it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from qaf_core.errors import PlanError, QafError, reread
from qaf_core.network.plan.cost import Cost
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.network.plan.rules import plan_done
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.check.plausibility import Plausibility
from qaf_core.pipeline.events import RunEvent, RunStatus
from qaf_core.pipeline.results import Evaluation, ImagesUsed, LayerRow
from qaf_core.records import from_plain
from qaf_core.runs.store.request import RunRequest

Part = TypeVar("Part")


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
        fault: The parts of the error, where they were kept.
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
    fault: Mapping[str, Any] = field(default_factory=dict)
    stage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status.is_final

    @property
    def failure(self) -> QafError | None:
        """The error as it can be told in any language."""
        return None if self.error is None else reread(self.fault, self.error)

    @property
    def elapsed_seconds(self) -> float:
        """Since it was asked for; of an ended job, how long that took."""
        return max(0.0, (self.finished_at or time.time()) - self.created_at)


@dataclass(frozen=True, kw_only=True)
class RunRecord(JobRecord):
    """Everything the screens show of one run; what an older version kept in another form reads as not known.

    Attributes:
        layer_rows: A row per layer finished so far, as it is stored.
        result: The whole JSON object of ``qaf compress --json``, empty until finished.
        damaged: Whether its entry in the store cannot be read.
    """

    request: RunRequest
    layer_rows: tuple[Mapping[str, Any], ...] = ()
    damaged: bool = False

    @property
    def model(self) -> str:
        """Model id."""
        return self.request.model

    @property
    def title(self) -> str:
        """The name people see: the one they gave, else model and time."""
        when = self.id
        return self.request.name or f"{self.model} · {when[4:6]}-{when[6:8]} {when[9:11]}:{when[11:13]}"

    @property
    def method(self) -> str:
        """Method asked for."""
        return self.request.method

    @property
    def is_imported(self) -> bool:
        """Whether it came from another workspace, with what is kept of it there."""
        return self.result.get("imported") is True

    @property
    def plan_row(self) -> Mapping[str, Any]:
        """The plan as plain data."""
        return self.result.get("plan") or self.request.plan

    @cached_property
    def plan(self) -> Plan:
        """The plan; one without layers where it cannot be read."""
        try:
            return Plan.from_dict(dict(self.plan_row))
        except PlanError:
            return Plan(model=self.model, layers=())

    @cached_property
    def layers(self) -> tuple[LayerRow, ...]:
        """The layers finished so far."""
        return tuple(from_plain(LayerRow, row) for row in self.layer_rows)

    @cached_property
    def cost(self) -> Cost | None:
        """Of the compressed network."""
        return self._part("cost", Cost)

    @cached_property
    def baseline_cost(self) -> Cost | None:
        """Of the original."""
        return self._part("baseline_cost", Cost)

    @property
    def size_bytes(self) -> int | None:
        """Of the packed file; as predicted where there is none, which differs by less than a percent."""
        predicted = None if self.cost is None else self.cost.size_bytes
        return (self.result.get("file") or {}).get("size_bytes", predicted)

    @cached_property
    def compressed(self) -> Evaluation | None:
        """The compressed network, measured; None if it was not."""
        return self._part("compressed", Evaluation)

    @cached_property
    def baseline(self) -> Evaluation | None:
        """The original, measured; None if it was not."""
        return self._part("baseline", Evaluation)

    @cached_property
    def checks(self) -> Plausibility | None:
        """What the check of the original found; None where there was none."""
        return self._part("checks", Plausibility)

    @cached_property
    def images(self) -> ImagesUsed:
        """The images it was calibrated and measured with."""
        return self._part("data", ImagesUsed) or ImagesUsed()

    @property
    def drop(self) -> float | None:
        """Baseline minus compressed, a fraction."""
        return self.result.get("drop")

    @property
    def drop_ci95(self) -> tuple[float, float] | None:
        """The 95 % interval of the drop."""
        interval = self.result.get("drop_ci95")
        return None if interval is None else (interval[0], interval[1])

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage: factorize, calibrate, evaluate, total."""
        return self.result.get("seconds") or {}

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest resident size of the process that worked on it."""
        return self.result.get("peak_memory_bytes")

    @property
    def environment(self) -> Mapping[str, Any]:
        """Versions, processor, threads."""
        return self.result.get("environment") or {}

    @property
    def latencies(self) -> tuple[Mapping[str, Any], ...]:
        """Measured rows, empty until measured."""
        return tuple(self.result.get("latencies") or ())

    @property
    def planned_layers(self) -> tuple[str, ...]:
        """The layers the plan changes, in forward order."""
        return tuple(row.name for row in self.plan.layers if row.structure != KEEP)

    @property
    def is_partial(self) -> bool:
        """Whether it has ended with layers of its plan as they were: stopped, cut off, or left out."""
        return self.is_final and len(self.layer_rows) < len(self.planned_layers)

    @property
    def plan_done(self) -> Plan:
        """The plan as far as it was carried out; the whole plan of a run that has not ended."""
        return plan_done(self.plan, [row.name for row in self.layers]) if self.is_partial else self.plan

    def _part(self, key: str, kind: type[Part]) -> Part | None:
        value = self.result.get(key)
        try:
            return from_plain(kind, value) if value else None
        except (TypeError, ValueError):
            return None
