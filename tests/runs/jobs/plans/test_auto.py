"""The automatic plan from a model's name to its plan, by the command line too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qaf_core.cli.entry import main
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.runtime.measure_kit import Ratio
from qaf_core.errors import DataError, PlanError, RunCancelled
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import Progress
from qaf_core.runs.jobs.plans import auto
from qaf_core.runs.jobs.plans.auto import TABLE_FOLDER, make_auto_plan, ratios_from
from qaf_core.runs.store.request import PlanRequest
from qaf_core.search.latency_table import RATIOS
from qaf_core.search.selection import LayerChoice, Selection, WholeTimes
from qaf_core.search.sensitivity import curvature, measure, settings

DIGITS = PlanRequest(model="digits/cnn")


@pytest.fixture
def few_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer candidates to time and solve: a plan is chosen among them as among many."""
    monkeypatch.setattr(auto, "RATIOS", (2.0, 6.0))
    monkeypatch.setattr(settings, "RATIOS", (3.0,))
    monkeypatch.setattr(measure, "ANCHORS", 2)
    monkeypatch.setattr(curvature, "PROBES", 16)


@pytest.mark.usefixtures("few_ratios")
def test_the_command_makes_a_plan_that_can_be_compressed_with(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    options = (
        "--structure", "auto", "--bits", "6", "--answer-bound", "0.3", "--threads", "1",
    )  # fmt: skip
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
    printed = capsys.readouterr().out
    assert "output error" in printed
    answers = told["answers"]
    if answers is not None:  # on a busy machine nothing may be faster
        assert answers["images"] == 128
        assert answers["changed"] <= 0.3 + answers["changed_by_dense"]
        assert f"{100 * answers['changed']:.1f} % as planned" in printed
    assert main(["compress", "digits/cnn", *options, "--images", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == told["plan"]


BY_RULE = ("--structure", "cp", "--ratio", "2", "--bits", "4")


def test_other_structures_are_planned_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits/cnn", *BY_RULE, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["structure"] for row in told["plan"]["layers"]} == {"dense", "cp", "svd"}
    assert told["choices"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "how many bits"),
        (("--bits", "4", "--error-bound", "2"), "error bound out of range"),
        (("--bits", "4", "--answer-bound", "0"), "answer bound out of range"),
        (("--bits", "9"), "weight bits"),
        (("--bits", "4", "--ratio", "0.5"), "ratio out of range"),
        (("--bits", "4", "--structure", "pyramid", "--ratio", "2"), "unknown structure"),
        (("--bits", "4", "--threads", "0"), "threads"),
        ((*BY_RULE, "--preprocessing", "none.json"), "none.json"),
        (
            (*BY_RULE, "--data", "builtin"),
            "a plan that is measured has a use for this option; got --data",
        ),
        ((*BY_RULE, "--error-bound", "0.1", "--answer-bound", "0.1"), "got --error-bound, --answer-bound"),
        ((*BY_RULE, "--calibration", "builtin", "--threads", "1"), "got --threads, --calibration"),
        ((*BY_RULE, "--batch", "2"), "got --batch"),
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
            make_auto_plan(replace(DIGITS, **changes), workspace)  # type: ignore[arg-type]
    with pytest.raises(RunCancelled):
        make_auto_plan(replace(DIGITS, threads=1), workspace, progress=Progress(should_stop=lambda: True))


def test_a_least_ratio_leaves_the_larger_ones() -> None:
    assert ratios_from(None) == RATIOS
    assert ratios_from(3.5)[:2] == (3.5, 4.0)
    assert min(ratios_from(2.0)) == 2.0
    assert ratios_from(2.0).count(2.0) == 1


def test_what_was_found_is_kept_for_the_same_weights_images_and_bounds(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[PlanRequest] = []

    def keep(request: PlanRequest, *_: Any) -> Selection:
        found.append(request)
        plan = Plan(model="digits/cnn", layers=())
        whole = WholeTimes(dense_ms=1.0, planned_ms=1.0, ratio=Ratio(value=1.0, low=1.0, high=1.0))
        row = LayerChoice(name="a", structure="svd", rank=4, latency_ms=0.5, dense_ms=1.0, candidates=())
        return Selection(plan=plan, choices=(row,), whole=None if request.bits == 3 else whole)

    monkeypatch.setattr(auto, "_find", keep)
    state = build_model(find_model("digits/cnn")).state_dict()
    last = list(state)[-1]  # behind all layers that are judged
    weights = tmp_path / "another_head.safetensors"
    save_file({**state, last: state[last] + 1.0}, weights)
    others = tmp_path / "others.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(others, x=pixels, y=np.arange(64) % 10)
    others_of = replace(DIGITS, calibration=str(others))
    runs = [DIGITS, replace(DIGITS, weights=str(weights)), others_of, replace(DIGITS, bits=4)]
    for run in runs + runs:
        make_auto_plan(replace(run, threads=1), workspace)
    assert [request.weights for request in found] == [None, str(weights), None, None]
    assert [request.calibration for request in found] == [None, None, str(others), None]
    for _ in range(2):  # what could not be timed is sought another time
        make_auto_plan(replace(DIGITS, bits=3), workspace)
    assert len(found) == 6
    for file in (workspace / TABLE_FOLDER).glob("whole-*.json"):
        file.write_text('{"steps": []}')
    make_auto_plan(replace(DIGITS, threads=1), workspace)
    assert len(found) == 7


def test_without_labels_the_sensitivity_alone_is_known(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, few_ratios: None
) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("the images come without labels")

    monkeypatch.setattr(auto, "find_knowledge", refuse)
    found = make_auto_plan(replace(DIGITS, threads=1, answer_bound=0.3), workspace)
    assert [choice.name for choice in found.choices] == ["features.3", "features.7", "classifier.0"]
    assert all(row.harm is not None for choice in found.choices for row in choice.candidates)


def test_without_labels_harm_is_measured_on_images_in_mixed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set sorted by class would else be known by its first classes only."""
    measured: list[torch.Tensor] = []

    def refuse(*_: object) -> None:
        raise DataError("no labels")

    monkeypatch.setattr(auto, "find_knowledge", refuse)
    monkeypatch.setattr(
        "qaf_core.search.sensitivity.measure.measure_sensitivity",
        lambda model, inventory, images, **_: measured.append(images),
    )
    images = torch.arange(64.0).reshape(64, 1, 1, 1)
    given: Any = SimpleNamespace(model=None, inventory=(), calibration=images)
    request = PlanRequest(model="digits/cnn", data="sample", bits=8)
    auto._expectations(request, given, tmp_path, Progress())
    assert sorted(measured[0].flatten().tolist()) == images.flatten().tolist()
    assert float(measured[0][:32].mean()) > float(images[:32].mean()) + 8
