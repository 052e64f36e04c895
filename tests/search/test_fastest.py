"""The fastest plan that changes few enough answers, on networks whose times and answers are made up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qaf_core.errors import ModelError, PlanError, RunCancelled
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.records import from_plain, to_plain
from qaf_core.search.budget.allocate import Choice
from qaf_core.search.fastest import Bounds, Judged, find_fastest
from qaf_core.search.forms import Form
from qaf_core.search.selection import DENSE, NOTES, AnswerShares, Selection, Step, Verdict, note_text
from qaf_core.search.sensitivity.settings import Setting, harm_together
from qaf_core.text.catalogue import translator

SMALL, LARGE = ("tucker2", (4, 4)), ("tucker2", (8, 8))
SVD = ("svd", 4)


def form(name: str, step: Step, latency_ms: float, harm: float) -> Form:
    row = LayerPlan(name=name, structure=step[0], rank=step[1], bits=8)
    setting = Setting(row=row, harm=harm, size_bytes=1, bops=1)
    choice = Choice(setting=setting, costs={"latency": latency_ms})
    return Form(step=step, latency_ms=latency_ms, choice=choice)


def forms_of(harms: Mapping[str, Mapping[Step, tuple[float, float]]]) -> dict[str, list[Form]]:
    """By layer and step milliseconds and harm; dense takes one and harms nothing."""
    return {
        name: [form(name, DENSE, 1.0, 0.0), *(form(name, step, *row) for step, row in rows.items())]
        for name, rows in harms.items()
    }


def plan_of(names: Sequence[str]) -> Plan:
    rows = (LayerPlan(name=name, structure="dense", bits=8) for name in names)
    return Plan(model="test/net", layers=tuple(rows))


class Answers:
    """Answers change as the root of what layers truly harm, and by a share that is there anyway."""

    images = 100

    def __init__(
        self, true: Mapping[tuple[str, Step], float], *, by_dense: float = 0.0, can_count: bool = True
    ) -> None:
        self._true, self._by_dense, self.can_count = true, by_dense, can_count
        self.judged: list[dict[str, Step]] = []

    def share(self, steps: Mapping[str, Step]) -> float:
        harm = harm_together(self._true.get((name, step), 0.0) for name, step in steps.items())
        return min(self._by_dense + 0.1 * math.sqrt(harm), 1.0)

    def judge(self, steps: Mapping[str, Step]) -> Judged:
        self.judged.append(dict(steps))
        errors = {name: self._true.get((name, step), 0.0) / 10 for name, step in steps.items()}
        return Judged(share=self.share(steps), errors=errors)


class Clock:
    """Times a network by a sum over its layers: by default what they gain alone."""

    def __init__(
        self,
        forms: Mapping[str, Sequence[Form]],
        kinds: Sequence[Sequence[str]],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.kinds, self.opened = kinds, 0
        self._gains = {
            (name, row.step): (factors or {}).get(row.step[0], 1.0) * (1.0 - row.latency_ms)
            for name, rows in forms.items()
            for row in rows
        }

    def __call__(self) -> Clock:
        self.opened += 1
        return self

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
        return {
            key: np.linspace(9.999, 10.001, 50)
            - sum(self._gains.get((name, step), 0.0) for name, step in steps.items())
            for key, steps in plans.items()
        }


ROWS: dict[Step, tuple[float, float]] = {SMALL: (0.4, 0.4), LARGE: (0.7, 0.1), SVD: (0.6, 0.2)}
FORMS = forms_of(dict.fromkeys("abc", ROWS))
TRUE = {(name, row.step): row.harm for name, rows in FORMS.items() for row in rows}


def found_in(
    judge: Answers, open_network: Any = None, forms: Any = FORMS, **bounds: Any
) -> tuple[Selection, dict[str, Step]]:
    """What is found, and the layers that are not dense."""
    found = find_fastest(forms, plan_of(list(forms)), judge, open_network, bounds=Bounds(**bounds))
    steps = {row.name: (row.structure, row.rank) for row in found.choices}
    assert steps == {row.name: (row.structure, row.rank) for row in found.plan.layers}
    return found, {name: step for name, step in steps.items() if step != DENSE}


def test_where_everything_is_allowed_each_layer_takes_its_fastest_form() -> None:
    answers = Answers(TRUE)
    clock = Clock(FORMS, ["a", "bc"])
    found, steps = found_in(answers, clock, answers=0.5)
    assert steps == dict.fromkeys("abc", SMALL)
    assert found.note == ""
    assert found.answers == AnswerShares(
        changed=answers.share(steps), changed_by_dense=0.0, limit=0.5, images=100
    )
    assert found.whole is not None
    assert found.whole.dense_ms == pytest.approx(10.0)
    assert found.whole.planned_ms == pytest.approx(8.2)
    assert found.whole.ratio.low <= found.whole.ratio.value == pytest.approx(0.82, rel=0.01)
    assert clock.opened == 1
    assert from_plain(Selection, to_plain(found)) == found
    (first, *_rest) = found.choices
    assert [row.latency_ms for row in first.candidates] == [0.4, 0.6, 0.7, 1.0]
    assert [row.verdict for row in first.candidates] == [Verdict.CHOSEN, *[Verdict.NOT_CHOSEN] * 3]
    assert first.output_error == pytest.approx(0.04)


def test_the_bound_holds_and_no_time_is_left_within_it() -> None:
    """Against all plans tried out."""
    answers = Answers(TRUE)
    for bound in (0.03, 0.05, 0.07, 0.09):
        found, steps = found_in(answers, answers=bound, first=0.01)
        assert found.answers is not None
        assert found.answers.changed == answers.share(steps) <= bound + 1e-9
        assert gain(FORMS, steps) >= best_gain(FORMS, answers, bound) - 0.011 * 3


def gain(forms: Mapping[str, Sequence[Form]], steps: Mapping[str, Step]) -> float:
    return sum(1.0 - row.latency_ms for name, rows in forms.items() for row in rows
               if row.step == steps.get(name, DENSE))  # fmt: skip


def best_gain(forms: Mapping[str, Sequence[Form]], answers: Answers, limit: float) -> float:
    names = list(forms)
    plans = [
        {name: row.step for name, row in zip(names, rows, strict=True)} for rows in product(*forms.values())
    ]
    return max(gain(forms, plan) for plan in plans if answers.share(plan) <= limit + 1e-9)


@given(
    gains=st.lists(st.floats(0.1, 0.9), min_size=2, max_size=5),
    harms=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    wrong=st.lists(st.floats(0.5, 2.0), min_size=5, max_size=5),
    limit=st.floats(0.02, 0.15),
    by_dense=st.sampled_from((0.0, 0.05)),
    first=st.sampled_from((1e-5, 0.1, 10.0)),
)
def test_it_is_near_the_fastest_plan_within_the_limit(
    gains: Sequence[float],
    harms: Sequence[float],
    wrong: Sequence[float],
    limit: float,
    by_dense: float,
    first: float,
) -> None:
    """Also where harms are not what was expected, and wherever it begins."""
    names = "abcde"[: len(gains)]
    rows = {name: {("cp", 8): (1.0 - ms, harm)} for name, ms, harm in zip(names, gains, harms, strict=False)}
    forms = forms_of(rows)
    true = {(name, ("cp", 8)): harm * off for name, harm, off in zip(names, harms, wrong, strict=False)}
    answers = Answers(true, by_dense=by_dense)
    found, steps = found_in(answers, forms=forms, answers=limit, first=first)
    assert answers.share(steps) <= limit + by_dense + 1e-9
    assert found.answers is not None
    assert found.answers.changed == pytest.approx(answers.share(steps))
    assert gain(forms, steps) >= best_gain(forms, answers, limit + by_dense) - 2 * max(gains) - 1e-9
    assert len(answers.judged) <= 9


def test_the_layer_that_costs_most_answers_for_its_time_goes_first() -> None:
    cp: Step = ("cp", 8)
    forms = forms_of({"a": {cp: (0.9, 0.5)}, "b": {cp: (0.1, 0.5)}, "c": {cp: (0.1, 0.1)}})
    true = {(name, row.step): row.harm for name, rows in forms.items() for row in rows}
    _, steps = found_in(Answers(true), forms=forms, answers=0.08)
    assert steps == {"b": cp, "c": cp}


def test_a_slower_form_of_less_harm_comes_before_dense() -> None:
    _, steps = found_in(Answers(TRUE), answers=0.05)
    assert set(steps.values()) == {LARGE}


def test_no_harm_is_spent_for_a_difference_that_no_measurement_tells() -> None:
    gentle: Step = ("spatial", 8)
    forms = forms_of({"a": {SMALL: (0.49, 0.4), gentle: (0.5, 0.1), SVD: (0.4, 0.5)}})
    true = {("a", SMALL): 0.4, ("a", gentle): 0.1, ("a", SVD): 0.5}
    assert found_in(Answers(true), forms=forms, answers=0.065)[1] == {"a": gentle}
    assert found_in(Answers(true), forms=forms, answers=0.08)[1] == {"a": SVD}


def test_what_dense_changes_at_the_same_bits_is_not_held_against_a_plan() -> None:
    strict, _ = found_in(Answers(TRUE), answers=0.05)
    found, _ = found_in(Answers(TRUE, by_dense=0.3), answers=0.05)
    assert found.plan == strict.plan
    assert found.answers is not None
    assert found.answers.changed_by_dense == 0.3


def test_where_every_form_changes_too_many_answers_the_plan_is_dense_and_says_so() -> None:
    answers = Answers(dict.fromkeys(TRUE, 9.0) | {(name, DENSE): 0.0 for name in "abc"})
    found, steps = found_in(answers, Clock(FORMS, ["abc"]), answers=0.02)
    assert steps == {}
    assert found.note.startswith("No faster plan that was tried stays within the bounds")
    assert found.whole is None  # as dense as dense INT8 is
    assert found.answers is not None
    assert found.answers.changed == 0.0
    assert len(answers.judged) <= 9


def test_the_times_in_place_decide() -> None:
    """Alone Tucker-2 of small rank is fastest; in the network it gains nothing, SVD as much as alone."""
    found, steps = found_in(Answers(TRUE), Clock(FORMS, ["a", "bc"], {"tucker2": 0.0}), answers=0.5)
    assert steps == dict.fromkeys("abc", SVD)
    verdicts = {(row.structure, row.rank): row.verdict for row in found.choices[0].candidates}
    assert verdicts == {
        SMALL: Verdict.PASSED_OVER, LARGE: Verdict.PASSED_OVER, SVD: Verdict.CHOSEN, DENSE: Verdict.NOT_CHOSEN
    }  # fmt: skip
    _, halved = found_in(Answers(TRUE), Clock(FORMS, ["a", "bc"], {"tucker2": 0.5}), answers=0.5)
    assert halved == dict.fromkeys("abc", SVD)  # 0.4 gained beside 0.3


def test_layers_that_cannot_be_timed_in_place_go_by_their_own_times() -> None:
    _, steps = found_in(Answers(TRUE), Clock(FORMS, ["ab"], {"tucker2": 0.0}), answers=0.5)
    assert steps == {"a": SVD, "b": SVD, "c": SMALL}


def test_a_whole_that_cannot_be_timed_goes_by_the_layers_times_and_says_so() -> None:
    def refuse() -> Clock:
        raise ModelError("the network's outputs cannot be exported", got="a list")

    found, steps = found_in(Answers(TRUE), refuse, answers=0.5)
    assert steps == dict.fromkeys("abc", SMALL)
    assert found.note.startswith("Not timed as a whole: the network's outputs cannot be exported")
    assert found.whole is None
    assert found.answers is not None


def test_a_plan_that_cannot_be_timed_in_the_end_is_a_plan_all_the_same() -> None:
    class Breaking(Clock):
        def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
            if "planned" in plans:
                raise ModelError("ONNX Runtime cannot run the network")
            return super().time(plans)

    found, steps = found_in(Answers(TRUE), Breaking(FORMS, ["abc"]), answers=0.5)
    assert steps == dict.fromkeys("abc", SMALL)
    assert found.whole is None


def test_a_plan_that_gains_nothing_as_a_whole_says_so() -> None:
    class Unlucky(Clock):
        def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
            flat = {key: np.linspace(9.9, 10.1, 50) for key in plans}
            return flat if "planned" in plans else super().time(plans)

    found, _ = found_in(Answers(TRUE), Unlucky(FORMS, ["abc"]), answers=0.5)
    assert found.note.startswith("The whole network is no faster than dense INT8")
    both, _ = found_in(Answers(TRUE, can_count=False), Unlucky(FORMS, ["abc"]))
    assert "instead of changed answers" in both.note
    assert "no faster than dense INT8" in both.note


def test_outputs_that_are_no_answers_are_bounded_by_their_error() -> None:
    answers = Answers(TRUE, can_count=False)
    found, steps = found_in(answers)
    assert 0.0 < answers.share(steps) <= 0.1
    assert found.answers is None
    _, strict = found_in(Answers(TRUE, can_count=False), error=0.045)
    assert gain(FORMS, strict) < gain(FORMS, steps)


def test_a_bound_on_layers_errors_is_kept_as_measured() -> None:
    found, steps = found_in(Answers(TRUE), answers=0.5, error=0.025)
    assert steps == dict.fromkeys("abc", SVD)  # its error is 0.02, that of the fastest 0.04
    verdicts = {(row.structure, row.rank): row.verdict for row in found.choices[0].candidates}
    assert verdicts[SMALL] == Verdict.OVER_BOUND
    found, steps = found_in(Answers(TRUE), answers=0.5, error=0.001)
    assert steps == {}


def test_a_form_expected_to_harm_nothing_takes_no_other_with_it() -> None:
    forms = forms_of({name: {SMALL: (0.4, 0.0), SVD: (0.6, 0.2)} for name in "abc"})
    found, steps = found_in(Answers(TRUE), forms=forms, answers=0.5, error=0.025)
    assert steps == dict.fromkeys("abc", SVD)
    verdicts = {row.structure: row.verdict for row in found.choices[0].candidates}
    assert verdicts["tucker2"] == Verdict.OVER_BOUND


def test_where_nothing_is_faster_nothing_is_timed_or_judged() -> None:
    forms = forms_of({"a": {SVD: (0.97, 0.0)}, "b": {SVD: (1.2, 0.0)}})  # 3 % is within the noise
    answers, clock = Answers({}), Clock(FORMS, ["ab"])
    found, steps = found_in(answers, clock, forms=forms)
    assert (steps, answers.judged, clock.opened) == ({}, [], 0)
    assert found.answers is None
    assert found.choices[0].candidates[0].verdict == Verdict.SLOWER_THAN_DENSE
    found, steps = found_in(answers, Clock(FORMS, ["abc"], {"tucker2": 0.0, "svd": 0.0}))
    assert (steps, answers.judged) == ({}, [])  # nor is anything judged where all is passed over in place


def test_it_tells_how_far_it_is_and_stops() -> None:
    told: list[RunEvent] = []
    find_fastest(
        FORMS, plan_of("abc"), Answers(TRUE), Clock(FORMS, ["a", "bc"]), bounds=Bounds(),
        progress=Progress(told.append),
    )  # fmt: skip
    assert [event.data["fraction"] for event in told] == [0.0, 0.5]
    answers = Answers(TRUE)
    stopped = Progress(should_stop=lambda: len(answers.judged) == 2)
    with pytest.raises(RunCancelled):
        find_fastest(FORMS, plan_of("abc"), answers, None, bounds=Bounds(), progress=stopped)
    assert len(answers.judged) == 2


def test_what_is_noted_is_told_in_the_readers_language() -> None:
    told = note_text("Not timed as a whole: a list. " + " ".join(NOTES), translator("ja"))
    assert told.startswith("ネットワーク全体の推論時間は測定できませんでした： a list. 計測の範囲では")
    assert not any(note in told for note in NOTES)


def test_the_error_of_a_dense_layer_is_kept_where_another_form_was_chosen() -> None:
    class All(Answers):
        def judge(self, steps: Mapping[str, Step]) -> Judged:
            judged = super().judge(steps)
            return Judged(share=judged.share, errors={**dict.fromkeys("abc", 0.003), **judged.errors})

    found, steps = found_in(All(TRUE), answers=0.5)
    assert steps == dict.fromkeys("abc", SMALL)
    dense = next(row for row in found.choices[0].candidates if (row.structure, row.rank) == DENSE)
    assert dense.output_error == 0.003


def test_without_finite_answers_of_dense_there_is_nothing_to_compare_with() -> None:
    class Blown(Answers):
        def judge(self, steps: Mapping[str, Step]) -> Judged:
            return replace(super().judge(steps), share=1.0, finite=bool(steps))

    with pytest.raises(PlanError, match="with every layer dense the network's answers are not finite"):
        found_in(Blown(TRUE), answers=0.5)
