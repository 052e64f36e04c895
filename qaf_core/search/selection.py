"""What was chosen for a network's layers and what was considered, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qaf_core.deploy.runtime.measure_kit import Ratio
from qaf_core.errors import PlanError
from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.rules import replace_layer
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.records import Record

Step = tuple[str, Rank]
DENSE: Step = ("dense", None)  # what every layer can be

DEFAULT_ERROR_BOUND, DEFAULT_ANSWER_BOUND = 0.1, 0.02


class Verdict(StrEnum):
    """What became of a candidate: chosen, or why not."""

    CHOSEN = "chosen"
    WITHIN_BOUND = "within the bound"
    OVER_BOUND = "error over the bound"
    RANK_TOO_SMALL = "rank too small for the outputs"
    SLOWER_THAN_CHOSEN = "slower than the chosen one"
    SLOWER_THAN_DENSE = "not faster than dense"
    PASSED_OVER = "inside the network slower than the chosen one, or as fast with more error"
    CHANGES_ANSWERS = "too many answers would change, or slower than the chosen one"
    NOT_TRIED = "a larger rank is as fast, or over the bound"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A structure and rank that was considered for a layer.

    Attributes:
        structure, rank: As in a plan.
        latency_ms: Of the whole layer, as measured.
        output_error: Relative squared error of the outputs on held-back images; None if not tried.
        verdict: ``chosen``, or why not.
    """

    structure: str
    rank: Rank
    latency_ms: float
    output_error: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What was chosen for a layer and what was considered, in the order of growing latency."""

    name: str
    structure: str
    rank: Rank
    latency_ms: float
    dense_ms: float
    candidates: tuple[Candidate, ...]

    def fitting(self) -> dict[str, Candidate]:
        """By structure the fastest candidate that was found within the bound."""
        found: dict[str, Candidate] = {}
        for row in self.candidates:
            if row.output_error is not None and row.verdict != Verdict.OVER_BOUND:
                found.setdefault(row.structure, row)
        return found

    @property
    def tried(self) -> tuple[Candidate, ...]:
        """What was solved and judged."""
        return tuple(row for row in self.candidates if row.output_error is not None)

    @property
    def output_error(self) -> float | None:
        """That of the chosen candidate, where it was tried."""
        return next((row.output_error for row in self.tried if row.verdict == Verdict.CHOSEN), None)


@dataclass(frozen=True, kw_only=True)
class WholeTimes:
    """The whole network in dense INT8 and as planned, and the ratio of the latter's time to the former's."""

    dense_ms: float
    planned_ms: float
    ratio: Ratio


@dataclass(frozen=True, kw_only=True)
class AnswerShares:
    """Shares of the answers on calibration images that differ from the original's.

    Attributes:
        changed: As planned; None where it could not be counted.
        changed_by_dense: In dense INT8; None where that was not run.
        limit: What may be added to the latter.
        images: How many were compared.
    """

    changed: float | None
    changed_by_dense: float | None
    limit: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Selection(Record):
    """A plan and how it came about.

    Attributes:
        plan: The plan.
        choices: One for each layer that had a choice.
        note: What else is to be said, or empty.
        whole: None where it was not timed.
        answers: None where they were not counted.
    """

    plan: Plan
    choices: tuple[LayerChoice, ...]
    note: str = ""
    whole: WholeTimes | None = None
    answers: AnswerShares | None = None


def plan_with(plan: Plan, steps: Mapping[str, Step]) -> Plan:
    """The plan with other structures and ranks for some layers, their bits as they are."""
    for name, (structure, rank) in steps.items():
        row = plan.layer(name)
        if (structure, rank) != (row.structure, row.rank):
            plan = replace_layer(plan, LayerPlan(name=name, structure=structure, rank=rank, bits=row.bits))
    return plan


def with_steps(
    selection: Selection, steps: Mapping[str, Step], verdict: Verdict = Verdict.PASSED_OVER
) -> Selection:
    """The selection with other structures for some layers.

    Args:
        selection: What was chosen before.
        steps: Structure and rank of layers, each among the layer's candidates.
        verdict: Of fitting candidates that were chosen before, or compared with the chosen ones in place.
    """
    choices = [
        _rechosen(choice, steps[choice.name], verdict) if choice.name in steps else choice
        for choice in selection.choices
    ]
    return replace(selection, plan=plan_with(selection.plan, steps), choices=tuple(choices))


def _rechosen(choice: LayerChoice, step: Step, verdict: Verdict) -> LayerChoice:
    timed = {DENSE, *((row.structure, row.rank) for row in choice.fitting().values())}
    found = {(candidate.structure, candidate.rank): candidate for candidate in choice.candidates}
    for other in timed.intersection(found):
        found[other] = replace(found[other], verdict=Verdict.CHOSEN if other == step else verdict)
    return replace(
        choice, structure=step[0], rank=step[1], latency_ms=found[step].latency_ms,
        candidates=tuple(found.values()),
    )  # fmt: skip


def check_error_bound(bound: float) -> None:
    """Raise PlanError unless a bound on outputs' errors lies between 0 and 1."""
    if isinstance(bound, bool) or not 0.0 < bound < 1.0:
        raise PlanError("error bound out of range", got=bound, expected="above 0 and below 1")


def check_answer_bound(bound: float) -> None:
    """Raise PlanError unless a bound on changed answers lies between 0 and 1."""
    if isinstance(bound, bool) or not 0.0 < bound <= 1.0:
        raise PlanError("answer bound out of range", got=bound, expected="above 0, up to 1")
