"""Plans chosen by the time and the answers of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qaf_core.errors import ModelError, RunCancelled
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.records import to_plain
from qaf_core.search.selection import AnswerShares, Candidate, LayerChoice, Selection, Step
from qaf_core.search.whole_plan import choose_as_a_whole

SLOWER = "inside the network slower than the chosen one, or as fast with more error"
TOO_MANY = "too many answers would change, or slower than the chosen one"


class SameAnswers:
    """No answer changes but by layers that are said to change some."""

    images = 100

    def __init__(self, *, by_layer: Mapping[str, float] | None = None, by_dense: float = 0.0) -> None:
        self._by_layer, self._by_dense = by_layer or {}, by_dense
        self.compared: list[dict[str, Step]] = []

    def can_count(self) -> bool:
        return True

    def harm(self, layer: str, step: Step) -> float:
        return 0.0 if step[0] == "dense" else self._by_layer.get(layer, 0.0)

    def changed(self, steps: Mapping[str, Step]) -> float:
        self.compared.append(dict(steps))
        return sum(self.harm(name, step) for name, step in steps.items())

    def changed_by(self, run: Callable[..., Any]) -> float:
        run(np.zeros((1, 3, 2, 2), np.float32))
        return self._by_dense


class NoAnswers(SameAnswers):
    def can_count(self) -> bool:
        return False


def chosen(names: Sequence[str]) -> Selection:
    """A selection in which all of these layers are Tucker-2."""
    rows = tuple(LayerPlan(name=name, structure="tucker2", rank=(8, 8), bits=8) for name in names)
    fast = Candidate(structure="tucker2", rank=(8, 8), latency_ms=0.5, output_error=0.1, verdict="chosen")
    two = Candidate(
        structure="svd", rank=4, latency_ms=0.6, output_error=0.1, verdict="slower than the chosen one"
    )
    slow = Candidate(structure="dense", rank=None, latency_ms=1.0, output_error=None, verdict="slower")
    choices = [
        LayerChoice(
            name=name, structure="tucker2", rank=(8, 8), latency_ms=0.5, dense_ms=1.0,
            candidates=(fast, two, slow),
        )
        for name in names
    ]  # fmt: skip
    return Selection(plan=Plan(model="test/net", layers=rows), choices=tuple(choices))


class Whole:
    """A network in which layer "a" is fastest dense and all others with two factors."""

    kinds: Sequence[Sequence[str]] = (("a",), ("b", "c"))

    def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return images

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
        gains = {"tucker2": 1.0, "svd": 2.0}
        found = {}
        for key, plan in plans.items():
            faster = sum((-1 if name == "a" else 1) * gains.get(step[0], 0.0) for name, step in plan.items())
            found[key] = np.linspace(9.9, 10.1, 50) - faster
        return found


def test_structures_are_chosen_once_by_the_time_of_the_whole(tmp_path: Path) -> None:
    opened: list[Whole] = []

    def open_network() -> Whole:
        opened.append(Whole())
        return opened[-1]

    told: list[RunEvent] = []
    found = choose_as_a_whole(
        chosen("abc"), open_network, SameAnswers(), tmp_path, ["machine"], progress=Progress(told.append)
    )
    assert [row.structure for row in found.plan.layers] == ["dense", "svd", "svd"]
    assert [row.rank for row in found.plan.layers] == [None, 4, 4]
    assert [(choice.structure, choice.latency_ms) for choice in found.choices] == [
        ("dense", 1.0), ("svd", 0.6), ("svd", 0.6)
    ]  # fmt: skip
    verdicts = [[candidate.verdict for candidate in choice.candidates] for choice in found.choices]
    assert verdicts == [[SLOWER, SLOWER, "chosen"], [SLOWER, "chosen", SLOWER], [SLOWER, "chosen", SLOWER]]
    assert [event.data["fraction"] for event in told] == [0.0, 0.5, 1.0]
    assert found.answers == AnswerShares(changed=0.0, changed_by_dense=0.0, limit=0.02, images=100)
    assert found.whole is not None
    assert to_plain(found)["whole"]["dense_ms"] == pytest.approx(10.0)
    assert found.whole.planned_ms == pytest.approx(6.0)
    assert found.whole.ratio.low <= found.whole.ratio.value == pytest.approx(0.6, rel=0.01)
    again = choose_as_a_whole(chosen("abc"), open_network, SameAnswers(), tmp_path, ["machine"])
    assert again == found
    assert len(opened) == 1
    choose_as_a_whole(chosen("abc"), open_network, SameAnswers(), tmp_path, ["another machine"])
    assert len(opened) == 2


def test_a_whole_that_cannot_be_timed_keeps_the_plan(tmp_path: Path) -> None:
    def refuse() -> Whole:
        raise ModelError("the network's outputs cannot be exported", got="a list")

    kept = choose_as_a_whole(chosen("ab"), refuse, SameAnswers(), tmp_path, ["no whole"])
    assert kept.plan == chosen("ab").plan
    assert kept.note.startswith("Not timed as a whole: the network's outputs cannot be exported")
    assert kept.answers is not None
    assert (to_plain(kept)["note"], to_plain(kept)["whole"]) == (kept.note, None)
    with pytest.raises(RunCancelled):
        choose_as_a_whole(
            chosen("ab"), refuse, SameAnswers(), tmp_path, [], progress=Progress(should_stop=lambda: True)
        )


@pytest.mark.parametrize(
    "damage", ["[]", '{"steps": [], "whole": {}}', '{"steps": {}, "whole": {}}', '{"steps": {"b": ["x"]}}']
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    found = choose_as_a_whole(chosen("abc"), Whole, SameAnswers(), tmp_path, ["machine"])
    (file,) = tmp_path.glob("whole-*.json")
    file.write_text(damage)
    assert choose_as_a_whole(chosen("abc"), Whole, SameAnswers(), tmp_path, ["machine"]) == found


def test_a_plan_that_gains_nothing_as_a_whole_says_so(tmp_path: Path) -> None:
    class Unlucky(Whole):
        def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
            if "planned" in plans:
                return {key: np.linspace(9.9, 10.1, 50) for key in plans}
            return super().time(plans)

    found = choose_as_a_whole(chosen("abc"), Unlucky, SameAnswers(), tmp_path, [])
    assert found.note.startswith("The whole network is no faster than dense INT8")
    uncounted = choose_as_a_whole(chosen("abc"), Unlucky, NoAnswers(), tmp_path, ["uncounted"])
    assert "not counted" in uncounted.note
    assert "no faster than dense INT8" in uncounted.note
    assert choose_as_a_whole(chosen("abc"), Unlucky, SameAnswers(), tmp_path, []).note == found.note


def test_layers_that_cannot_be_timed_in_place_keep_their_choice(tmp_path: Path) -> None:
    found = choose_as_a_whole(chosen("abz"), Whole, SameAnswers(), tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["dense", "svd", "tucker2"]
    verdicts = [candidate.verdict for candidate in found.choices[2].candidates]
    assert verdicts == ["chosen", "slower than the chosen one", "slower"]  # as they were


def test_where_nothing_fits_nothing_is_timed(tmp_path: Path) -> None:
    row = LayerPlan(name="a", structure="dense", rank=None, bits=8)
    dense = Candidate(structure="dense", rank=None, latency_ms=1.0, output_error=None, verdict="chosen")
    over = Candidate(structure="cp", rank=4, latency_ms=0.5, output_error=0.3, verdict="error over the bound")
    choice = LayerChoice(
        name="a", structure="dense", rank=None, latency_ms=1.0, dense_ms=1.0, candidates=(over, dense)
    )
    selection = Selection(plan=Plan(model="test/net", layers=(row,)), choices=(choice,))

    def refuse() -> Whole:
        raise AssertionError

    assert choose_as_a_whole(selection, refuse, SameAnswers(), tmp_path, []) == selection


@pytest.mark.parametrize("as_a_whole", [True, False])
def test_what_changes_too_many_answers_is_given_up(tmp_path: Path, as_a_whole: bool) -> None:
    answers = SameAnswers(by_layer={"b": 0.03, "c": 0.01})
    open_network = Whole if as_a_whole else None
    found = choose_as_a_whole(chosen("bc"), open_network, answers, tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["dense", "svd" if as_a_whole else "tucker2"]
    assert [row.structure for row in found.plan.layers] == [choice.structure for choice in found.choices]
    assert [candidate.verdict for candidate in found.choices[0].candidates] == [TOO_MANY, TOO_MANY, "chosen"]
    assert found.answers is not None
    assert to_plain(found)["answers"]["changed"] == 0.01
    assert (found.whole is not None) == as_a_whole
    assert found.note == ""
    if found.whole is not None:  # that of the plan as it is in the end
        assert found.whole.planned_ms == pytest.approx(8.0)
    compared = len(answers.compared)
    assert choose_as_a_whole(chosen("bc"), open_network, answers, tmp_path, []) == found
    assert len(answers.compared) == compared
    allowed = choose_as_a_whole(chosen("bc"), open_network, answers, tmp_path, [], answer_bound=0.05)
    assert "dense" not in [choice.structure for choice in allowed.choices]


def test_what_dense_int8_changes_is_not_held_against_a_plan(tmp_path: Path) -> None:
    answers = SameAnswers(by_layer={"b": 0.03, "c": 0.01}, by_dense=0.03)
    found = choose_as_a_whole(chosen("bc"), Whole, answers, tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["svd", "svd"]
    assert found.answers == AnswerShares(changed=0.04, changed_by_dense=0.03, limit=0.02, images=100)


def test_where_every_form_changes_too_many_answers_the_plan_is_dense_and_says_so(tmp_path: Path) -> None:
    answers = SameAnswers(by_layer={"b": 0.5, "c": 0.5})
    found = choose_as_a_whole(chosen("bc"), Whole, answers, tmp_path, [])
    assert {choice.structure for choice in found.choices} == {"dense"}
    assert found.note.startswith("No faster plan that was tried changes few enough answers")
    assert found.answers is not None
    assert found.answers.changed is None
    assert choose_as_a_whole(chosen("bc"), Whole, answers, tmp_path, []) == found


def test_outputs_that_are_no_answers_bound_nothing(tmp_path: Path) -> None:
    answers = NoAnswers(by_layer={"b": 0.5})
    found = choose_as_a_whole(chosen("bc"), Whole, answers, tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["svd", "svd"]
    assert found.answers is None
    assert "not counted" in found.note


def test_what_cannot_be_run_later_on_ends_in_a_plan(tmp_path: Path) -> None:
    class Breaking(Whole):
        def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            raise ModelError("ONNX Runtime cannot run the network")

        def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
            if "planned" in plans:
                raise ModelError("ONNX Runtime cannot run the network")
            return super().time(plans)

    found = choose_as_a_whole(chosen("bc"), Breaking, SameAnswers(), tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["svd", "svd"]
    assert found.whole is None
    assert found.answers is not None
    assert found.answers.changed_by_dense is None
    assert not list(tmp_path.glob("whole-*"))  # it may have been a fault that passes
    assert choose_as_a_whole(chosen("bc"), Whole, SameAnswers(), tmp_path, []).whole is not None
