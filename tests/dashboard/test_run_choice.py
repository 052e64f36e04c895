"""A page shows the run its address names, or says why there is nothing of it; never another one's data."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.widgets import run_choice
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

from ..conftest import seed_finished_run, seed_plan
from .conftest import Draw, shown

UNKNOWN = "20200101-000000-abcdef"


def packed_run(store: Store, **fields: Any) -> str:
    """A finished run with a file that stands for its packed network; its id."""
    run_id = seed_finished_run(store, **fields)
    folder = store.run_folder(run_id)
    folder.mkdir(parents=True)
    (folder / PACKED_NAME).write_bytes(b"\0" * 1000)
    return run_id


def unfinished(store: Store, status: str) -> str:
    """A run that has come to nothing yet, or never will; its id."""
    run_id = store.create_run(RunRequest(model="inspection/resnet20", plan=seed_plan("cp", 2.0)))
    if status != "queued":
        store.finish(run_id, status)
    return run_id


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unknown", "There is no run 20200101-000000-abcdef in this workspace"),
        ("queued", "has not started yet"),
        ("interrupted", "was interrupted"),
        ("failed", "has failed"),
        ("cancelled", "was stopped"),
    ],
)
@pytest.mark.parametrize(
    ("page", "lacking"), [("export", "no compressed network"), ("layers", "None of its layers")]
)
def test_a_run_with_nothing_to_show_is_no_reason_to_show_another(
    draw: Draw, store: Store, state: str, said: str, page: str, lacking: str
) -> None:
    packed_run(store)
    asked = UNKNOWN if state == "unknown" else unfinished(store, state)
    test = draw(page, run=asked)
    text = shown(test)
    assert said in text
    assert (lacking in text) == (state != "unknown")
    assert test.selectbox[0].value is None
    assert not test.dataframe
    assert not test.get("download_button")
    assert "Error of each layer" not in text


def test_another_run_can_be_chosen_and_stands_in_the_address(draw: Draw, store: Store) -> None:
    other = packed_run(store)
    test = draw("export", run=UNKNOWN)
    test.selectbox[0].set_value(other).run()
    assert test.query_params["run"] in (other, [other])
    assert "What the file holds" in shown(test)


def test_pages_without_a_run_in_the_address_begin_with_the_one_looked_at_last(
    draw: Draw, store: Store
) -> None:
    packed_run(store)
    waiting = unfinished(store, "interrupted")
    test = draw("export")
    assert "What the file holds" in shown(test)
    test.session_state[run_choice.LAST_RUN_KEY] = waiting
    del test.query_params["run"]
    assert "was interrupted" in shown(test.run())


def test_a_partly_solved_run_is_marked_wherever_it_stands(draw: Draw, store: Store) -> None:
    run_id = packed_run(store, status="cancelled", done=2)
    part = "2 of 5 layers"
    listed = draw("run").dataframe[0].value
    assert listed["plan"][0] == f"{part} · keep 3, cp 2 · R 20 · W4 · A8"
    test = draw("tradeoffs")
    assert test.dataframe[0].value["plan"][0].startswith(part)
    assert "only a part of the layers" in shown(test)
    for page in ("layers", "export"):
        test = draw(page, run=run_id)
        assert f"{part} are compressed" in shown(test)
        assert part in test.selectbox[0].options[0]
    code = "\n".join(str(block.value) for block in test.code)
    assert f"inspection-resnet20-{run_id[-6:]}-2of5.safetensors" in code
    assert f"inspection-resnet20-{run_id[-6:]}-2of5-int8.onnx" in code


def test_nothing_is_made_of_a_model_that_is_not_here(draw: Draw, store: Store) -> None:
    seed_finished_run(store)
    run = store.list_runs()[0]
    for model, said in (("my/gone", "is not in this workspace"), ("mine.parts:make", "someone's own code")):
        run_id = store.create_run(RunRequest(model=model, plan=dict(run.plan_row)))
        store.finish(run_id, "completed", {**run.result, "run_id": run_id, "model": model})
        folder = store.run_folder(run_id)
        folder.mkdir(parents=True)
        (folder / PACKED_NAME).write_bytes(b"\0" * 1000)
        test = draw("export", run=run_id)
        text = shown(test)
        assert said in text
        assert "Make" not in text
        assert "Measure" not in text
        assert not test.code
        assert said in shown(draw("explore", run=run_id))
        text = shown(test := draw("run", run=run_id))
        assert "Start fine-tuning" not in text
        assert next(button for button in test.button if button.label == "Change and run again").disabled


def test_tradeoffs_of_a_model_without_runs_show_no_other_model(draw: Draw, store: Store) -> None:
    seed_finished_run(store)
    test = draw("tradeoffs", model="digits/cnn")
    assert "No run of digits/cnn has been measured" in shown(test)
    assert test.selectbox[0].value is None
    assert not test.dataframe
    test = draw("explore", model="no/such")
    assert "no/such" in shown(test)
    assert "There is no run" in shown(draw("explore", run=UNKNOWN))
