"""The automatic plan from a model's name to its plan, by the command line too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from qaf_core.cli import main
from qaf_core.deploy.auto_plan import (
    TABLE_FOLDER,
    AutoRequest,
    make_auto_plan,
    mend_in_place,
    ratios_from,
)
from qaf_core.deploy.layer_table import RATIOS
from qaf_core.errors import ModelError, PlanError, RunCancelled
from qaf_core.network.plan import LayerPlan, Plan
from qaf_core.pipeline.select import Candidate, LayerChoice, Selection
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
    slow = Candidate(structure="dense", rank=None, latency_ms=1.0, output_error=None, verdict="slower")
    choices = [
        LayerChoice(
            name=name, structure="tucker2", rank=(8, 8), latency_ms=0.5, dense_ms=1.0,
            candidates=(fast, slow),
        )
        for name in names
    ]  # fmt: skip
    return Selection(plan=Plan(model="test/net", layers=rows), choices=tuple(choices))


def test_layers_slower_in_place_go_back_to_dense_and_are_looked_at_once(tmp_path: Path) -> None:
    looks: list[list[str]] = []

    def look(plan: Plan) -> list[str]:
        looks.append([row.name for row in plan.layers if row.structure != "dense"])
        return [name for name in looks[-1] if name in ("a", "c")] if len(looks) == 1 else []

    found = mend_in_place(chosen("abc"), look, tmp_path, ["machine"])
    assert looks == [["a", "b", "c"], ["b"]]
    assert [row.structure for row in found.plan.layers] == ["dense", "tucker2", "dense"]
    assert [choice.structure for choice in found.choices] == ["dense", "tucker2", "dense"]
    verdicts = [candidate.verdict for candidate in found.choices[0].candidates]
    assert verdicts == ["slower than dense inside the network", "chosen"]
    assert found.choices[0].latency_ms == 1.0
    again = mend_in_place(chosen("abc"), look, tmp_path, ["machine"])
    assert again == found
    assert len(looks) == 2
    mend_in_place(chosen("abc"), look, tmp_path, ["another machine"])
    assert len(looks) == 3

    def refuse(_: Plan) -> list[str]:
        raise ModelError("the network's outputs cannot be exported", got="a list")

    kept = mend_in_place(chosen("ab"), refuse, tmp_path, ["no whole"])
    assert kept.plan == chosen("ab").plan
    assert kept.note.startswith("Not timed as a whole: the network's outputs cannot be exported")
    assert kept.to_dict()["note"] == kept.note
    with pytest.raises(RunCancelled):
        mend_in_place(chosen("ab"), look, tmp_path, [], should_stop=lambda: True)
