"""The automatic plan from a model's name to its plan, by the command line too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qaf_core.cli import main
from qaf_core.deploy.auto_plan import (
    TABLE_FOLDER,
    AutoRequest,
    choose_as_a_whole,
    make_auto_plan,
    ratios_from,
)
from qaf_core.deploy.layer_table import RATIOS
from qaf_core.errors import ModelError, PlanError, RunCancelled
from qaf_core.network.plan import LayerPlan, Plan
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.selection import Candidate, LayerChoice, Selection, Step
from qaf_core.runs.request import RunRequest

DIGITS = RunRequest(model="digits/cnn")


def test_the_command_makes_a_plan_that_can_be_compressed_with(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    options = ("--structure", "auto", "--bits", "6", "--error-bound", "0.6", "--threads", "1")
    assert main(["plan", "digits/cnn", *options, "--out", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"] == json.loads(file.read_text(encoding="utf-8"))
    names = [choice["name"] for choice in told["choices"]]
    assert names == ["features.3", "features.7", "classifier.0"]
    for choice in told["choices"]:
        assert choice["candidates"][0]["latency_ms"] <= choice["latency_ms"] <= choice["dense_ms"]
        assert sum(candidate["verdict"] == "chosen" for candidate in choice["candidates"]) == 1
    assert list((workspace / TABLE_FOLDER).glob("layers-*.json"))
    assert Plan.from_json(file.read_text(encoding="utf-8")).layer("features.0").structure == "dense"
    # What was timed and solved before is found again: now as a table, and as the plan of a run.
    assert main(["plan", "digits/cnn", *options]) == 0
    assert "output error" in capsys.readouterr().out
    assert main(["compress", "digits/cnn", *options, "--images", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == told["plan"]


def test_other_structures_are_planned_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits/cnn", "--structure", "cp", "--ratio", "2", "--bits", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["structure"] for row in told["plan"]["layers"]} == {"dense", "cp", "svd"}
    assert told["choices"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "how many bits"),
        (("--bits", "4", "--error-bound", "2"), "error bound out of range"),
        (("--bits", "9"), "weight bits"),
        (("--bits", "4", "--ratio", "0.5"), "ratio out of range"),
        (("--bits", "4", "--structure", "pyramid", "--ratio", "2"), "unknown structure"),
        (("--bits", "4", "--threads", "0"), "threads"),
    ],
)
def test_bad_options_are_one_line(
    workspace: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main(["plan", "digits/cnn", *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert message in told.err


def test_numbers_out_of_range_are_refused_before_anything_is_loaded(workspace: Path) -> None:
    for changes in ({"threads": 0}, {"batch": 0}, {"least_ratio": 0.5}):
        with pytest.raises(PlanError):
            make_auto_plan(AutoRequest(run=DIGITS, **changes), workspace)  # type: ignore[arg-type]
    with pytest.raises(RunCancelled):
        make_auto_plan(AutoRequest(run=DIGITS, threads=1), workspace, should_stop=lambda: True)


def test_a_least_ratio_leaves_the_larger_ones() -> None:
    assert ratios_from(None) == RATIOS
    assert ratios_from(3.5)[:2] == (3.5, 4.0)
    assert min(ratios_from(2.0)) == 2.0
    assert ratios_from(2.0).count(2.0) == 1


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
    found = choose_as_a_whole(chosen("abc"), open_network, tmp_path, ["machine"], on_event=told.append)
    assert [row.structure for row in found.plan.layers] == ["dense", "svd", "svd"]
    assert [row.rank for row in found.plan.layers] == [None, 4, 4]
    assert [(choice.structure, choice.latency_ms) for choice in found.choices] == [
        ("dense", 1.0), ("svd", 0.6), ("svd", 0.6)
    ]  # fmt: skip
    verdicts = [[candidate.verdict for candidate in choice.candidates] for choice in found.choices]
    slower = "inside the network slower than the chosen one, or as fast with more error"
    assert verdicts == [[slower, slower, "chosen"], [slower, "chosen", slower], [slower, "chosen", slower]]
    assert [event.data["fraction"] for event in told] == [0.0, 0.5]
    assert found.whole is not None
    assert found.to_dict()["whole"]["dense_ms"] == pytest.approx(10.0)
    assert found.whole["planned_ms"] == pytest.approx(6.0)
    assert found.whole["ratio"]["low"] <= found.whole["ratio"]["value"] == pytest.approx(0.6, rel=0.01)
    again = choose_as_a_whole(chosen("abc"), open_network, tmp_path, ["machine"])
    assert again == found
    assert len(opened) == 1
    choose_as_a_whole(chosen("abc"), open_network, tmp_path, ["another machine"])
    assert len(opened) == 2


def test_a_whole_that_cannot_be_timed_keeps_the_plan(tmp_path: Path) -> None:
    def refuse() -> Whole:
        raise ModelError("the network's outputs cannot be exported", got="a list")

    kept = choose_as_a_whole(chosen("ab"), refuse, tmp_path, ["no whole"])
    assert kept.plan == chosen("ab").plan
    assert kept.note.startswith("Not timed as a whole: the network's outputs cannot be exported")
    assert (kept.to_dict()["note"], kept.to_dict()["whole"]) == (kept.note, None)
    with pytest.raises(RunCancelled):
        choose_as_a_whole(chosen("ab"), refuse, tmp_path, [], should_stop=lambda: True)


@pytest.mark.parametrize(
    "damage", ["[]", '{"steps": [], "whole": {}}', '{"steps": {}, "whole": {}}', '{"steps": {"b": ["x"]}}']
)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    found = choose_as_a_whole(chosen("abc"), Whole, tmp_path, ["machine"])
    (file,) = tmp_path.glob("whole-*.json")
    file.write_text(damage)
    assert choose_as_a_whole(chosen("abc"), Whole, tmp_path, ["machine"]) == found


def test_a_plan_that_gains_nothing_as_a_whole_says_so(tmp_path: Path) -> None:
    class Unlucky(Whole):
        def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
            if "planned" in plans:
                return {key: np.linspace(9.9, 10.1, 50) for key in plans}
            return super().time(plans)

    found = choose_as_a_whole(chosen("abc"), Unlucky, tmp_path, [])
    assert found.note.startswith("The whole network is no faster than dense INT8")
    assert choose_as_a_whole(chosen("abc"), Unlucky, tmp_path, []).note == found.note


def test_layers_that_cannot_be_timed_in_place_keep_their_choice(tmp_path: Path) -> None:
    found = choose_as_a_whole(chosen("abz"), Whole, tmp_path, [])
    assert [choice.structure for choice in found.choices] == ["dense", "svd", "tucker2"]
    assert found.choices[2].candidates[0].verdict == "chosen"


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

    assert choose_as_a_whole(selection, refuse, tmp_path, []) == selection
