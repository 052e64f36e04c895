"""Are a network's outputs in the order of the labels? Looked for in which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import bdtrc

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: What must be as unlikely as this if all is right, before anything is called a fault.
SIGNIFICANCE = 0.001
LEAST_GAIN = 0.03
_GUESSING_Z = 2.33  # standard deviations above guessing that chance reaches once in a hundred times
# A class taken for another counts this much less than one left where it is: ties leave the order alone.
_MOVE_PENALTY = 0.5
_LEAST_JUDGED = 3  # images of a class before it speaks for or against a move
_MOST_AGAINST = 0.2  # share of the classes of a cycle that may speak against it
# A weak network takes one class for another now and then; behind a wrong order stands a network that is good.
_LEAST_RIGHT = 0.4  # less where classes are many
_MANY_CLASSES = 25
_LEAST_RATIO = 3.0  # of that to the share right under the given order
_TIMES_RIGHT = 1.75
_ERRORS_MENDED = 0.35  # share of the errors


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """An order of the outputs that fits the labels better than the one given.

    Attributes:
        order: (K,): output i stands for class order[i].
        moved: Classes that change their place.
        value: Accuracy under this order, each half of the images judged by the order found on the other.
        as_is: Accuracy under the given order.
        p_value: Probability of such a gain if the given order were right.
        sorted_names: The new order is that of the sorted class names.
    """

    order: tuple[int, ...]
    moved: int
    value: float
    as_is: float
    p_value: float
    sorted_names: bool


def find_class_order(predictions: IntArray, labels: IntArray, classes: Sequence[str]) -> ClassOrder | None:
    """Look for another order of the classes under which the network is clearly better.

    The order found on one half of the images is judged on the other, both ways round, by the exact paired
    test of McNemar (1947).

    Args:
        predictions: (N,) outputs.
        labels: (N,) classes.
        classes: Names, in the order given.

    Returns:
        The order, or None where the given one stands.
    """
    count = len(classes)
    half = _halves(labels)
    right = predictions == labels
    changed = right.copy()
    for fit_on, judged_on in ((half, ~half), (~half, half)):
        order = _best_order(_confusion(predictions[fit_on], labels[fit_on], count))
        changed[judged_on] = order[predictions[judged_on]] == labels[judged_on]
    p_value = paired_p_value(changed, right)
    gain = float(changed.mean() - right.mean())
    order = _best_order(_confusion(predictions, labels, count))
    moved = int((order != np.arange(count)).sum())
    concerned = np.isin(labels, order[order != np.arange(count)])
    if moved == 0 or p_value >= SIGNIFICANCE or gain < LEAST_GAIN:
        return None
    after, before = float(changed[concerned].mean()), float(right[concerned].mean())
    if after < least_right(count) or after < _LEAST_RATIO * before:
        return None
    return ClassOrder(
        order=tuple(int(index) for index in order),
        moved=moved,
        value=float(changed.mean()),
        as_is=float(right.mean()),
        p_value=p_value,
        sorted_names=_agrees_with_sorting(order, predictions, labels, classes),
    )


def least_right(count: int) -> float:
    """The accuracy a fault must hide before it is called one: a network that knows little proves nothing.

    Args:
        count: Number of classes.
    """
    return _LEAST_RIGHT * min(1.0, _MANY_CLASSES / count)


def mends(before: float, after: float) -> bool:
    """Whether a gain is that of a fault mended: a weak network does a little better on other inputs, too.

    Args:
        before, after: Accuracy, or another metric of 0 to 1.
    """
    gain = after - before
    return gain >= LEAST_GAIN and (after >= _TIMES_RIGHT * before or gain >= _ERRORS_MENDED * (1 - before))


def paired_p_value(better: BoolArray, worse: BoolArray) -> float:
    """Probability that the one is right so much more often than the other by chance (McNemar, one-sided)."""
    gained, lost = int((better & ~worse).sum()), int((~better & worse).sum())
    return float(bdtrc(gained - 1, gained + lost, 0.5)) if gained else 1.0


def is_guessing(predictions: IntArray, labels: IntArray, count: int) -> bool:
    """Whether predictions agree with labels no more often than if they had nothing to do with each other.

    Cohen's (1960) kappa against its spread under independence: unlike the accuracy itself it is not taken in
    by one class being frequent.
    """
    n = len(labels)
    if len(np.unique(labels)) < 2:
        return False  # images of a single class tell nothing about that
    share = np.bincount(labels, minlength=count) / n
    predicted = np.bincount(predictions, minlength=count) / n
    expected = float(share @ predicted)
    both = share * predicted
    spread = expected + expected**2 - float(both @ (share + predicted))
    if spread <= 0:
        return True
    z = (float((predictions == labels).mean()) - expected) / np.sqrt(spread / n)
    return bool(z < _GUESSING_Z)


def _halves(labels: IntArray) -> BoolArray:
    """Half of the images, of every class half."""
    order = np.argsort(labels, kind="stable")
    half = np.zeros(len(labels), bool)
    half[order[::2]] = True
    return half


def _confusion(predictions: IntArray, labels: IntArray, count: int) -> NDArray[np.float64]:
    """(K outputs, K classes): how often each output was given for each class."""
    table = np.zeros((count, count))
    np.add.at(table, (predictions, labels), 1)
    return table


def _best_order(confusion: NDArray[np.float64]) -> IntArray:
    """For each output the class it stands for: the assignment with the most images right (Kuhn 1955)."""
    favoured = confusion + _MOVE_PENALTY * np.eye(len(confusion))
    _, columns = linear_sum_assignment(favoured, maximize=True)
    order: IntArray = columns.astype(np.int64)
    kept = np.arange(len(order))
    for cycle in _cycles(order):
        if _holds(cycle, order, confusion):
            kept[cycle] = order[cycle]
    return kept


def _cycles(order: IntArray) -> list[IntArray]:
    """Groups of outputs that exchange their classes among each other."""
    seen, cycles = np.zeros(len(order), bool), []
    for start in range(len(order)):
        members, place = [], start
        while not seen[place]:
            seen[place] = True
            members.append(place)
            place = int(order[place])
        if len(members) > 1:
            cycles.append(np.array(members))
    return cycles


def _holds(cycle: IntArray, order: IntArray, confusion: NDArray[np.float64]) -> bool:
    """Whether nearly every class of a cycle gains by it: a weak network only confuses some with others."""
    after = confusion[cycle, order[cycle]]
    images = confusion[:, order[cycle]].sum(axis=0)
    before = confusion[order[cycle], order[cycle]]
    judged = images >= _LEAST_JUDGED
    against = judged & (after <= before)
    return bool(against.sum() <= _MOST_AGAINST * max(judged.sum(), 1) and after.sum() > before.sum())


def _agrees_with_sorting(
    order: IntArray, predictions: IntArray, labels: IntArray, classes: Sequence[str]
) -> bool:
    """Whether the outputs follow the sorted names as well as the order found, and the given one does not."""
    by_name = np.array(sorted(range(len(classes)), key=lambda index: classes[index]))
    if np.array_equal(by_name, np.arange(len(classes))):
        return False
    return bool((by_name[predictions] == labels).sum() >= (order[predictions] == labels).sum())
