"""The first sections of a report: its one chart, criteria and verdict, and the runs side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.speed_report import SpeedReport
from qaf_core.review.charts import method_label
from qaf_core.review.decision.criteria import describe_changes
from qaf_core.review.decision.evidence import SPEED, Evidence
from qaf_core.review.decision.verdict import CriterionVerdict
from qaf_core.review.labels import fewer_text, smaller_text
from qaf_core.review.metrics import metric_label
from qaf_core.review.report.blocks import Chart, Section, Table
from qaf_core.review.report.figures import criteria_figure
from qaf_core.review.report.review import Review
from qaf_core.text.said import Translate
from qaf_core.text.units import (
    MISSING,
    decimal_text,
    milliseconds_text,
    percent_text,
    points_text,
    size_text,
    with_prefix,
)

_ORIGINAL, _COMPRESSED = ModelFile.ORIGINAL, ModelFile.FAST


def status_labels(_: Translate) -> dict[str, str]:
    """The words for a status."""
    return {"pass": _("passed"), "fail": _("failed"), "open": _("not shown")}


def points(value: float | None) -> str:
    """A difference of fractions in points, with two digits and its sign."""
    return MISSING if value is None else points_text(value, 2)


def criteria_section(review: Review, _: Translate) -> Section:
    """Every criterion of every run, and what was changed in the criteria."""
    labels, blocks = status_labels(_), []
    for run in review.runs:
        rows = review.recommendation.verdicts[run.run_id].rows
        blocks.append(
            Table(
                key=f"criteria-{run.run_id}",
                title=run.name,
                header=[
                    _("Criterion"),
                    _("Limit"),
                    _("Measured"),
                    _("Interval"),
                    _("n"),
                    _("Verdict"),
                    _("Source, owner"),
                ],
                rows=[_criterion_cells(row, labels, _) for row in rows],
                marks=[row.status for row in rows],
            )
        )
    paragraphs = [reason.text(_) for reason in review.verdict.reasons]
    return Section(
        key="criteria",
        title=_("Criteria and verdict"),
        paragraphs=paragraphs,
        blocks=blocks if review.criteria else (),
        listed=_criteria_history(review, _),
    )


def _criterion_cells(row: CriterionVerdict, labels: Mapping[str, str], _: Translate) -> list[str]:
    criterion = row.criterion
    measured = row.value is not None
    interval = row.low is not None and row.high is not None and row.low != row.high
    sign = "≥" if criterion.at_least else "≤"
    status = labels[row.status]
    if row.more is not None:
        status += " " + _("(about {more} more)").format(more=f"{row.more:,}")
    return [
        criterion.title().text(_),
        f"{sign} {criterion.text(criterion.limit).text(_)}",
        criterion.text(row.value or 0.0).text(_) if measured else MISSING,
        _criterion_interval(row, _) if interval else MISSING,
        f"{row.n:,}" if row.n else MISSING,
        status,
        ", ".join(part for part in (criterion.source, criterion.owner) if part) or MISSING,
    ]


def _criterion_interval(row: CriterionVerdict, _: Translate) -> str:
    """Both ends; of shares the bare numbers, since the unit stands beside them."""

    def end_text(end: float) -> str:
        if row.criterion.unit == "fraction":
            return decimal_text(100 * end, 2)
        return row.criterion.text(end).text(_)

    low = row.low or 0.0
    return between(
        end_text(low if row.criterion.unit == "fraction" else max(0.0, low)), end_text(row.high or 0.0), _
    )


def _criteria_history(review: Review, _: Translate) -> list[str]:
    """When the criteria were set, and whether that was before the result was known."""
    lines = []
    finished = review.runs[0].record.finished_at or float("inf")
    for place, row in enumerate(review.criteria_sets):
        when = date_text(row.set_at)
        late = row.set_at > finished
        if place == 0:
            text = (
                _("Criteria set on {date}, after the result was known.")
                if late
                else _("Criteria set on {date}, before the result was known.")
            )
            lines.append(text.format(date=when))
            continue
        what = "; ".join(change.text(_) for change in describe_changes(review.criteria_sets[place - 1], row))
        if not what:  # only their order
            continue
        text = (
            _("Changed on {date}, after the result was known: {what}.")
            if late
            else _("Changed on {date}, before the result was known: {what}.")
        )
        lines.append(text.format(date=when, what=what))
    return lines


def date_text(seconds: float | None) -> str:
    """A time as ``2026-11-27 16:28 UTC``, which both languages read."""
    return MISSING if seconds is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def side_by_side(review: Review, _: Translate) -> Table:
    """The original and all runs in columns, with the verdict on each."""
    labels, verdicts = status_labels(_), review.recommendation.verdicts
    verdict = [_("Verdict"), "", *(labels[verdicts[run.run_id].status] for run in review.runs)]
    return Table(
        key="runs",
        title=_("Side by side"),
        header=["", _("Original"), *(run.name for run in review.runs)],
        rows=[verdict, *run_rows(review.runs, _)],
        numeric=1,
    )


def run_rows(runs: Sequence[Evidence], _: Translate) -> list[list[str]]:
    """What runs came to: a title, the original's cell, and a cell for each run."""
    before, cost = runs[0].before, runs[0].costs[0]
    records = [run.record for run in runs]
    shares = [run.after.agreement for run in runs]
    return [
        [_("Method"), "", *(method_label(record.method, _) for record in records)],
        [
            metric_label(before.metric, _),
            percent_text(before.value),
            *(percent_text(run.after.value) for run in runs),
        ],
        [
            _("Change (95 %), points"),
            "",
            *(change_text(record.drop, record.drop_ci95, _) for record in records),
        ],
        [
            _("Same answer as the original"),
            "",
            *(MISSING if share is None else percent_text(share) for share in shares),
        ],
        [_("File to deploy"), size_text(cost.size_bytes), *(size_text(run.size_bytes) for run in runs)],
        [
            _("Bit-operations per image"),
            with_prefix(cost.bops, "BOPs"),
            *(with_prefix(run.costs[1].bops, "BOPs") for run in runs),
        ],
        _times_row(runs, _),
    ]


def between(low: str, high: str, _: Translate) -> str:
    """Both ends of an interval."""
    return _("{low} to {high}").format(low=low, high=high)


def rise_text(value: float | None, interval: tuple[float, float] | None, _: Translate) -> str:
    """A difference in points with its interval."""
    if value is None or interval is None:
        return MISSING
    return f"{points(value)} ({between(points(interval[0]), points(interval[1]), _)})"


def change_text(drop: float | None, interval: tuple[float, float] | None, _: Translate) -> str:
    """A loss as the change it is, in points with its interval: minus is worse."""
    if drop is None or interval is None:
        return MISSING
    return rise_text(-drop, (-interval[1], -interval[0]), _)


def _times_row(runs: Sequence[Evidence], _: Translate) -> list[str]:
    """Times of the one machine on which most runs were timed: those of others say nothing beside them."""
    timed = [{_machine(row): row.latencies for row in run.timings} for run in runs]
    machines = [machine for row in timed for machine, times in row.items() if _COMPRESSED in times]
    if not machines:
        return [_("Time of one inference"), MISSING, *(MISSING for _run in runs)]
    machine = max(machines, key=machines.count)

    def time_of(row: Mapping[Any, Any], model: str) -> str:
        if model in row.get(machine, {}):
            return milliseconds_text(row[machine][model].median_ms)
        return _("on another machine") if any(model in times for times in row.values()) else MISSING

    original = next((row for row in timed if _ORIGINAL in row.get(machine, {})), {})
    where = _("Time of one inference: {processor}, {threads} threads, {batch} at once")
    title = where.format(processor=machine[0], threads=machine[1], batch=machine[2])
    return [title, time_of(original, _ORIGINAL), *(time_of(row, _COMPRESSED) for row in timed)]


def _machine(timing: SpeedReport) -> tuple[str, int, int]:
    return timing.machine.processor, timing.threads, timing.batch


def first_chart(review: Review, _: Translate) -> Chart | None:
    """The one chart of the first page."""
    rows = [row for row in review.verdict.rows if row.value is not None]
    if not rows:
        return None
    return Chart(key="decision", title=_("How much of each limit is used"), figure=criteria_figure(rows, _))


def banner(review: Review, _: Translate) -> str:
    """The verdict in a line."""
    labels = {
        "pass": _("Recommended: {name}"),
        "fail": _("Not recommended: {name} fails"),
        "open": _("Not shown yet: {name}"),
    }
    return labels[review.verdict.status].format(name=review.chosen.name)


def three_numbers(review: Review, _: Translate) -> list[dict[str, str]]:
    """What is lost, what is gained in bytes, what is gained in time (in operations where that is unknown)."""
    record, run = review.chosen.record, review.chosen
    before, after, (cost, less) = run.before, run.after, run.costs
    numbers = [
        {
            "title": metric_label(after.metric, _),
            "value": f"{percent_text(before.value)} → {percent_text(after.value)}",
            "note": _("{change} points on {n} images").format(
                change=change_text(record.drop, record.drop_ci95, _), n=f"{after.n:,}"
            ),
        },
        {
            "title": _("File to deploy"),
            "value": smaller_text(cost.size_bytes, run.size_bytes, _),
            "note": f"{size_text(cost.size_bytes)} → {size_text(run.size_bytes)}",
        },
    ]
    for timing in run.timings:
        rows = timing.latencies
        if _ORIGINAL in rows and _COMPRESSED in rows:
            first, last = rows[_ORIGINAL].median_ms, rows[_COMPRESSED].median_ms
            numbers.append(
                {
                    "title": _("Time of one inference"),
                    "value": f"{milliseconds_text(first)} → {milliseconds_text(last)}",
                    "note": _("original in 32 bits; {processor}").format(processor=timing.machine.processor),
                }
            )
            return numbers
    numbers.append(
        {
            "title": _("Bit-operations per image"),
            "value": fewer_text(cost.bops, less.bops, _),
            "note": f"{with_prefix(cost.bops, 'BOPs')} → {with_prefix(less.bops, 'BOPs')}; "
            + (
                _("the measurement of time cannot be read")
                if SPEED in run.unreadable
                else _("time was not measured")
            ),
        }
    )
    return numbers
