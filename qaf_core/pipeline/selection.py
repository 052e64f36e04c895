"""What was chosen for a network's layers and what was considered, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qaf_core.network.plan import LayerPlan, Plan, Rank, replace_layer

Step = tuple[str, Rank]

CHOSEN = "chosen"
WITHIN_BOUND = "within the bound"
OVER_BOUND = "error over the bound"
RANK_TOO_SMALL = "rank too small for the outputs"
SLOWER_THAN_CHOSEN = "slower than the chosen one"
SLOWER_THAN_DENSE = "not faster than dense"
PASSED_OVER = "inside the network slower than the chosen one, or as fast with more error"
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
    """

    plan: Plan
    choices: tuple[LayerChoice, ...]
    note: str = ""
    whole: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        choices = [choice.to_dict() for choice in self.choices]
        whole = None if self.whole is None else dict(self.whole)
        return {"plan": self.plan.to_dict(), "choices": choices, "note": self.note, "whole": whole}


def with_steps(
    selection: Selection, steps: Mapping[str, Step], whole: Mapping[str, Any] | None = None
) -> Selection:
    """The selection with other structures for some layers, which were faster inside the whole network.

    Args:
        selection: Made from layers timed alone.
        steps: Structure and rank of the layers timed in place, each among the layer's candidates.
        whole: As the selection's.
    """
    plan, choices = selection.plan, []
    for choice in selection.choices:
        if choice.name not in steps:  # nothing fitted, or it could not be timed in place
            choices.append(choice)
            continue
        step = steps[choice.name]
        if step != (choice.structure, choice.rank):
            bits = plan.layer(choice.name).bits
            row = LayerPlan(name=choice.name, structure=step[0], rank=step[1], bits=bits)
            plan = replace_layer(plan, row)
        choices.append(_rechosen(choice, step))
    return replace(selection, plan=plan, choices=tuple(choices), whole=whole)


def _rechosen(choice: LayerChoice, step: Step) -> LayerChoice:
    timed = {("dense", None), *((row.structure, row.rank) for row in choice.fitting().values())}
    found = {(candidate.structure, candidate.rank): candidate for candidate in choice.candidates}
    for other in timed.intersection(found):
        found[other] = replace(found[other], verdict=CHOSEN if other == step else PASSED_OVER)
    return replace(
        choice, structure=step[0], rank=step[1], latency_ms=found[step].latency_ms,
        candidates=tuple(found.values()),
    )  # fmt: skip
