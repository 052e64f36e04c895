"""What was chosen for a network's layers and what was considered, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.network.plan.rules import LayerPlan, Plan, Rank, replace_layer

Step = tuple[str, Rank]
DENSE: Step = ("dense", None)  # what every layer can be

DEFAULT_ERROR_BOUND, DEFAULT_ANSWER_BOUND = 0.1, 0.02

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
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "structure": self.structure,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "latency_ms": self.latency_ms,
            "output_error": self.output_error,
            "verdict": self.verdict,
        }


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
            if row.output_error is not None and row.verdict != OVER_BOUND:
                found.setdefault(row.structure, row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "name": self.name,
            "structure": self.structure,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "latency_ms": self.latency_ms,
            "dense_ms": self.dense_ms,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A plan and how it came about.

    Attributes:
        plan: The plan.
        choices: One for each layer that had a choice.
        note: What else is to be said, or empty.
        whole: Milliseconds of the whole network, ``dense_ms`` and ``planned_ms``, and their ``ratio`` (value,
            low, high); None where it was not timed.
        answers: Shares of the answers on calibration images that differ from the original's, ``changed`` as
            planned and ``changed_by_dense`` in dense INT8 (None where it was not run), the ``limit`` of what
            may be added to the latter, and how many ``images``; None where they were not counted.
    """

    plan: Plan
    choices: tuple[LayerChoice, ...]
    note: str = ""
    whole: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        choices = [choice.to_dict() for choice in self.choices]
        told = {"note": self.note, "whole": _plain(self.whole), "answers": _plain(self.answers)}
        return {"plan": self.plan.to_dict(), "choices": choices, **told}


def _plain(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else dict(row)


def plan_with(plan: Plan, steps: Mapping[str, Step]) -> Plan:
    """The plan with other structures and ranks for some layers, their bits as they are."""
    for name, (structure, rank) in steps.items():
        row = plan.layer(name)
        if (structure, rank) != (row.structure, row.rank):
            plan = replace_layer(plan, LayerPlan(name=name, structure=structure, rank=rank, bits=row.bits))
    return plan


def with_steps(selection: Selection, steps: Mapping[str, Step], verdict: str = PASSED_OVER) -> Selection:
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


def _rechosen(choice: LayerChoice, step: Step, verdict: str) -> LayerChoice:
    timed = {DENSE, *((row.structure, row.rank) for row in choice.fitting().values())}
    found = {(candidate.structure, candidate.rank): candidate for candidate in choice.candidates}
    for other in timed.intersection(found):
        found[other] = replace(found[other], verdict=CHOSEN if other == step else verdict)
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
