"""What a check finds, put into words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.class_order import ClassOrder
from qaf_core.pipeline.check.input_forms import InputForm
from qaf_core.pipeline.check.plausibility import METRIC, Finding, FindingKind, Plausibility
from qaf_core.text.said import Said, say
from qaf_core.text.units import percent_text

_SERIOUS_GAIN = 0.05
_ENOUGH_TO_JUDGE = 200
_BELOW_STATED = 0.1
_NAMED_CLASSES = 20
_NAMED_MOVES = 5


def describe_order(order: ClassOrder, classes: Sequence[str], n: int) -> Finding:
    """Outputs in another order than the classes, seen on n images."""
    names = [classes[index] for index in order.order]
    moved = [f"{place}: {name}" for place, name in enumerate(names) if order.order[place] != place]
    text = ", ".join(names) if len(names) <= _NAMED_CLASSES else ", ".join(moved[:_NAMED_MOVES]) + " …"
    values = {"n": n, "given": percent_text(order.as_is), "value": percent_text(order.value)}
    return Finding.of(
        FindingKind.CLASSES,
        say(
            "The outputs seem to be in another order than the classes: of {n} images {given} are right as "
            "they are, {value} in another order, which is the sorted one.",
            **values,
        )
        if order.sorted_names
        else say(
            "The outputs seem to be in another order than the classes: of {n} images {given} are right as "
            "they are, {value} in another order.",
            **values,
        ),
        say(
            "Name the classes in the order of the outputs (--classes FILE) or number labels so: {order}.",
            order=text,
        ),
        serious=order.value - order.as_is >= _SERIOUS_GAIN,
        evidence={
            "n": n,
            "given": order.as_is,
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
    preparation = configured.steps
    missing = not any(preparation.mean) and set(preparation.std) == {1.0} and preparation.scale == 255.0
    values = {
        FindingKind.CHANNEL_ORDER: say("Red and blue seem to be exchanged"),
        FindingKind.SCALE: say("Pixels seem to reach the network on another scale than in training"),
        FindingKind.NORMALISATION: say("Normalisation seems to be missing")
        if missing
        else say("Normalisation seems to be wrong"),
    }[kind]
    steps = better.changes()
    fix = {"channel_order": steps["channel_order"]} if kind is FindingKind.CHANNEL_ORDER else steps
    remedy = say("Prepare images so, with --preprocessing FILE: {fix}.", fix=json.dumps(fix))
    if kind is FindingKind.CHANNEL_ORDER:
        remedy = say("Save the images with red first. {remedy}", remedy=remedy)
    return Finding.of(
        kind,
        say(
            "{seen}: {told} as configured ({own}), {value} with {form} ({range}).",
            seen=values,
            told=_metric_text(metric, before, n),
            own=configured.range_said(),
            value=percent_text(after),
            form=Said(better.label),
            range=better.range_said(),
        ),
        remedy,
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
    text = _metric_text(measured.metric, measured.value, measured.n)
    numbers = {"n": measured.n, "value": measured.value, "ci95": list(measured.ci95)}
    if guessing:
        return [
            Finding.of(
                FindingKind.GUESSING,
                say("The network does not do better than guessing: {seen}.", seen=text),
                say("Look at the weights, the labels and the preprocessing."),
                serious=measured.n >= _ENOUGH_TO_JUDGE,
                evidence=numbers,
            )
        ]
    stated = source.accuracy or source.card.get("metric", {}).get("value")
    if stated is None or measured.ci95[1] >= stated - _BELOW_STATED:
        return []
    values = {"seen": text, "stated": percent_text(stated)}
    return [
        Finding.of(
            FindingKind.BELOW_STATED,
            say("Few images are right: {seen}, {stated} are stated.", **values)
            if measured.metric == METRIC
            else say("The network does worse than stated: {seen}, {stated} are stated.", **values),
            say("Look at the images: are they like those the network was trained for?"),
            serious=False,
            evidence={**numbers, "stated": stated},
        )
    ]


def _metric_text(metric: str, value: float, n: int) -> Said:
    if metric == METRIC:
        return say("of {n} images {value} are right", n=n, value=percent_text(value))
    return say("on {n} images {metric} is {value}", n=n, metric=metric, value=percent_text(value))
