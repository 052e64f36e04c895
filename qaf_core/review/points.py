"""Stored runs as points of a trade-off: what the charts, the tables and the report read off a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from qaf_core.network.plan.cost import Cost
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.results import Evaluation
from qaf_core.runs.store.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """One run, or the original, on the trade-off charts.

    Attributes:
        metric: Short name of what was measured, such as ``top1``.
        value, low, high: The metric with its 95 % interval, as fractions.
        is_partial: Whether only a part of the run's plan was carried out.
    """

    run_id: str = ""
    title: str
    method: str
    value: float
    low: float
    high: float
    size_bytes: float
    bops: float
    summary: str = ""
    metric: str = "top1"
    is_partial: bool = False


def run_point(run: RunRecord, *, title: str) -> RunPoint | None:
    """The point of a run; None where it has no accuracy or no cost (unfinished, failed).

    Args:
        run: The run.
        title: The name people see.
    """
    point = _point(run.compressed, run.cost, title, run.method)
    if point is None:
        return None
    return replace(
        point, run_id=run.id, summary=plan_text(run.plan_done), is_partial=run.is_partial,
        size_bytes=run.size_bytes or point.size_bytes,
    )  # fmt: skip


def original_point(run: RunRecord, *, title: str) -> RunPoint | None:
    """The point of the network a run started from; None where it was not evaluated."""
    return _point(run.baseline, run.baseline_cost, title, "original")


def _point(evaluation: Evaluation | None, cost: Cost | None, title: str, method: str) -> RunPoint | None:
    if evaluation is None or cost is None:
        return None
    low, high = evaluation.ci95
    return RunPoint(
        title=title, method=method, value=evaluation.value, low=low, high=high, size_bytes=cost.size_bytes,
        bops=cost.bops, metric=evaluation.metric,
    )  # fmt: skip


def plan_text(plan: Plan) -> str:
    """A plan in a few numbers, ``cp 18, dense 2 · R 12–134 · W4 · A8``: nothing needs translating."""
    if not plan.layers:
        return ""
    counts = Counter(row.structure for row in plan.layers).most_common()
    parts = [", ".join(f"{name} {count}" for name, count in counts)]
    factorized = [row for row in plan.layers if row.rank is not None]
    if ranks := [rank for row in factorized for rank in _numbers(row.rank)]:
        low, high = min(ranks), max(ranks)
        parts.append(f"R {low}" if low == high else f"R {low}–{high}")
    if bits := {b for row in factorized or plan.layers for b in _numbers(row.bits)}:
        parts.append("W" + "/".join(map(str, sorted(bits))))
    return " · ".join([*parts, f"A{plan.activation_bits}"])


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)
