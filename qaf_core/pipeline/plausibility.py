"""Is the original's accuracy plausible? Asked before anything is compressed.

The most common faults are outputs in another order than the labels, and images in another form than the
network was trained with (not normalised, 0 to 255 for 0 to 1, blue before red). Both show when the same
images are tried another way: what is right is then clearly better, and nothing is when all is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qaf_core.data.datasets import ImageSet
from qaf_core.data.models import ModelSource
from qaf_core.pipeline.class_order import (
    LEAST_GAIN,
    SIGNIFICANCE,
    ClassOrder,
    find_class_order,
    is_guessing,
    least_right,
    paired_p_value,
)
from qaf_core.pipeline.evaluate import paired_drop, wilson_interval
from qaf_core.pipeline.findings import Finding, describe_form, describe_order, describe_value
from qaf_core.pipeline.input_forms import CHANNELS_EXCHANGED, InputForm, form_of, usual_forms

TASK = "classification"
MOST_IMAGES = 384
SCREENED_IMAGES = 64
FEWEST_IMAGES = 16
#: Multiplications that one check may take: some seconds on two cores.
BUDGET_MACS = 6e11
_BATCH = 32
_FINALISTS = 2
_TIMES_RIGHT = 1.75
_ERRORS_MENDED = 0.35  # share of the errors
_PUZZLING = 0.3  # an accuracy below this, with nothing to explain it

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The same images in another form: how many were tried, the accuracy, and its gain with 95 % interval."""

    form: str
    n: int
    value: float
    gain: float
    gain_ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "form": self.form, "n": self.n, "value": self.value, "gain": self.gain,
            "gain_ci95": list(self.gain_ci95),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plausibility:
    """The original's accuracy on some images, and what seems wrong with it.

    Attributes:
        value: Accuracy as configured.
        ci95: Its Wilson interval.
        n: Images looked at.
        findings: The serious ones first; empty when all seems right.
        trials: Other forms of input tried on (some of) the same images.
        blind_to_colours: With red and blue exchanged the network does as well, as far as these images tell:
            their order cannot be checked then, and matters little.
    """

    value: float
    ci95: tuple[float, float]
    n: int
    findings: tuple[Finding, ...] = ()
    trials: tuple[Trial, ...] = ()
    blind_to_colours: bool = False

    @property
    def serious(self) -> Finding | None:
        """The first finding that makes compressing pointless, or None."""
        return next((finding for finding in self.findings if finding.serious), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "value": self.value, "ci95": list(self.ci95), "n": self.n,
            "findings": [finding.to_dict() for finding in self.findings],
            "trials": [trial.to_dict() for trial in self.trials],
            "blind_to_colours": self.blind_to_colours,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is checked: the network, and the images in the order they are taken."""

    model: nn.Module
    source: ModelSource
    pixels: NDArray[np.uint8]
    labels: IntArray
    on_batch: Callable[[], None]

    def predict(self, form: InputForm, first: int = 0, last: int | None = None) -> IntArray:
        """Outputs for some of the images in some form."""
        last, found = len(self.labels) if last is None else last, []
        for start in range(first, last, _BATCH):
            self.on_batch()
            batch = self.pixels[start : min(start + _BATCH, last)]
            with torch.inference_mode():
                # Of scores that are not finite, as wrong inputs may give, the first counts: mostly wrong.
                found.append(self.model(form.apply(batch)).nan_to_num().argmax(dim=1).numpy())
        return np.concatenate(found) if found else np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A form under which more is right: the outputs under it, and which of them are right."""

    form: InputForm
    outputs: IntArray
    right: BoolArray
    p_value: float


def check_original(
    model: nn.Module,
    source: ModelSource,
    image_set: ImageSet,
    *,
    macs: int = 0,
    images: int = MOST_IMAGES,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> Plausibility:
    """Check that a classifier does on labelled images what it should.

    Args:
        model: The original network.
        source: How it is fed, and its classes.
        image_set: Labelled images; some of them are taken at random.
        macs: Multiplications for one image: large networks are looked at with fewer images.
        images: At most this many.
        seed: Chooses the images.
        on_batch: Called before every batch; may raise to end the check.

    Returns:
        The accuracy and the findings.
    """
    n, screened = sample_sizes(len(image_set), macs, images)
    chosen = np.random.default_rng((seed, len(image_set), 5)).permutation(len(image_set))[:n]
    case = _Case(
        model=model.eval(),
        source=source,
        pixels=image_set.read(chosen),
        labels=image_set.labels[chosen],
        on_batch=on_batch,
    )
    configured = form_of(source)
    forms = usual_forms(configured, case.pixels)
    predictions = case.predict(configured)
    order = find_class_order(predictions, case.labels, source.classes)
    right = _right(predictions, case.labels, order)
    trials, fit = _try_forms(case, forms, right, order, screened)
    guessing = is_guessing(predictions, case.labels, len(source.classes))
    hits = int((predictions == case.labels).sum())
    value = hits / n
    if order is None and fit is not None:
        order = find_class_order(fit.outputs, case.labels, source.classes)
        fit = replace(fit, right=_right(fit.outputs, case.labels, order))
    elif order is None and value < _PUZZLING:
        fit, order = _try_forms_in_any_order(case, forms, value)
    found = [
        *([] if order is None else [describe_order(order, source.classes, n)]),
        *([] if fit is None else [describe_form(configured, fit.form, right, fit.right, fit.p_value)]),
    ]
    found = found or describe_value(source, hits, n, guessing)
    return Plausibility(
        value=value,
        ci95=wilson_interval(hits, n),
        n=n,
        findings=tuple(sorted(found, key=lambda finding: not finding.serious)),
        trials=trials,
        blind_to_colours=any(
            trial.form.startswith(CHANNELS_EXCHANGED) and trial.gain_ci95[0] <= 0 <= trial.gain_ci95[1]
            for trial in trials
        ),
    )


def sample_sizes(available: int, macs: int, images: int) -> tuple[int, int]:
    """How many images to look at, and on how many of them to try every form first.

    Args:
        available: Images there are.
        macs: Multiplications for one image, or 0 where they are not known.
        images: At most this many.
    """
    affordable = int(BUDGET_MACS / max(macs, 1))
    n = min(available, images, max(affordable, 2 * FEWEST_IMAGES))
    # About ten forms are tried on the first of them, three at most on all.
    return n, min(n, max(FEWEST_IMAGES, min(SCREENED_IMAGES, affordable // 10)))


def _right(predictions: IntArray, labels: IntArray, order: ClassOrder | None) -> BoolArray:
    meant = predictions if order is None else np.array(order.order)[predictions]
    return np.asarray(meant == labels)


def _try_forms(
    case: _Case, forms: tuple[InputForm, ...], right: BoolArray, order: ClassOrder | None, screened: int
) -> tuple[tuple[Trial, ...], _Fit | None]:
    """Try every form on the first images, the best of them on all; the one that is clearly better, if any."""
    outputs = {form: case.predict(form, 0, screened) for form in forms}
    tried = {form: _right(found, case.labels[:screened], order) for form, found in outputs.items()}
    promising = [form for form in forms if tried[form].sum() > right[:screened].sum()]
    finalists = sorted(promising, key=lambda form: -tried[form].sum())[:_FINALISTS]
    # The order of channels often makes little difference: it takes all images to see it.
    finalists += [form for form in forms if form.name == CHANNELS_EXCHANGED and form not in finalists]
    fits: list[_Fit] = []
    for form in finalists:
        found = np.concatenate([outputs[form], case.predict(form, screened)])
        tried[form] = _right(found, case.labels, order)
        p_value = paired_p_value(tried[form], right) * len(forms)  # as many questions were asked (Bonferroni)
        good = tried[form].mean() >= least_right(len(case.source.classes))
        if good and p_value < SIGNIFICANCE and _mends(float(right.mean()), float(tried[form].mean())):
            fits.append(_Fit(form=form, outputs=found, right=tried[form], p_value=p_value))
    trials = tuple(_trial(form, found, right[: len(found)]) for form, found in tried.items())
    return trials, max(fits, key=lambda fit: fit.right.sum(), default=None)


def _mends(before: float, after: float) -> bool:
    """Whether a gain is that of a fault mended: a weak network does a little better on other inputs, too."""
    gain = after - before
    return gain >= LEAST_GAIN and (after >= _TIMES_RIGHT * before or gain >= _ERRORS_MENDED * (1 - before))


def _try_forms_in_any_order(
    case: _Case, forms: tuple[InputForm, ...], value: float
) -> tuple[_Fit | None, ClassOrder | None]:
    """Where nothing else helps: both may be wrong, the form and the order."""
    best: tuple[_Fit | None, ClassOrder | None] = None, None
    for form in forms:
        outputs = case.predict(form)
        order = find_class_order(outputs, case.labels, case.source.classes)
        if order is not None and _mends(value if best[1] is None else best[1].value, order.value):
            right = _right(outputs, case.labels, order)
            best = _Fit(form=form, outputs=outputs, right=right, p_value=order.p_value), order
    return best


def _trial(form: InputForm, found: BoolArray, right: BoolArray) -> Trial:
    loss, (low, high) = paired_drop(right, found)
    return Trial(
        form=f"{form.name} ({form.range_text()})",
        n=len(found),
        value=float(found.mean()),
        gain=-loss,
        gain_ci95=(-high, -low),
    )
