"""Speed given up where it costs the most answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.search.refine import Form, back_off
from qaf_core.search.selection import DENSE, Step


class Blame:
    """Answers change as the root of the summed divergences, and by a share that no plan can help."""

    def __init__(self, harms: Mapping[tuple[str, str], float], always: float = 0.0) -> None:
        self._harms, self._always = harms, always
        self.rounds = 0

    def harm(self, layer: str, step: Step) -> float:
        return 0.0 if step == DENSE else self._harms.get((layer, step[0]), 0.0)

    def changed(self, steps: Mapping[str, Step]) -> float:
        self.rounds += 1
        total = math.fsum(self.harm(name, step) for name, step in steps.items())
        return min(self._always + 0.1 * math.sqrt(total), 1.0)


def forms(gains: Mapping[str, float], names: str) -> list[Form]:
    """A kind's forms by structure, with the whole kind's gain; dense gains nothing."""
    rows = [Form(steps=dict.fromkeys(names, DENSE), gain_ms=0.0)]
    for structure, gain in gains.items():
        step: Step = (structure, 4)
        rows.append(Form(steps=dict.fromkeys(names, step), gain_ms=gain))
    return rows


def steps_of(structures: Mapping[str, str]) -> dict[str, Step]:
    return {name: DENSE if structure == "dense" else (structure, 4) for name, structure in structures.items()}


def test_a_plan_that_changes_few_answers_is_left_alone() -> None:
    chosen = steps_of({"a": "cp", "b": "svd"})
    judge = Blame({("a", "cp"): 0.01, ("b", "svd"): 0.02})
    assert back_off(chosen, [forms({"cp": 1.0}, "a"), forms({"svd": 1.0}, "b")], judge, 0.1) == (
        chosen, pytest.approx(0.1 * math.sqrt(0.03))
    )  # fmt: skip
    assert judge.rounds == 1


def test_the_limit_itself_is_within_it() -> None:
    class Counted(Blame):
        def changed(self, steps: Mapping[str, Step]) -> float:
            return 1.0 - 98 / 100  # a little above 0.02

    chosen = steps_of({"a": "cp"})
    assert back_off(chosen, [forms({"cp": 1.0}, "a")], Counted({("a", "cp"): 0.1}), 0.02)[0] == chosen


def test_the_layer_that_costs_most_answers_for_its_time_goes_first() -> None:
    kinds = [forms({"cp": 0.1}, "a"), forms({"cp": 1.0}, "b"), forms({"cp": 1.0}, "c")]
    judge = Blame({("a", "cp"): 0.5, ("b", "cp"): 0.5, ("c", "cp"): 0.1})
    found, share = back_off(steps_of({"a": "cp", "b": "cp", "c": "cp"}), kinds, judge, 0.08)
    assert found == steps_of({"a": "dense", "b": "cp", "c": "cp"})
    assert share == pytest.approx(0.1 * math.sqrt(0.6))


def test_a_slower_form_of_less_harm_comes_before_dense() -> None:
    kinds = [forms({"cp": 1.0, "svd": 0.9}, "ab")]
    judge = Blame({("a", "cp"): 0.5, ("b", "cp"): 0.5, ("a", "svd"): 0.1, ("b", "svd"): 0.1})
    found, _ = back_off(steps_of({"a": "cp", "b": "cp"}), kinds, judge, 0.07)
    assert found == steps_of({"a": "svd", "b": "svd"})


def test_one_layer_of_a_kind_may_go_alone() -> None:
    kinds = [forms({"cp": 1.0}, "ab")]
    judge = Blame({("a", "cp"): 0.5, ("b", "cp"): 0.01})
    found, _ = back_off(steps_of({"a": "cp", "b": "cp"}), kinds, judge, 0.05)
    assert found == steps_of({"a": "dense", "b": "cp"})


def test_what_no_plan_can_help_ends_dense_in_few_rounds() -> None:
    names = "abcdefghij"
    kinds = [forms({"cp": 1.0}, name) for name in names]
    judge = Blame({(name, "cp"): 0.01 for name in names}, always=0.5)
    assert back_off(steps_of(dict.fromkeys(names, "cp")), kinds, judge, 0.1) == (
        steps_of(dict.fromkeys(names, "dense")), None
    )  # fmt: skip
    assert judge.rounds <= 6


def test_a_dense_plan_is_not_compared() -> None:
    judge = Blame({})
    assert back_off({"a": DENSE}, [forms({"cp": 1.0}, "a")], judge, 0.1) == ({"a": DENSE}, None)
    assert judge.rounds == 0


def test_the_chosen_form_must_be_among_the_kind() -> None:
    with pytest.raises(ValueError, match="none of a kind's forms"):
        back_off({"a": ("cp", 5)}, [forms({"cp": 1.0}, "a")], Blame({}), 0.1)


shares = st.floats(0.0, 1.0)


@given(
    gains=st.lists(st.fixed_dictionaries({"cp": shares, "svd": shares}), min_size=1, max_size=4),
    harms=st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(("cp", "svd"))), shares),
    limit=st.floats(0.001, 0.3),
    always=st.sampled_from((0.0, 0.05)),
)
def test_the_limit_holds_or_everything_is_dense(
    gains: Sequence[Mapping[str, float]], harms: Mapping[tuple[str, str], float], limit: float, always: float
) -> None:
    names = [pair for pair, _ in zip(("ab", "cd", "ef", "gh"), gains, strict=False)]
    kinds = [forms(row, pair) for row, pair in zip(gains, names, strict=True)]
    chosen = steps_of({name: "cp" for pair in names for name in pair})
    judge = Blame(harms, always)
    found, share = back_off(chosen, kinds, judge, limit)
    assert set(found) == set(chosen)
    if share is None:
        assert set(found.values()) == {DENSE}
    else:
        assert share <= limit + 1e-9
        assert share == judge.changed(found)


@given(
    gains=st.lists(st.floats(0.1, 1.0), min_size=2, max_size=5),
    harms=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
    limit=st.floats(0.02, 0.15),
)
def test_it_is_near_the_fastest_plan_within_the_limit(
    gains: Sequence[float], harms: Sequence[float], limit: float
) -> None:
    """Against all plans tried out: what is given up beyond the best is less than two layers' gains."""
    names = "abcde"[: len(gains)]
    kinds = [forms({"cp": gain}, name) for gain, name in zip(gains, names, strict=True)]
    judge = Blame({(name, "cp"): harm for name, harm in zip(names, harms, strict=False)})
    found, _ = back_off(steps_of(dict.fromkeys(names, "cp")), kinds, judge, limit)

    def gain(steps: Mapping[str, Step]) -> float:
        return sum(gain for name, gain in zip(names, gains, strict=True) if steps[name] != DENSE)

    plans = [
        steps_of(dict(zip(names, structures, strict=True)))
        for structures in product(("cp", "dense"), repeat=len(names))
    ]
    best = max(gain(plan) for plan in plans if judge.changed(plan) <= limit)
    assert gain(found) >= best - 2 * max(gains) - 1e-9
