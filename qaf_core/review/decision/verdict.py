"""Pass, fail, or not shown: what measured intervals say of criteria, and which of several runs to take.

A criterion is passed when the whole interval of its number keeps the limit, failed when the whole interval
breaks it, and open in between: then it is said how many images more would settle it. All intervals of a
decision hold together with 95 %: each has a risk of 5 % divided by the number of criteria on images and of
runs compared (Bonferroni). So no more than one in forty decisions calls anything passed that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qaf_core.review.decision.criteria import ON_IMAGES, Criterion
from qaf_core.review.decision.evidence import Evidence
from qaf_core.review.decision.measured import Exact, Measured, more_needed
from qaf_core.review.decision.numbers import measure
from qaf_core.text.said import Said, say

Status = Literal["pass", "fail", "open"]
PASS: Status = "pass"
FAIL: Status = "fail"
OPEN: Status = "open"
RISK = 0.05


@dataclass(frozen=True, kw_only=True)
class CriterionVerdict:
    """What is said of one criterion.

    Attributes:
        status: ``pass``, ``fail`` or ``open``.
        value, low, high: The number and its interval in the criterion's unit; None if it was not measured.
        n: Images or rounds it rests on.
        more: Images (of a latency measurements) more that would settle an open verdict with 80 %; None if
            unknown.
        reason: In words.
    """

    criterion: Criterion
    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    more: int | None = None
    reason: Said

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, the reason in English."""
        numbers = {key: getattr(self, key) for key in ("status", "value", "low", "high", "n", "more")}
        return {**self.criterion.to_dict(), **numbers, "reason": self.reason.text()}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of one run.

    Attributes:
        status: ``fail`` if any criterion failed, ``pass`` if all passed, else ``open``.
        rows: In the order of the criteria.
        risk: Of each interval, both sides together.
        reasons: In words, what decides first.
    """

    run_id: str
    status: Status
    rows: tuple[CriterionVerdict, ...]
    risk: float
    reasons: tuple[Said, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, reasons in English."""
        return {
            "run_id": self.run_id, "status": self.status, "risk": self.risk,
            "criteria": [row.to_dict() for row in self.rows],
            "reasons": [reason.text() for reason in self.reasons],
        }  # fmt: skip


def judge(criteria: Sequence[Criterion], evidence: Evidence, *, runs: int = 1) -> Verdict:
    """The verdict on one run.

    Args:
        criteria: What it must hold.
        evidence: What was measured.
        runs: How many runs are compared in the same decision; the intervals widen with it.
    """
    tests = runs * sum(criterion.kind in ON_IMAGES for criterion in criteria)
    risk = RISK / max(1, tests)
    rows = tuple(_judge_one(criterion, evidence, risk) for criterion in criteria)
    statuses = {row.status for row in rows}
    status = FAIL if FAIL in statuses else OPEN if OPEN in statuses or not rows else PASS
    if not rows:
        reasons: tuple[Said, ...] = (say("No criteria are set: nothing can be passed or failed."),)
    elif status == PASS:
        reasons = (say("All {count} criteria are passed.", count=len(rows)),)
    else:
        reasons = tuple(row.reason for row in rows if row.status == status)
    return Verdict(run_id=evidence.run_id, status=status, rows=rows, risk=risk, reasons=reasons)


def _judge_one(criterion: Criterion, evidence: Evidence, risk: float) -> CriterionVerdict:
    measured = measure(criterion, evidence)
    title = criterion.title()
    if isinstance(measured, Said):
        return CriterionVerdict(
            criterion=criterion,
            status=OPEN,
            reason=say("{title}: {why}", title=title, why=measured),
        )
    low, high = measured.interval(risk)
    status = _side(criterion, low, high)
    more = more_needed(measured, criterion.limit, risk) if status == OPEN else None
    return CriterionVerdict(
        criterion=criterion,
        status=status,
        value=measured.value,
        low=low,
        high=high,
        n=measured.n,
        more=more,
        reason=_explain(criterion, measured, (low, high), status, more),
    )


def _side(criterion: Criterion, low: float, high: float) -> Status:
    if criterion.at_least:
        return PASS if low >= criterion.limit else FAIL if high < criterion.limit else OPEN
    return PASS if high <= criterion.limit else FAIL if low > criterion.limit else OPEN


def _explain(
    criterion: Criterion, measured: Measured, interval: tuple[float, float], status: Status, more: int | None
) -> Said:
    values: dict[str, Any] = {
        "title": criterion.title(),
        "value": criterion.text(measured.value),
        "low": criterion.text(interval[0]),
        "high": criterion.text(interval[1]),
        "limit": criterion.text(criterion.limit),
        "n": f"{measured.n:,}",
        "more": "" if more is None else f"{more:,}",
    }
    exact = isinstance(measured, Exact)
    if status == PASS and criterion.at_least:
        return Said("{title}: {value}, at least {low}; {limit} is asked for.", values)
    if status == PASS:
        passed = "{title}: {value}; {limit} is allowed."
        return Said(passed if exact else "{title}: {value}, at most {high}; {limit} is allowed.", values)
    if status == FAIL and criterion.at_least:
        return Said("{title}: {value}, at most {high}; {limit} is asked for.", values)
    if status == FAIL:
        failed = "{title}: {value}; only {limit} is allowed."
        return Said(failed if exact else "{title}: {value}, at least {low}; only {limit} is allowed.", values)
    if criterion.kind not in ON_IMAGES:
        return Said(
            "{title}: {value} lies too near the limit of {limit}; not shown with {n} measurements, "
            "about {more} more would settle it.",
            values,
        )
    if more is None:
        return Said(
            "{title}: not shown with {n} images ({low} to {high}, limit {limit}); no reasonable number of "
            "images would settle it.",
            values,
        )
    return Said(
        "{title}: not shown with {n} images ({low} to {high}, limit {limit}); about {more} more would "
        "settle it.",
        values,
    )


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Which of several runs to take.

    Attributes:
        run_id: None where no run passes.
        verdicts: Of all runs, by id, with intervals that hold for all together.
        reasons: In words.
    """

    run_id: str | None
    verdicts: Mapping[str, Verdict]
    reasons: tuple[Said, ...]


def recommend(criteria: Sequence[Criterion], runs: Sequence[Evidence]) -> Recommendation:
    """Of the runs that pass all criteria the one with the smallest file.

    Args:
        criteria: The same for all.
        runs: What was measured of each, on the same images.
    """
    verdicts = {evidence.run_id: judge(criteria, evidence, runs=len(runs)) for evidence in runs}
    passing = [evidence for evidence in runs if verdicts[evidence.run_id].status == PASS]
    sized = [(evidence.size_bytes, place, evidence) for place, evidence in enumerate(passing)]
    if sized:
        chosen = min(sized, key=lambda row: row[:2])[2]
        if len(runs) == 1:
            reason = say("{name} passes all criteria.", name=chosen.name)
        else:
            reason = say(
                "Of {count} runs {passing} pass all criteria; {name} has the smallest file of these.",
                count=len(runs),
                passing=len(passing),
                name=chosen.name,
            )
        return Recommendation(run_id=chosen.run_id, verdicts=verdicts, reasons=(reason,))
    open_runs = [evidence.name for evidence in runs if verdicts[evidence.run_id].status == OPEN]
    if open_runs and criteria:
        reason = say("No run is shown to pass all criteria; still open: {names}.", names=open_runs)
    elif criteria:
        reason = say("No run passes all criteria.")
    else:
        reason = say("No criteria are set: nothing can be passed or failed.")
    return Recommendation(run_id=None, verdicts=verdicts, reasons=(reason,))
