"""What a check found, in words and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.class_order import ClassOrder
from qaf_core.pipeline.check.input_forms import CHANNELS_EXCHANGED, InputForm
from qaf_core.records import Record

#: What only classifiers are checked for beside the form of their inputs.
TASK, METRIC = "classification", "top1"

_SERIOUS_GAIN = 0.05
_ENOUGH_TO_JUDGE = 200
_BELOW_STATED = 0.1
_NAMED_CLASSES = 20
_NAMED_MOVES = 5
_SAME_ANSWERS = 0.9
_FORM_FAULTS = ("normalisation", "scale", "bgr", "guessing")


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
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


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """Some images in another form.

    Attributes:
        form: The form and the range of its inputs, for people.
        n: Images tried.
        value: The metric.
        gain: How much more that is than as configured, on the same images.
        gain_ci95: Its 95 % interval.
        agreement: How far the answers are those as configured, 0 to 1.
    """

    form: str
    n: int
    value: float
    gain: float
    gain_ci95: tuple[float, float]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Plausibility(Record):
    """How good the original is on some images, and what seems wrong with it.

    Attributes:
        metric: Short name of what is measured.
        value: The metric as configured.
        ci95: Its 95 % interval.
        n: Images looked at.
        findings: The serious ones first; empty when all seems right.
        trials: Other forms of input tried on (some of) the same images.
    """

    metric: str = METRIC
    value: float
    ci95: tuple[float, float]
    n: int
    findings: tuple[Finding, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def serious(self) -> Finding | None:
        """The first finding that makes compressing pointless, or None."""
        return next((finding for finding in self.findings if finding.serious), None)

    @property
    def blind_to_colours(self) -> bool:
        """With red and blue exchanged the network does as well, as far as these images tell.

        False where the form is wrong otherwise: what the exchange does shows once that is mended.
        """
        trial, found = self._exchanged, any(finding.kind in _FORM_FAULTS for finding in self.findings)
        return trial is not None and trial.gain_ci95[1] >= 0 and not found

    @property
    def cannot_tell(self) -> str | None:
        """What could not be checked, in one sentence, or None."""
        trial = self._exchanged
        if trial is None or not self.blind_to_colours:
            return None
        same = trial.agreement >= _SAME_ANSWERS
        return (
            "Cannot tell whether red and blue are exchanged: this network "
            f"{'answers the same' if same else 'does as well'} with red and blue exchanged "
            f"({_percent(trial.agreement)} the same on {trial.n} images)."
        )

    @property
    def summary(self) -> str | None:
        """What can be said where nothing was found wrong, in one sentence; None where something was."""
        if self.findings:
            return None
        order = "class order and " if self.metric == METRIC else "the "
        sentences = [f"Nothing is wrong with {order}preparation of images, as far as these images tell."]
        if self.blind_to_colours:
            sentences.append("Only whether red and blue are exchanged is not known: it would not show.")
        if self.metric != METRIC:
            sentences.append("The order of classes is checked for classifiers only.")
        return " ".join(sentences)

    @property
    def _exchanged(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.form.startswith(CHANNELS_EXCHANGED)), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with what follows from the fields."""
        follows = ("blind_to_colours", "cannot_tell", "summary")
        return {**super().to_dict(), **{name: getattr(self, name) for name in follows}}


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
    configured: InputForm, better: InputForm, metric: str, n: int, before: float, after: float, p_value: float
) -> Finding:
    """Images in another form than the network expects.

    Args:
        configured, better: The form they have, and the one under which the network does better.
        metric: Short name of what is measured.
        n: Images looked at.
        before, after: The metric under each form.
        p_value: Probability of the difference by chance.
    """
    kind = configured.fault_to(better)
    given = configured.steps
    missing = not any(given.mean) and set(given.std) == {1.0} and given.scale == 255.0
    seen = {
        "bgr": "Red and blue seem to be exchanged",
        "scale": "Pixels seem to reach the network on another scale than in training",
        "normalisation": f"Normalisation seems to be {'missing' if missing else 'wrong'}",
    }[kind]
    steps = better.changes()
    fix = {"channel_order": steps["channel_order"]} if kind == "bgr" else steps
    remedy = f"Prepare images so, with --preprocessing FILE: {json.dumps(fix)}."
    if kind == "bgr":
        remedy = f"Save the images with red first. {remedy}"
    return Finding(
        kind=kind,
        sentence=(
            f"{seen}: {_told(metric, before, n)} as configured "
            f"({configured.range_text()}), {_percent(after)} with {better.label} ({better.range_text()})."
        ),
        remedy=remedy,
        serious=after - before >= _SERIOUS_GAIN,
        evidence={
            "n": n,
            "given": before,
            "value": after,
            "p_value": p_value,
            "configured": configured.changes(),
            "preprocessing": fix,
        },
    )


def describe_value(source: ModelSource, measured: Plausibility, guessing: bool = False) -> list[Finding]:
    """What the metric alone tells, when nothing explains it.

    Args:
        source: The model, with the metric its card or publisher states.
        measured: The metric, its interval and the number of images.
        guessing: Predictions have nothing to do with the labels.
    """
    seen = _told(measured.metric, measured.value, measured.n)
    numbers = {"n": measured.n, "value": measured.value, "ci95": list(measured.ci95)}
    if guessing:
        return [
            Finding(
                kind="guessing",
                sentence=f"The network does not do better than guessing: {seen}.",
                remedy="Look at the weights, the labels and the preprocessing.",
                serious=measured.n >= _ENOUGH_TO_JUDGE,
                evidence=numbers,
            )
        ]
    stated = source.accuracy or source.card.get("metric", {}).get("value")
    if stated is None or measured.ci95[1] >= stated - _BELOW_STATED:
        return []
    what = "Few images are right" if measured.metric == METRIC else "The network does worse than stated"
    return [
        Finding(
            kind="below",
            sentence=f"{what}: {seen}, {_percent(stated)} are stated.",
            remedy="Look at the images: are they like those the network was trained for?",
            serious=False,
            evidence={**numbers, "stated": stated},
        )
    ]


def _told(metric: str, value: float, n: int) -> str:
    if metric == METRIC:
        return f"of {n} images {_percent(value)} are right"
    return f"on {n} images {metric} is {_percent(value)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
