"""Stored runs as the rows and series that tables and charts take; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.text import _
from dashboard.widgets import columns
from qaf_core.pipeline.results import LayerRow
from qaf_core.review.charts import LayerErrors
from qaf_core.review.metrics import metric_label
from qaf_core.runs.listing import RunRow
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.units import percent_text, points_text


def class_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[dict[str, Any]]:
    """A metric by class, original and compressed in percent and the change in points."""
    return [
        {
            "name": name,
            "original": 100 * before[name] if name in before else None,
            "compressed": 100 * value,
            "change": columns.points(value - before[name] if name in before else None),
        }
        for name, value in after.items()
    ]


def plan_summary(row: RunRow) -> str:
    """A run's plan in one short line: of one that ended early how much of it was done, and that."""
    return f"{part_done(row)} · {row.plan}" if row.is_partial else row.plan


def part_done(row: RunRow) -> str:
    """How many layers of its plan a run has compressed: ``11 of 20 layers``."""
    return _("{done} of {count} layers").format(done=row.done, count=row.planned)


def layer_errors(run: RunRecord, title: str) -> LayerErrors:
    """The errors of a run's layers, in forward order; planned ones without a result stay empty."""
    names = (*run.planned_layers, *(row.name for row in run.layers))
    return errors_of(run.layers, tuple(dict.fromkeys(names)), title)


def errors_sentence(run: RunRecord) -> str:
    """What errors of layers come to in answers; empty before anything is measured."""
    after = run.compressed
    if after is None or run.drop is None:
        return ""
    values = {"metric": metric_label(after.metric, _), "points": points_text(-run.drop)}
    if after.agreement is None:
        text = _("These are errors of stored numbers, not of answers. {metric}: {points} points.")
        return text.format(**values)
    return _(
        "These are errors of stored numbers, not of answers: {share} of the answers are as before. "
        "{metric}: {points} points."
    ).format(share=percent_text(after.agreement), **values)


def errors_of(layers: Sequence[LayerRow], names: tuple[str, ...], title: str = "") -> LayerErrors:
    """The errors of the layers of these names; those without a result stay empty."""
    known = {row.name: row for row in layers}
    rows = [known.get(name, LayerRow(name=name)) for name in names]
    return LayerErrors(
        title=title,
        names=names,
        float_errors=tuple(row.float_relative_error for row in rows),
        quantized_errors=tuple(row.relative_error for row in rows),
    )
