"""The fastest plan that changes few enough answers: ``--structure auto``.

Forms of layers, their times alone and what each is expected to harm go into the same exact choice as a
search under budgets: least time under a limit on harm. A layer timed alone starts with cold caches and ends
with a pause, so each kind of layer is also timed in place, one structure after another, and that corrects
the times. Expected harm says little of how many answers change: networks compressed as planned tell that,
and the limit on harm is moved, down and up again, until no more time can be saved within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qaf_core.errors import ModelError, PlanError
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import Progress
from qaf_core.search.budget.allocate import HARM, Choice, Limit, allocate
from qaf_core.search.forms import LATENCY, Form, Forms, before, distinct
from qaf_core.search.selection import (
    ALL_DENSE,
    DEFAULT_ANSWER_BOUND,
    DENSE,
    NO_GAIN,
    NOT_COUNTED,
    NOT_TIMED,
    AnswerShares,
    Candidate,
    LayerChoice,
    Selection,
    Step,
    Verdict,
    WholeTimes,
    plan_with,
)
from qaf_core.search.sensitivity.settings import TOGETHER, harm_together
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.search.network_timing import TimedNetwork

LEAST_GAIN = 0.05  # of the dense layer's time: less is within what a measurement says
MOST_JUDGED = 8  # plans whose answers are compared
MOST_CHOSEN = 24  # plans that are chosen for that, most of them known by then
FARTHEST = 16.0  # that the limit on harm moves at once
CLOSE = 1.02  # limits on harm between which no further plan is tried
WORTH = 0.01  # of the time of the network's layers: for less no further plan is tried
SLACK = 1e-9  # shares are differences of rounded numbers
LARGEST_ERROR = 0.1  # of outputs that are no answers
SMALLEST_HARM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a network compressed as planned does.

    Attributes:
        share: Of answers that change; where they cannot be counted, relative squared error of the outputs.
        errors: Of layers' outputs.
        finite: Whether its answers are.
    """

    share: float
    errors: Mapping[str, float]
    finite: bool = True


class Judge(Protocol):
    """Compares a network with what plans make of it."""

    @property
    def images(self) -> int:
        """How many images are compared."""

    @property
    def can_count(self) -> bool:
        """Whether the outputs are answers of the model's task, so that it can be said what changed."""

    def judge(self, steps: Mapping[str, Step]) -> Judged:
        """What changes under these structures and ranks; layers that are not named are dense."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may change.

    Attributes:
        answers: Largest share of answers beyond those that the dense plan changes.
        error: Largest relative squared error of a layer's outputs, as measured; None for any.
        first: The harm beyond that of the dense plan that is tried first.
    """

    answers: float = DEFAULT_ANSWER_BOUND
    error: float | None = None
    first: float = 0.01


def find_fastest(
    forms: Forms,
    plan: Plan,
    judge: Judge,
    open_network: Callable[[], TimedNetwork] | None,
    *,
    bounds: Bounds,
    progress: Progress | None = None,
) -> Selection:
    """The plan of least time under which few enough answers change.

    A network that cannot be timed as a whole, such as one with a list for an output, goes by the times of its
    layers alone, with a note that says so.

    Args:
        forms: What each layer may become, ``dense`` first.
        plan: With all of them dense; what is found is set into it.
        judge: Compares answers.
        open_network: Makes the network ready to be timed; asked for only if something is to be timed. None
            where there is no integer network to time.
        bounds: What may change.
        progress: Told how far it is (stages ``latency`` and ``selecting``), and asked whether to stop.

    Raises:
        RunCancelled: If stopped.
    """
    progress = progress or Progress()
    search = _Search(forms=forms, judge=judge, bounds=bounds, progress=progress)
    if not any(len(rows) > 1 for rows in search.left.values()):
        return _told(search, plan, {}, None, [])
    progress.check()
    network, note = _time_in_place(search, open_network, progress)
    steps = search.fastest()
    progress.check()
    whole = _compared(network, steps) if steps else None
    notes = [note] if judge.can_count else [note, NOT_COUNTED]
    if not steps and search.judged:
        notes.append(ALL_DENSE)
    elif whole is not None and not whole.ratio.high < 1.0:
        notes.append(NO_GAIN)
    return _told(search, plan, steps, whole, notes)


@dataclass(kw_only=True)
class _Search:
    """The choice of forms under limits on harm that are moved by what networks compressed so tell.

    Attributes:
        left: Forms that may still be chosen, by layer.
        judged: What plans did, by their steps.
        passed_over: Forms that are not faster inside the network.
        over: Forms whose outputs' error was beyond the bound.
    """

    forms: Forms
    judge: Judge
    bounds: Bounds
    progress: Progress
    left: dict[str, list[Form]] = field(default_factory=dict)
    judged: dict[frozenset[tuple[str, Step]], Judged] = field(default_factory=dict)
    passed_over: set[tuple[str, Step]] = field(default_factory=set)
    over: set[tuple[str, Step]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, (dense, *others) in self.forms.items():
            limit = dense.latency_ms * (1 - LEAST_GAIN)
            self.left[name] = [dense, *(form for form in others if form.latency_ms < limit)]

    @property
    def dense_harm(self) -> float:
        """What all layers together are expected to harm where they are dense."""
        return harm_together(rows[0].harm for rows in self.left.values())

    def correct(self, gains: Mapping[tuple[str, str], float]) -> None:
        """Set times to what they are in place.

        Args:
            gains: By layer and structure, how many times the gain of the layer alone; 0 for none.
        """
        for name, (dense, *others) in self.left.items():
            kept = [dense]
            for form in others:
                gain = gains.get((name, form.step[0]), 1.0)
                if gain > 0.0:
                    ms = max(dense.latency_ms - gain * (dense.latency_ms - form.latency_ms), 0.0)
                    choice = Choice(setting=form.choice.setting, costs={LATENCY: ms})
                    kept.append(Form(step=form.step, latency_ms=form.latency_ms, choice=choice))
                else:
                    self.passed_over.add((name, form.step))
            self.left[name] = kept

    def typical(self, names: Collection[str]) -> dict[str, dict[str, Form]]:
        """By layer and structure the fastest form that harms no more than an even share, or the gentlest."""
        share = (self.dense_harm + self.bounds.first) / max(len(self.left), 1) ** (1.0 / TOGETHER)
        forms: dict[str, dict[str, Form]] = {}
        for name in names:
            for form in self.left[name][1:]:
                known = forms.setdefault(name, {}).get(form.step[0])
                if known is None or before(form, known, share):
                    forms[name][form.step[0]] = form
        return forms

    def choose(self, extra: float) -> dict[str, Form]:
        """The fastest forms of the layers that are not to be dense, so much harm beyond the dense plan's."""
        limit = (self.dense_harm + extra) * (1 + SLACK) + 1e-12
        if math.isinf(extra):
            limit = harm_together(form.harm for rows in self.left.values() for form in rows) + 1.0
        choices = {name: [form.choice for form in distinct(rows)] for name, rows in self.left.items()}
        allocation = allocate(
            choices, [Limit(name=HARM, limit=limit, fixed=0.0, text="harm")], minimise=LATENCY
        )
        chosen = {}
        for name, setting in allocation.settings.items():
            form = next(form for form in self.left[name] if form.choice.setting is setting)
            if form.step != DENSE:
                chosen[name] = form
        return chosen

    def fastest(self) -> dict[str, Step]:
        """Steps of the layers that are not dense; none where nothing faster changes few enough answers."""
        if not any(len(rows) > 1 for rows in self.left.values()):
            return {}
        bound = self.bounds.answers if self.judge.can_count else self.bounds.error or LARGEST_ERROR
        dense = self._judged({})
        if not dense.finite:  # every plan would pass beside it
            raise PlanError(
                "with every layer dense the network's answers are not finite", got=say("these bits"),
                expected="finite answers", remedy="plan with more bits",
            )  # fmt: skip
        by_dense = dense.share
        limit, low, high, extra = bound + by_dense, 0.0, math.inf, self.bounds.first
        best: dict[str, Form] = {}
        compared: set[frozenset[tuple[str, Step]]] = set()
        for _ in range(MOST_CHOSEN):
            chosen = self.choose(extra)
            steps = {name: form.step for name, form in chosen.items()}
            judged = self._judged(steps)
            if self._drop_inaccurate(chosen, judged):
                continue
            compared.add(frozenset(steps.items()))
            if judged.share <= limit + SLACK:
                low, best = extra, chosen
            else:
                high = extra
            worth = self._saved(best, self.choose(high)) >= WORTH * self._dense_ms
            if not worth or len(compared) == MOST_JUDGED or high < CLOSE * low:
                break
            extra = _moved(low, high, extra, judged.share, by_dense, limit)
        return {name: form.step for name, form in best.items()}

    @property
    def _dense_ms(self) -> float:
        return sum(rows[0].latency_ms for rows in self.left.values())

    def _saved(self, before: Mapping[str, Form], after: Mapping[str, Form]) -> float:
        """Milliseconds that one choice takes more than another."""

        def total(chosen: Mapping[str, Form]) -> float:
            return sum(chosen.get(name, rows[0]).choice.costs[LATENCY] for name, rows in self.left.items())

        return total(before) - total(after)

    def _judged(self, steps: Mapping[str, Step]) -> Judged:
        key = frozenset(steps.items())
        if key not in self.judged:
            self.progress.check()
            self.judged[key] = self.judge.judge(steps)
        return self.judged[key]

    def _drop_inaccurate(self, chosen: Mapping[str, Form], judged: Judged) -> bool:
        """Whether outputs' errors were beyond the bound: then such forms, and worse ones, are out.

        An error goes with the harm: what is expected to be far beyond the bound is not tried.
        """
        bound, dropped = self.bounds.error, False
        if bound is None:
            return False
        for name, form in chosen.items():
            error = judged.errors.get(name, 0.0)
            if error > bound:
                most = form.harm * min(2.0 * bound / error, 1.0) or math.inf  # no harm expected tells nothing
                out = {row.step for row in self.left[name][1:] if row.harm >= most} | {form.step}
                self.over |= {(name, step) for step in out}
                self.left[name] = [row for row in self.left[name] if row.step not in out]
                dropped = True
        return dropped


def _moved(low: float, high: float, extra: float, share: float, by_dense: float, limit: float) -> float:
    """The next harm to allow: answers change about as the root of the divergence."""
    more, allowed = share**2 - by_dense**2, limit**2 - by_dense**2
    factor = min(max(allowed / more, 1 / FARTHEST), FARTHEST) if more > 0.0 else FARTHEST
    guess = extra * factor
    if low > 0.0 and high < math.inf and not low * 1.05 < guess < high / 1.05:
        return math.sqrt(low * high)
    if not low < guess < high:  # a share that is not what the root would have
        return extra / FARTHEST if low == 0.0 else extra * FARTHEST
    return guess


def _time_in_place(
    search: _Search, open_network: Callable[[], TimedNetwork] | None, progress: Progress
) -> tuple[TimedNetwork | None, str]:
    """Correct the times of all forms by the whole network's, if it can be timed; and a note."""
    from qaf_core.search.network_timing import gains_in_place

    if open_network is None:
        return None, ""
    try:
        network = open_network()
        names = {name for kind in network.kinds for name in kind} & search.left.keys()
        dense = {name: rows[0].latency_ms for name, rows in search.left.items()}
        rows = {
            name: {key: (form.step, dense[name] - form.latency_ms) for key, form in forms.items()}
            for name, forms in search.typical(names).items()
        }
        search.correct(gains_in_place(network, rows, progress=progress))
    except ModelError as error:  # layers timed alone are all there is to go by
        return None, f"{NOT_TIMED} {error}"
    return network, ""


def _compared(network: TimedNetwork | None, steps: Mapping[str, Step]) -> WholeTimes | None:
    from qaf_core.search.network_timing import compare_times

    try:
        return None if network is None else compare_times(network, steps)
    except ModelError:  # a plan that cannot be timed is a plan all the same
        return None


def _told(
    search: _Search,
    plan: Plan,
    steps: Mapping[str, Step],
    whole: WholeTimes | None,
    notes: Sequence[str],
) -> Selection:
    judged, answers = search.judged, None
    if judged and search.judge.can_count:
        answers = AnswerShares(
            changed=judged[frozenset(steps.items())].share, changed_by_dense=judged[frozenset()].share,
            limit=search.bounds.answers, images=search.judge.images,
        )  # fmt: skip
    choices = tuple(_choice_of(search, name, steps) for name in search.forms)
    return Selection(
        plan=plan_with(plan, steps), choices=choices, note=" ".join(filter(None, notes)), whole=whole,
        answers=answers,
    )  # fmt: skip


def _choice_of(search: _Search, name: str, steps: Mapping[str, Step]) -> LayerChoice:
    """What was chosen for a layer, and its forms in the order of growing latency.

    Of a form that several plans had, the output error is that in the plan that was judged last.
    """
    forms, step = search.forms[name], steps.get(name, DENSE)
    errors = {dict(key).get(name, DENSE): judged.errors.get(name) for key, judged in search.judged.items()}
    if frozenset(steps.items()) in search.judged:
        errors[step] = search.judged[frozenset(steps.items())].errors.get(name)
    candidates = [
        Candidate(
            structure=form.step[0], rank=form.step[1], latency_ms=form.latency_ms,
            output_error=errors.get(form.step), verdict=_verdict(search, name, form, step), harm=form.harm,
        )
        for form in sorted(forms, key=lambda form: form.latency_ms)
    ]  # fmt: skip
    latency_ms = next(form.latency_ms for form in forms if form.step == step)
    return LayerChoice(
        name=name, structure=step[0], rank=step[1], latency_ms=latency_ms, dense_ms=forms[0].latency_ms,
        candidates=tuple(candidates),
    )  # fmt: skip


def _verdict(search: _Search, name: str, form: Form, chosen: Step) -> Verdict:
    if form.step == chosen:
        return Verdict.CHOSEN
    if (name, form.step) in search.over:
        return Verdict.OVER_BOUND
    if (name, form.step) in search.passed_over:
        return Verdict.PASSED_OVER
    if form.step != DENSE and form.latency_ms >= search.forms[name][0].latency_ms * (1 - LEAST_GAIN):
        return Verdict.SLOWER_THAN_DENSE
    return Verdict.NOT_CHOSEN
