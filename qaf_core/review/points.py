"""Stored runs as points of a trade-off: what the charts, the tables and the report read off a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """One run, or the original, on the trade-off charts.

    Attributes:
        metric: Short name of what was measured, such as ``top1``.
        value, low, high: The metric with its 95 % interval, as fractions.
    """

    run_id: str
    title: str
    method: str
    value: float
    low: float
    high: float
    size_bytes: float
    bops: float
    summary: str = ""
    metric: str = "top1"


def run_point(run: Mapping[str, Any], *, title: str, summary: str = "") -> RunPoint | None:
    """The point of a run; None where it has no accuracy or no cost (unfinished, failed).

    Args:
        run: A run as ``qaf show --json`` prints it.
        title: The name people see.
        summary: One line about the plan.
    """
    return _point(
        run.get("compressed"),
        run.get("cost"),
        run_id=str(run.get("run_id", "")),
        title=title,
        method=str(run.get("method", "")),
        summary=summary,
    )


def original_point(run: Mapping[str, Any], *, title: str) -> RunPoint | None:
    """The point of the network a run started from; None where it was not evaluated."""
    return _point(
        run.get("baseline"), run.get("baseline_cost"), run_id="", title=title, method="original", summary=""
    )


def _point(
    evaluation: Mapping[str, Any] | None,
    cost: Mapping[str, Any] | None,
    *,
    run_id: str,
    title: str,
    method: str,
    summary: str,
) -> RunPoint | None:
    if not evaluation or not cost or evaluation.get("value") is None:
        return None
    value = float(evaluation["value"])
    low, high = evaluation.get("ci95") or (value, value)
    return RunPoint(
        run_id=run_id,
        title=title,
        method=method,
        value=value,
        low=float(low),
        high=float(high),
        size_bytes=float(cost["size_bytes"]),
        bops=float(cost["bops"]),
        summary=summary,
        metric=str(evaluation.get("metric") or "top1"),
    )


@dataclass(frozen=True, kw_only=True)
class PlanDigest:
    """A plan in a few numbers, for a hover or a table cell."""

    structures: tuple[tuple[str, int], ...]
    bits: tuple[int, ...]
    ranks: tuple[int, int] | None
    activation_bits: int | None

    def text(self) -> str:
        """``cp 18, dense 2 · R 12–134 · W4 · A8``: nothing in it needs translating."""
        parts = [", ".join(f"{name} {count}" for name, count in self.structures)]
        if self.ranks is not None:
            low, high = self.ranks
            parts.append(f"R {low}" if low == high else f"R {low}–{high}")
        if self.bits:
            parts.append("W" + "/".join(str(b) for b in self.bits))
        if self.activation_bits is not None:
            parts.append(f"A{self.activation_bits}")
        return " · ".join(part for part in parts if part)


def digest_plan(plan: Mapping[str, Any]) -> PlanDigest:
    """Count a plan's structures and find the range of its ranks and bits."""
    layers: Sequence[Mapping[str, Any]] = plan.get("layers") or ()
    counts = Counter(str(layer.get("structure")) for layer in layers)
    factorized = [layer for layer in layers if layer.get("rank") is not None]
    ranks = [r for layer in factorized for r in _numbers(layer["rank"])]
    main = factorized or [layer for layer in layers if layer.get("structure") != "keep"]
    bits = sorted({b for layer in main for b in _numbers(layer.get("bits"))})
    return PlanDigest(
        structures=tuple(counts.most_common()),
        bits=tuple(bits),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        activation_bits=plan.get("activation_bits"),
    )


def _numbers(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(int(v) for v in value)
    return (int(str(value)),)
