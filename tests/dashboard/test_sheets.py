"""Explore's plan as it is edited: the address, steps back and forth, plans kept by name and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dashboard.state import address, sheets
from dashboard.views.explore import files
from qaf_core.errors import PlanError, WorkspaceError
from qaf_core.network.plan.types import Plan
from qaf_core.runs.store.store import Store

from .conftest import Draw, base_of, shown, table_rows, type_into, words

MODEL = "digits/cnn"
LAYER = "features.3"


def cell(test: Any, column: str) -> str:
    return str(next(row for row in table_rows(test) if row["layer"] == LAYER)[column])


def address_of(test: Any) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value[-1] for name, value in test.query_params.items()}


def test_an_address_brings_model_controls_and_edits_back(draw: Draw) -> None:
    test = draw("explore", model=MODEL)
    assert address_of(test) == {"model": MODEL}
    test.slider(key="ratio").set_value(3.1).run()
    test.button(key="use-sequential").click().run()
    type_into(test, LAYER, "rank", "12")
    type_into(test, LAYER, "bits", "nine")
    asked = address_of(test)
    assert asked == {"model": MODEL, "ratio": "3.1", "method": "sequential", "plan": asked["plan"]}
    assert len(asked["plan"]) == sheets.ID_LENGTH
    other = draw("explore", **asked)
    assert "bits must be a whole number" in shown(other)
    assert [cell(other, column) for column in sheets.COLUMNS] == ["cp", "12", "nine"]
    assert other.slider(key="ratio").value == 3.1
    assert address_of(other) == asked
    shown(draw("explore", model=MODEL, images="own", data="/no/such"))


@pytest.mark.parametrize("plan", ["", "../../x", "0" * 12, "x" * 400])
def test_an_unknown_plan_is_told_and_left_out(draw: Draw, plan: str) -> None:
    test = draw("explore", model=MODEL, plan=plan)
    assert "not known here" in shown(test)
    assert address_of(test) == {"model": MODEL}


def test_a_damaged_plan_is_told_and_left_out(draw: Draw, store: Store) -> None:
    test = type_into(draw("explore", model=MODEL), LAYER, "rank", "12")
    asked = address_of(test)
    path = store.workspace / sheets.FOLDER / sheets.DRAFTS / f"{asked['plan']}.json"
    for content in (
        {"model": MODEL, "base": {}, "edits": {}},
        {"model": MODEL, "base": None, "edits": 3},
        [],
    ):
        path.write_text(json.dumps(content))
        assert "not known here" in shown(draw("explore", **asked))
    assert "not known here" in shown(draw("explore", model="inspection/vgg", plan=asked["plan"]))


def test_steps_are_undone_and_done_again_controls_and_edits_alike(draw: Draw) -> None:
    test = draw("explore", model=MODEL)
    assert test.button(key="undo-plan").disabled
    first = cell(test, "rank")
    type_into(test, LAYER, "rank", "12")
    type_into(test, LAYER, "bits", "3")
    test.button(key="preset-aggressive").click().run()
    assert cell(test, "rank") != "12"
    assert "Undo (Ctrl+Z) brings it back" in test.toast[0].value
    aggressive = test.session_state["ratio"]
    test.button(key="undo-plan").click().run()
    assert [cell(test, column) for column in sheets.COLUMNS] == ["cp", "12", "3"]
    assert test.session_state["ratio"] != aggressive
    test.button(key="undo-plan").click().run()
    test.button(key="undo-plan").click().run()
    assert cell(test, "rank") == first
    assert test.button(key="undo-plan").disabled
    assert address_of(test) == {"model": MODEL}
    for _step in range(3):
        test.button(key="redo-plan").click().run()
    assert test.session_state["ratio"] == aggressive
    assert test.button(key="redo-plan").disabled
    assert not words(test).count("could not be drawn")


def test_going_back_brings_the_plan_of_that_address(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    test = draw("explore", model=MODEL)
    first = cell(test, "rank")
    type_into(test, LAYER, "rank", "12")
    asked = address_of(test)
    test.slider(key="ratio").set_value(3.1).run()
    context = type("Context", (), {"is_history_navigation": True})
    monkeypatch.setattr(address, "get_script_run_ctx", context)
    test.query_params.clear()
    for name, value in asked.items():
        test.query_params[name] = value
    assert cell(test.run(), "rank") == "12"
    assert test.slider(key="ratio").value == 2.0
    del test.query_params["plan"]
    assert cell(test.run(), "rank") == first
    del test.query_params["model"]
    assert "inspection" in str(test.run().session_state["model"])


def test_an_edit_is_taken_once_however_often_it_is_sent(draw: Draw) -> None:
    test = type_into(draw("explore", model=MODEL), LAYER, "rank", "12")
    test.button(key="undo-plan").click().run()
    assert cell(test.run(), "rank") != "12"


def test_plans_are_kept_by_name_loaded_and_deleted(draw: Draw, store: Store) -> None:
    test = type_into(draw("explore", model=MODEL), LAYER, "rank", "12")
    test.text_input(key="plan-name").set_value("../小さい plan")
    next(button for button in test.button if button.label == "Save").click().run()
    (path,) = (store.workspace / sheets.FOLDER).glob("*.json")
    assert path.name == "小さい plan.json"
    assert Plan.from_json(path.read_text()).layer(LAYER).rank == 12
    again = draw("explore", model=MODEL)
    assert again.selectbox(key="kept-plan").options == ["小さい plan"]
    again.button(key="load-plan").click().run()
    assert base_of(again, MODEL).layer(LAYER).rank == 12
    again.button(key="delete-plan").click().run()
    assert not path.exists()
    assert "No plan of this model is saved yet" in shown(again)
    shown(draw("explore", model="inspection/vgg"))


def test_a_plan_needs_a_name_and_damaged_files_are_no_plans(tmp_path: Path) -> None:
    plan = Plan(model="m", layers=())
    with pytest.raises(WorkspaceError, match="a plan needs a name"):
        sheets.keep_plan(tmp_path, " ./ ", plan)
    kept = sheets.keep_plan(tmp_path, "a" * 300, plan)
    (tmp_path / sheets.FOLDER / "damaged.json").write_text("{")
    assert sheets.named_plans(tmp_path, "m") == {kept: plan}
    assert sheets.named_plans(tmp_path, "n") == {}
    sheets.delete_plans(tmp_path, [kept, "gone", "../x"])
    assert sheets.named_plans(tmp_path, "m") == {}


def test_a_brought_plan_must_name_these_layers(draw: Draw) -> None:
    test = draw("explore", model=MODEL)
    rows = [{"name": row["layer"], "structure": "keep"} for row in table_rows(test)]
    base = Plan.from_dict({"model": "other", "layers": rows})
    draft = type("Draft", (), {"layers": base.layers, "base": base})
    assert files.fitting(base.to_json().encode(), draft) == base
    more = [*rows, {"name": "x", "structure": "keep"}]
    wrong = [json.dumps({"model": "m", "layers": layers}).encode() for layers in (rows[1:], more)]
    for content in (b"{", b"\xff", *wrong):
        with pytest.raises(PlanError):
            files.fitting(content, draft)
