"""Runs as points of a trade-off: what the charts read off the row of a run."""

from __future__ import annotations

from dataclasses import dataclass

from qaf_core.runs.listing import RunRow


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """One run, or the original, on the trade-off charts; what is not known is None.

    Attributes:
        metric: Short name of what was measured, such as ``top1``.
        value, low, high: The metric with its 95 % interval, as fractions.
        size_bytes, bops, deployed_bytes, latency_ms, energy_joules, memory_bytes: As of ``RunRow``.
        is_partial: Whether only a part of the run's plan was carried out.
        stands_out: Whether it passes the target; None where there is none.
        difference: To the run it is compared with, in words.
    """

    run_id: str = ""
    title: str
    method: str
    value: float
    low: float
    high: float
    size_bytes: float | None
    bops: float | None
    deployed_bytes: float | None = None
    latency_ms: float | None = None
    energy_joules: float | None = None
    memory_bytes: float | None = None
    summary: str = ""
    metric: str = "top1"
    is_partial: bool = False
    stands_out: bool | None = None
    difference: str = ""


def run_point(
    row: RunRow, *, title: str, stands_out: bool | None = None, difference: str = ""
) -> RunPoint | None:
    """The point of a run; None where it has no accuracy or no cost (unfinished, failed).

    Args:
        row: The run.
        title: The name people see.
        stands_out, difference: As of the point.
    """
    if row.value is None or row.low is None or row.high is None or not row.is_measured:
        return None
    return RunPoint(
        run_id=row.id, title=title, method=row.method, value=row.value, low=row.low, high=row.high,
        size_bytes=row.size_bytes, bops=row.bops, deployed_bytes=row.deployed_bytes,
        latency_ms=row.latency_ms, energy_joules=row.energy_joules, memory_bytes=row.memory_bytes,
        summary=row.plan, metric=row.metric or "", is_partial=row.is_partial, stands_out=stands_out,
        difference=difference,
    )  # fmt: skip


def original_point(row: RunRow, *, title: str) -> RunPoint | None:
    """The point of the network a run started from; None where it was not evaluated."""
    if row.before is None or row.original_bytes is None:
        return None
    value, low, high = row.before
    return RunPoint(
        title=title, method="original", value=value, low=low, high=high, size_bytes=row.original_bytes,
        bops=row.original_bops, deployed_bytes=row.files.get("original_fp32"), latency_ms=row.original_ms,
        energy_joules=row.original_joules, metric=row.metric or "",
    )  # fmt: skip
