"""Giving up speed where it costs the most answers, until few enough change.

A bound on every layer's own error says little about the whole: five percent in one layer may change ten
times as many answers as in another. So what was chosen for speed is taken back layer by layer, first where
the least time is lost for the divergence that is saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qaf_core.pipeline.events import Progress
from qaf_core.search.selection import DENSE, Step

SLACK = 1e-9  # shares are differences of rounded numbers
MOST_LEFT = 0.8  # of the divergence after the first round, half as much after each further one


@dataclass(frozen=True, kw_only=True)
class Form:
    """What layers of one kind may be together.

    Attributes:
        steps: Structure and rank by layer.
        gain_ms: By how much the whole network is faster than with these layers dense.
    """

    steps: Mapping[str, Step]
    gain_ms: float


class Judge(Protocol):
    """Says what plans do to a network's answers."""

    def harm(self, layer: str, step: Step) -> float:
        """The divergence from the original when this layer alone is exchanged; 0 for dense."""

    def changed(self, steps: Mapping[str, Step]) -> float:
        """The share of answers that the network compressed in this way changes."""


def back_off(
    steps: Mapping[str, Step],
    kinds: Sequence[Sequence[Form]],
    judge: Judge,
    limit: float,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Step], float | None]:
    """Steps under which at most ``limit`` of the answers change, or dense throughout.

    Divergences of single layers are added up to tell which layers are to blame; how many answers change is
    measured anew after each round. They change about as the root of the divergence: that sets how far a round
    goes.

    Args:
        steps: What was chosen, by layer.
        kinds: For each kind of layers its forms, among them the chosen one; together they name all layers.
            Layers of one form are taken to gain alike.
        judge: Asked for divergences and changed answers.
        limit: Largest share of answers that may change.
        progress: Told before answers are compared (stage ``selecting``), and asked whether to stop.

    Returns:
        The steps, and the share of answers that change under them; None where every layer is dense.
    """
    progress = progress or Progress()
    current = [_chosen_form(forms, steps) for forms in kinds]
    most_left = MOST_LEFT
    while True:
        found = {name: step for form in current for name, step in form.steps.items()}
        if all(step == DENSE for step in found.values()):
            return found, None
        progress.step("selecting", "Comparing the answers with the original's", 1.0)
        share = judge.changed(found)
        if share <= limit + SLACK:
            return found, share
        harm = sum(_harm(form, judge) for form in current)
        current = _less_harmful(current, kinds, judge, harm * min((limit / share) ** 2, most_left))
        most_left /= 2


def _less_harmful(
    forms: Sequence[Form], kinds: Sequence[Sequence[Form]], judge: Judge, target: float
) -> list[Form]:
    """Forms whose divergences add up to no more than the target, by one move at least."""
    current = list(forms)
    while moves := list(_moves(current, kinds, judge)):
        index, form = min(moves, key=lambda move: _price(current[move[0]], move[1], judge))
        current[index] = form
        if sum(_harm(form, judge) for form in current) <= target:
            break
    return current


def _chosen_form(forms: Sequence[Form], steps: Mapping[str, Step]) -> Form:
    for form in forms:
        if all(steps.get(name, DENSE) == step for name, step in form.steps.items()):
            return form
    raise ValueError(f"none of a kind's forms is the chosen one: {forms}")


def _harm(form: Form, judge: Judge) -> float:
    return sum(judge.harm(name, step) for name, step in form.steps.items())


def _moves(
    current: Sequence[Form], kinds: Sequence[Sequence[Form]], judge: Judge
) -> Iterator[tuple[int, Form]]:
    """Every kind's other forms of less harm, and its present one with one layer dense."""
    for index, (form, others) in enumerate(zip(current, kinds, strict=True)):
        exchanged = [name for name, step in form.steps.items() if step != DENSE]
        for name in exchanged:
            share = (len(exchanged) - 1) / len(exchanged)
            yield index, Form(steps={**form.steps, name: DENSE}, gain_ms=form.gain_ms * share)
        harm = _harm(form, judge)
        for other in others:
            if exchanged and _harm(other, judge) < harm:
                yield index, other


def _price(before: Form, after: Form, judge: Judge) -> tuple[float, float]:
    """Milliseconds lost for the divergence that is saved; of equal ones the larger saving first."""
    saved = _harm(before, judge) - _harm(after, judge)
    lost = max(before.gain_ms - after.gain_ms, 0.0)
    return (lost / saved if saved > 0.0 else math.inf), -saved
