"""The check of networks that are no classifiers: is their task's own metric better on another form of input?

Which class an output stands for is not looked at: masks and boxes tell too little about that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn

from qaf_core.data.load import ImageSet
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.pipeline.check.class_order import SIGNIFICANCE, least_right, mends
from qaf_core.pipeline.check.findings import describe_form, describe_value
from qaf_core.pipeline.check.input_forms import InputForm, usual_forms
from qaf_core.pipeline.check.plausibility import CHANNELS_EXCHANGED, Finding, Plausibility, Trial
from qaf_core.pipeline.intervals import Z95
from qaf_core.pipeline.tasks import Arrays, Task, find_task, predict
from qaf_core.text.said import templates_of

_BATCH = 16
_FINALISTS = 2


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some of the images, with what the network says about them as configured."""

    pixels: NDArray[np.uint8]
    targets: Arrays
    answers: Arrays
    value: float


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is checked, and whom to tell."""

    model: nn.Module
    task: Task
    on_batch: Callable[[], None]

    def predict(self, form: InputForm, pixels: NDArray[np.uint8]) -> Arrays:
        """Predictions for images in some form."""

        def batches() -> Iterator[tuple[Tensor, None]]:
            for start in range(0, len(pixels), _BATCH):
                self.on_batch()
                yield form.steps.normalise(pixels[start : start + _BATCH]), None

        return predict(self.task, self.model, batches())

    def try_form(self, form: InputForm, part: _Part) -> Trial | None:
        """The images in another form; None where the outputs are not finite then."""
        try:
            answers = self.predict(form, part.pixels)
        except DataError:
            return None
        loss, (low, high) = self.task.compare(part.answers, answers, part.targets)
        return Trial(
            form=str(form.describe()),
            said=templates_of(form.describe()),
            n=len(part.pixels),
            value=part.value - loss,
            gain=-loss,
            gain_ci95=(-high, -low),
            agreement=self.task.agreement(part.answers, answers),
        )


def check_by_metric(
    model: nn.Module,
    source: ModelSource,
    images: ImageSet,
    screened: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Plausibility:
    """Measure a network of any task, and look for a form of input on which it does clearly better.

    Args:
        model: The original network.
        source: How it is fed, and its task.
        images: With the targets of the task.
        screened: Every form is tried on so many of them, the best ones on all.
        on_batch: Called before every batch; may raise to end the check.

    Raises:
        DataError: If the outputs are not what the task reads, or not finite.
    """
    case = _Case(model=model, task=find_task(source.task), on_batch=on_batch)
    configured = InputForm.configured(source)
    pixels = images.read(range(len(images)))
    answers, targets = case.predict(configured, pixels), case.task.collate(images)
    now = case.task.metric(answers, targets, images.classes)
    full = _Part(pixels=pixels, targets=targets, answers=answers, value=now.value)
    first = full if screened == len(images) else _first_part(case, configured, images, screened)
    forms = usual_forms(configured, pixels)
    tried = _try_forms(case, forms, first, full)
    measured = Plausibility(
        metric=now.metric, value=now.value, ci95=now.ci95, n=now.n, trials=tuple(tried.values())
    )
    better = _clearly_better(tried, now.value, now.n, len(source.classes), len(forms))
    findings: list[Finding] = []
    if better is not None:
        after, p_value = tried[better].value, _p_value(tried[better]) * len(forms)
        findings = [describe_form(configured, better, now.metric, now.n, now.value, after, p_value)]
    return replace(measured, findings=tuple(findings or describe_value(source, measured)))


def _first_part(case: _Case, configured: InputForm, images: ImageSet, count: int) -> _Part:
    part = images.take(np.arange(count), images.name)
    pixels, targets = part.read(range(count)), case.task.collate(part)
    answers = case.predict(configured, pixels)
    value = case.task.metric(answers, targets, images.classes).value
    return _Part(pixels=pixels, targets=targets, answers=answers, value=value)


def _try_forms(case: _Case, forms: Sequence[InputForm], first: _Part, full: _Part) -> dict[InputForm, Trial]:
    """Every form on the first images, the best of them on all, and the exchange of red and blue always."""
    tried = {form: trial for form in forms if (trial := case.try_form(form, first)) is not None}
    if first is full:
        return tried
    gaining = sorted((form for form in tried if tried[form].gain > 0), key=lambda form: -tried[form].gain)
    finalists = gaining[:_FINALISTS]
    finalists += [form for form in tried if form.label == CHANNELS_EXCHANGED and form not in finalists]
    again = {form: case.try_form(form, full) for form in finalists}
    return {form: again.get(form) or trial for form, trial in tried.items()}


def _clearly_better(
    tried: dict[InputForm, Trial], value: float, n: int, classes: int, questions: int
) -> InputForm | None:
    """The form under which the metric is best, if that is a fault mended and no chance (Bonferroni)."""
    fits = [
        form
        for form, trial in tried.items()
        if trial.n == n
        and trial.value >= least_right(classes)
        and mends(value, trial.value)
        and _p_value(trial) * questions < SIGNIFICANCE
    ]
    return max(fits, key=lambda form: tried[form].value, default=None)


def _p_value(trial: Trial) -> float:
    """Probability of the gain by chance, from its interval taken as a normal one."""
    half = (trial.gain_ci95[1] - trial.gain_ci95[0]) / 2
    if trial.gain <= 0:
        return 1.0
    return float(ndtr(-Z95 * trial.gain / half)) if half > 0 else 0.0
