"""What a check found, in words and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.data.models import ModelSource
from qaf_core.pipeline.class_order import ClassOrder
from qaf_core.pipeline.evaluate import wilson_interval
from qaf_core.pipeline.input_forms import InputForm

_SERIOUS_GAIN = 0.05
_ENOUGH_TO_JUDGE = 200
_BELOW_STATED = 0.1
_NAMED_CLASSES = 20
_NAMED_MOVES = 5

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that seems wrong.

    Attributes:
        kind: ``classes``, ``normalisation``, ``scale``, ``bgr``, ``guessing`` or ``below``.
        sentence: What was seen, in one sentence.
        remedy: What to do about it.
        serious: Compressing is pointless before it is mended.
        evidence: The numbers behind it.
    """

    kind: str
    sentence: str
    remedy: str
    serious: bool
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "kind": self.kind, "sentence": self.sentence, "remedy": self.remedy, "serious": self.serious,
            "evidence": dict(self.evidence),
        }  # fmt: skip


def describe_order(order: ClassOrder, classes: Sequence[str], n: int) -> Finding:
    """Outputs in another order than the classes, seen on n images."""
    names = [classes[index] for index in order.order]
    wrong = [f"output {place} is {name}" for place, name in enumerate(names) if order.order[place] != place]
    told = ", ".join(names) if len(names) <= _NAMED_CLASSES else ", ".join(wrong[:_NAMED_MOVES]) + " …"
    hint = ", which is the sorted one" if order.sorted_names else ""
    return Finding(
        kind="classes",
        sentence=(
            f"The outputs seem to be in another order than the classes: of {n} images "
            f"{_percent(order.given)} are right as they are, {_percent(order.value)} in another order{hint}."
        ),
        remedy=f"Name the classes in the order of the outputs (--classes FILE) or number labels so: {told}.",
        serious=order.value - order.given >= _SERIOUS_GAIN,
        evidence={
            "n": n,
            "given": order.given,
            "value": order.value,
            "p_value": order.p_value,
            "moved": order.moved,
            "order": names,
            "sorted_names": order.sorted_names,
        },
    )


def describe_form(
    configured: InputForm, better: InputForm, right: BoolArray, right_then: BoolArray, p_value: float
) -> Finding:
    """Images in another form than the network expects.

    Args:
        configured, better: The form they have, and the one under which more is right.
        right, right_then: (N,) what is right under each.
        p_value: Probability of the difference by chance.
    """
    kind = configured.fault_to(better)
    missing = not any(configured.mean) and set(configured.std) == {1.0} and configured.scale == 255.0
    seen = {
        "bgr": "Red and blue seem to be exchanged",
        "scale": "Pixels seem to reach the network on another scale than in training",
        "normalisation": f"Normalisation seems to be {'missing' if missing else 'wrong'}",
    }[kind]
    before, after = float(right.mean()), float(right_then.mean())
    steps = better.to_preprocessing()
    fix = {"channel_order": steps["channel_order"]} if kind == "bgr" else steps
    remedy = f"Prepare images so, with --preprocessing FILE: {json.dumps(fix)}."
    if kind == "bgr":
        remedy = f"Save the images with red first. {remedy}"
    return Finding(
        kind=kind,
        sentence=(
            f"{seen}: of {len(right)} images {_percent(before)} are right as configured "
            f"({configured.range_text()}), {_percent(after)} with {better.name} ({better.range_text()})."
        ),
        remedy=remedy,
        serious=after - before >= _SERIOUS_GAIN,
        evidence={
            "n": len(right),
            "given": before,
            "value": after,
            "p_value": p_value,
            "configured": configured.to_preprocessing(),
            "preprocessing": fix,
        },
    )


def describe_value(source: ModelSource, hits: int, n: int, guessing: bool) -> list[Finding]:
    """What the accuracy alone tells, when nothing explains it.

    Args:
        source: The model, with the accuracy its card or publisher states.
        hits, n: Images that are right, of so many.
        guessing: Predictions have nothing to do with the labels.
    """
    value, (low, high) = hits / n, wilson_interval(hits, n)
    seen, numbers = (
        f"of {n} images {_percent(value)} are right",
        {"n": n, "value": value, "ci95": [low, high]},
    )
    if guessing:
        return [
            Finding(
                kind="guessing",
                sentence=f"The network does not do better than guessing: {seen}.",
                remedy="Look at the weights, the labels and the preprocessing.",
                serious=n >= _ENOUGH_TO_JUDGE,
                evidence=numbers,
            )
        ]
    stated = source.accuracy or source.card.get("metric", {}).get("value")
    if stated is None or high >= stated - _BELOW_STATED:
        return []
    return [
        Finding(
            kind="below",
            sentence=f"Few images are right: {seen}, {_percent(stated)} are stated.",
            remedy="Look at the images: are they like those the network was trained for?",
            serious=False,
            evidence={**numbers, "stated": stated},
        )
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
