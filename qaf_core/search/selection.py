"""What was chosen for a network's layers by time, and what was considered, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from qaf_core.deploy.runtime.measure_kit import Ratio
from qaf_core.errors import PlanError
from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.rules import replace_layer
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.records import Record
from qaf_core.text.said import Translate

Step = tuple[str, Rank]
DENSE: Step = ("dense", None)  # what every layer can be

DEFAULT_ANSWER_BOUND = 0.02

NO_GAIN = "The whole network is no faster than dense INT8, as far as the rounds can tell."
NOT_COUNTED = (
    "The outputs are not those of the model's task: instead of changed answers the error of the outputs is "
    "bounded."
)
ALL_DENSE = (
    "No faster plan that was tried stays within the bounds: the plan is dense. Allow more to change, or take "
    "more bits."
)
NOT_TIMED = "Not timed as a whole:"  # why stands behind it
NOTES = (NO_GAIN, NOT_COUNTED, ALL_DENSE, NOT_TIMED)


class Verdict(StrEnum):
    """What became of a candidate: chosen, or why not."""

    CHOSEN = "chosen"
    OVER_BOUND = "error over the bound"
    SLOWER_THAN_DENSE = "not faster than dense"
    PASSED_OVER = "inside the network not faster than dense"
    NOT_CHOSEN = "expected to harm more than its time is worth, or slower"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A structure and rank that was considered for a layer.

    Attributes:
        structure, rank: As in a plan.
        latency_ms: Of the whole layer, as measured.
        output_error: Relative squared error of the outputs on held-back images; None if not tried.
        verdict: ``chosen``, or why not (:class:`Verdict`; earlier versions had other reasons).
        harm: Expected divergence of the network if only this layer is changed; None if not known.
    """

    structure: str
    rank: Rank
    latency_ms: float
    output_error: float | None
    verdict: str
    harm: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What was chosen for a layer and what was considered, in the order of growing latency."""

    name: str
    structure: str
    rank: Rank
    latency_ms: float
    dense_ms: float
    candidates: tuple[Candidate, ...]

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
        changed_by_dense: With every layer dense at the same bits; None where that was not looked at.
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


def note_text(note: str, _: Translate) -> str:
    """A selection's note, its sentences in the language of ``_``."""
    for sentence in NOTES:
        note = note.replace(sentence, _(sentence))
    return note


def plan_with(plan: Plan, steps: Mapping[str, Step]) -> Plan:
    """The plan with other structures and ranks for some layers, their bits as they are."""
    for name, (structure, rank) in steps.items():
        row = plan.layer(name)
        if (structure, rank) != (row.structure, row.rank):
            plan = replace_layer(plan, LayerPlan(name=name, structure=structure, rank=rank, bits=row.bits))
    return plan


def check_error_bound(bound: float | None) -> None:
    """Raise PlanError unless a bound on outputs' errors lies between 0 and 1, or there is none."""
    if bound is not None and (isinstance(bound, bool) or not 0.0 < bound < 1.0):
        raise PlanError("error bound out of range", got=bound, expected="above 0 and below 1")


def check_answer_bound(bound: float) -> None:
    """Raise PlanError unless a bound on changed answers lies between 0 and 1."""
    if isinstance(bound, bool) or not 0.0 < bound <= 1.0:
        raise PlanError("answer bound out of range", got=bound, expected="above 0, up to 1")
