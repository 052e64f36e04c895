"""Stored runs as the rows and series that tables and charts take; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.text import _
from qaf_core.pipeline.results import LayerRow
from qaf_core.review.charts import LayerErrors
from qaf_core.review.points import RunPoint, original_point, plan_text, run_point
from qaf_core.runs.store.record import RunRecord


def rank_text(rank: object) -> str:
    """A rank as people write it: ``134``, ``24 × 32``, or nothing."""
    if rank is None:
        return ""
    if isinstance(rank, (list, tuple)):
        return " × ".join(str(r) for r in rank)
    return str(rank)


def bits_text(bits: object) -> str:
    """Bits as people write them: ``4``, or ``4, 4, 8`` where each factor has its own."""
    if bits is None:
        return ""
    if isinstance(bits, (list, tuple)):
        return ", ".join(str(b) for b in bits) if len(set(bits)) > 1 else str(bits[0])
    return str(bits)


def class_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[dict[str, Any]]:
    """A metric by class, original and compressed in percent and the change in points."""
    return [
        {
            "name": name,
            "original": 100 * before[name] if name in before else None,
            "compressed": 100 * value,
            "change": 100 * (value - before[name]) if name in before else None,
        }
        for name, value in after.items()
    ]


def plan_summary(run: RunRecord) -> str:
    """A run's plan in one short line: of one that ended early how much of it was done, and that."""
    text = plan_text(run.plan_done if run.layers else run.plan)
    return f"{part_done(run)} · {text}" if run.is_partial else text


def part_done(run: RunRecord) -> str:
    """How many layers of its plan a run has compressed: ``11 of 20 layers``."""
    return _("{done} of {count} layers").format(done=len(run.layers), count=len(run.planned_layers))


def tradeoff_points(runs: Sequence[RunRecord], titles: Mapping[str, str], original: str) -> list[RunPoint]:
    """The points of the trade-off charts: every run with a result, and the original of each evaluation.

    Args:
        runs: Runs of one model and one data set.
        titles: The name of each run, by id.
        original: What the original is called.
    """
    points = [run_point(run, title=titles[run.id]) for run in runs]
    originals = {
        (point.value, point.size_bytes): point
        for run in runs
        if (point := original_point(run, title=original)) is not None
    }
    return [point for point in points if point is not None] + list(originals.values())


def layer_errors(run: RunRecord, title: str) -> LayerErrors:
    """The errors of a run's layers, in forward order; planned ones without a result stay empty."""
    names = (*run.planned_layers, *(row.name for row in run.layers))
    return errors_of(run.layers, tuple(dict.fromkeys(names)), title)


def errors_of(layers: Sequence[LayerRow], names: tuple[str, ...], title: str = "") -> LayerErrors:
    """The errors of the layers of these names; those without a result stay empty."""
    known = {row.name: row for row in layers}
    found = [known.get(name, LayerRow(name=name)) for name in names]
    return LayerErrors(
        title=title,
        names=names,
        float_errors=tuple(row.float_relative_error for row in found),
        quantized_errors=tuple(row.relative_error for row in found),
    )


def evaluation_data(run: RunRecord) -> str:
    """What a run was evaluated on, in words; only runs of the same have accuracies to compare."""
    return run.images.evaluation or run.request.data
