"""Is the original's accuracy plausible? Asked before anything is compressed.

The most common faults are outputs in another order than the labels, and images in another form than the
network was trained with (not normalised, 0 to 255 for 0 to 1, blue before red). Both show when the same
images are tried another way: what is right is then clearly better, and nothing is when all is right.
Here stands the check of classifiers; other tasks are checked by their own metric in `by_metric`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qaf_core.data.load import ImageSet
from qaf_core.data.models.outputs import plain_scores
from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.by_metric import check_by_metric
from qaf_core.pipeline.check.class_order import (
    SIGNIFICANCE,
    ClassOrder,
    find_class_order,
    is_guessing,
    least_right,
    mends,
    paired_p_value,
)
from qaf_core.pipeline.check.findings import describe_form, describe_order, describe_value
from qaf_core.pipeline.check.input_forms import InputForm, usual_forms
from qaf_core.pipeline.check.plausibility import CHANNELS_EXCHANGED, METRIC, TASK, Plausibility, Trial
from qaf_core.pipeline.intervals import paired_drop, wilson_interval
from qaf_core.text.said import templates_of

MOST_IMAGES = 384
SCREENED_IMAGES = 64
FEWEST_IMAGES = 16
#: Multiplications that one check may take: some seconds on two cores.
BUDGET_MACS = 6e11
_BATCH = 32
_FINALISTS = 2
_PUZZLING = 0.3  # an accuracy below this, with nothing to explain it

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


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
        last, classes = len(self.labels) if last is None else last, []
        for start in range(first, last, _BATCH):
            self.on_batch()
            batch = self.pixels[start : min(start + _BATCH, last)]
            with torch.inference_mode():
                # Of scores that are not finite, as wrong inputs may give, the first counts: mostly wrong.
                scores = plain_scores(self.model(form.steps.normalise(batch)), len(batch), by_pixel=False)
                classes.append(scores.nan_to_num().argmax(dim=1).numpy())
        return np.concatenate(classes) if classes else np.zeros(0, np.int64)


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
    """Check that a network does on labelled images what it should.

    Args:
        model: The original network.
        source: How it is fed, its classes and its task.
        image_set: Labelled images; some of them are taken at random.
        macs: Multiplications for one image: large networks are looked at with fewer images.
        images: At most this many.
        seed: Chooses the images.
        on_batch: Called before every batch; may raise to end the check.

    Returns:
        The task's metric and the findings.

    Raises:
        DataError: If the outputs are not what the task reads, or not finite.
    """
    n, screened = sample_sizes(len(image_set), macs, images)
    chosen = np.random.default_rng((seed, len(image_set), 5)).permutation(len(image_set))[:n]
    if source.task != TASK:
        return check_by_metric(model, source, image_set.take(chosen, image_set.name), screened, on_batch)
    case = _Case(
        model=model.eval(),
        source=source,
        pixels=image_set.read(chosen),
        labels=image_set.labels[chosen],
        on_batch=on_batch,
    )
    return _check_classifier(case, screened)


def _check_classifier(case: _Case, screened: int) -> Plausibility:
    """Look for another form of input, another order of the outputs, or both."""
    source, n = case.source, len(case.labels)
    configured = InputForm.configured(source)
    forms = usual_forms(configured, case.pixels)
    predictions = case.predict(configured)
    order = find_class_order(predictions, case.labels, source.classes)
    trials, fit = _try_forms(case, forms, predictions, order, screened)
    right = _right(predictions, case.labels, order)
    hits = int((predictions == case.labels).sum())
    measured = Plausibility(value=hits / n, ci95=wilson_interval(hits, n), n=n, trials=trials)
    if order is None and fit is not None:
        order = find_class_order(fit.outputs, case.labels, source.classes)
        fit = replace(fit, right=_right(fit.outputs, case.labels, order))
    elif order is None and measured.value < _PUZZLING:
        fit, order = _try_forms_in_any_order(case, forms, measured.value)
    findings = [] if order is None else [describe_order(order, source.classes, n)]
    if fit is not None:
        before, after = float(right.mean()), float(fit.right.mean())
        findings.append(describe_form(configured, fit.form, METRIC, n, before, after, fit.p_value))
    guessing = is_guessing(predictions, case.labels, len(source.classes))
    findings = findings or describe_value(source, measured, guessing)
    return replace(measured, findings=tuple(sorted(findings, key=lambda finding: not finding.serious)))


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
    classes = predictions if order is None else np.array(order.order)[predictions]
    return np.asarray(classes == labels)


def _try_forms(
    case: _Case,
    forms: tuple[InputForm, ...],
    predictions: IntArray,
    order: ClassOrder | None,
    screened: int,
) -> tuple[tuple[Trial, ...], _Fit | None]:
    """Try every form on the first images, the best of them on all; the one that is clearly better, if any."""
    right = _right(predictions, case.labels, order)
    outputs = {form: case.predict(form, 0, screened) for form in forms}
    tried = {form: _right(classes, case.labels[:screened], order) for form, classes in outputs.items()}
    promising = [form for form in forms if tried[form].sum() > right[:screened].sum()]
    finalists = sorted(promising, key=lambda form: -tried[form].sum())[:_FINALISTS]
    # The order of channels often makes little difference: it takes all images to see it.
    finalists += [form for form in forms if form.label == CHANNELS_EXCHANGED and form not in finalists]
    fits: list[_Fit] = []
    for form in finalists:
        classes = np.concatenate([outputs[form], case.predict(form, screened)])
        outputs[form] = classes
        tried[form] = _right(classes, case.labels, order)
        p_value = paired_p_value(tried[form], right) * len(forms)  # as many questions were asked (Bonferroni)
        good = tried[form].mean() >= least_right(len(case.source.classes))
        if good and p_value < SIGNIFICANCE and mends(float(right.mean()), float(tried[form].mean())):
            fits.append(_Fit(form=form, outputs=classes, right=tried[form], p_value=p_value))
    trials = tuple(
        _trial(
            form, tried[form], right[: len(classes)], float((classes == predictions[: len(classes)]).mean())
        )
        for form, classes in outputs.items()
    )
    return trials, max(fits, key=lambda fit: fit.right.sum(), default=None)


def _try_forms_in_any_order(
    case: _Case, forms: tuple[InputForm, ...], value: float
) -> tuple[_Fit | None, ClassOrder | None]:
    """Where nothing else helps: both may be wrong, the form and the order."""
    best: tuple[_Fit | None, ClassOrder | None] = None, None
    for form in forms:
        outputs = case.predict(form)
        order = find_class_order(outputs, case.labels, case.source.classes)
        if order is not None and mends(value if best[1] is None else best[1].value, order.value):
            right = _right(outputs, case.labels, order)
            best = _Fit(form=form, outputs=outputs, right=right, p_value=order.p_value), order
    return best


def _trial(form: InputForm, correct: BoolArray, right: BoolArray, agreement: float) -> Trial:
    loss, (low, high) = paired_drop(right, correct)
    return Trial(
        form=str(form.describe()),
        said=templates_of(form.describe()),
        n=len(correct),
        value=float(correct.mean()),
        gain=-loss,
        gain_ci95=(-high, -low),
        agreement=agreement,
    )
