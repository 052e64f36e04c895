"""The Decide page: criteria kept with the run, the verdict they come to, and every part in both languages."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import paired_answers

from dashboard.views.decide import draft
from qaf_core.files import ContentCache
from qaf_core.review.decision.criteria import Criterion, keep_criteria, read_criteria
from qaf_core.review.decision.economics import PRESETS, keep_assumptions, load_assumptions
from qaf_core.review.decision.risks import read_notes
from qaf_core.runs.evidence.predictions import keep_predictions
from qaf_core.runs.store.request import RobustnessRequest, RunRequest, StabilityRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

from .conftest import Draw, shown

HOSTILE = "<b onclick=x>![x](https://evil.example/a.png)</b>"
PARTS = ("verdict", "changes", "checks", "case", "risks", "report")


@pytest.fixture
def run_id(seeded_store: Store) -> str:
    """A finished run with its answers and a packed file."""
    result = dict(next(run for run in seeded_store.list_runs() if run.status == "completed").result)
    found = seeded_store.create_run(
        RunRequest(model="inspection/resnet20", plan=result["plan"], name=HOSTILE)
    )
    seeded_store.finish(found, "completed", {**result, "run_id": found})
    folder = seeded_store.run_folder(found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PACKED_NAME).write_bytes(b"packed")
    keep_predictions(folder, paired_answers(600, 5, 2, classes=("ok", HOSTILE, "pit")))
    return found


def html_of(test: Any) -> str:
    return "\n".join(str(block.proto.body) for block in test.get("html"))


def press(test: Any, key: str) -> Any:
    return next(button for button in test.button if str(button.key).endswith(key)).click()


def test_criteria_are_entered_kept_and_judged(draw: Draw, seeded_store: Store, run_id: str) -> None:
    test = draw("decide", run=run_id)
    assert "No criteria are set" in shown(test)
    press(test, "-add").run()
    number = next(row for row in test.number_input if "-limit-" in str(row.key))
    assert number.label == "Limit, points"
    number.set_value(5.0)
    next(row for row in test.text_input if str(row.key).endswith("-by")).set_value("Sato")
    press(test, "-keep").run()
    shown(test)
    kept = read_criteria(seeded_store.run_folder(run_id))
    assert [row.criteria for row in kept] == [(Criterion(kind="largest_drop", limit=0.05),)]
    assert kept[0].by == "Sato"
    assert "Recommended" in html_of(test)
    press(test, "-add").run()  # of another kind
    press(test, "-keep").run()
    assert {row.kind for row in read_criteria(seeded_store.run_folder(run_id))[-1].criteria} == {
        "largest_drop", "file_size"
    }  # fmt: skip


def limits(test: Any) -> list[float]:
    return [row.value for row in test.number_input if "-limit-" in str(row.key)]


def test_criteria_that_are_not_kept_yet_stand_in_the_address(
    draw: Draw, seeded_store: Store, run_id: str
) -> None:
    test = draw("decide", run=run_id)
    press(test, "-add").run()
    next(row for row in test.number_input if "-limit-" in str(row.key)).set_value(5.0).run()
    named = test.query_params["criteria"]
    assert limits(draw("decide", run=run_id, criteria=named)) == [5.0]
    other = draw("decide", run=run_id, criteria=named, part="risks")
    assert other.query_params["criteria"] == named
    other.segmented_control(key="decide-part").set_value("verdict").run()
    assert limits(other) == [5.0]
    test.segmented_control(key="decide-part").set_value("risks").run()
    test.segmented_control(key="decide-part").set_value("verdict").run()
    assert limits(test) == [5.0]
    press(test, "-keep").run()
    assert "criteria" not in test.query_params
    assert len(read_criteria(seeded_store.run_folder(run_id))) == 1


def test_who_sets_the_criteria_outlives_a_reload(draw: Draw, seeded_store: Store, run_id: str) -> None:
    def by(test: Any) -> Any:
        return next(row for row in test.text_input if str(row.key).endswith("-by"))

    keep_criteria(seeded_store.run_folder(run_id), [Criterion(kind="largest_drop", limit=0.05)], by="Sato")
    test = draw("decide", run=run_id)
    assert (by(test).value, "by" in test.query_params) == ("Sato", False)
    by(test).set_value("Suzuki").run()
    again = draw("decide", run=run_id, by=test.query_params["by"])
    assert by(again).value == "Suzuki"
    next(row for row in again.number_input if "-limit-" in str(row.key)).set_value(3.0).run()
    press(again, "-keep").run()
    assert read_criteria(seeded_store.run_folder(run_id))[-1].by == "Suzuki"
    assert "by" not in again.query_params


@pytest.mark.parametrize("named", ["0123456789ab", "../../secrets", "f" * 12])
def test_a_draft_that_is_none_is_told_and_left_out(
    draw: Draw, seeded_store: Store, run_id: str, named: str
) -> None:
    bad = {"run": run_id, "rows": [{"kind": "largest_drop", "limit": "much", "script": "x"}]}
    ContentCache(seeded_store.workspace.joinpath(*draft.FOLDER)).keep("f" * 12, bad)
    test = draw("decide", run=run_id, criteria=named)
    assert limits(test) == []
    assert "is left out" in shown(test)
    assert "criteria" not in test.query_params


def test_criteria_left_as_they_are_are_no_change(draw: Draw, seeded_store: Store, run_id: str) -> None:
    folder = seeded_store.run_folder(run_id)
    limits = {"largest_drop": 0.011, "file_size": 500.3, "energy": 0.0011}
    keep_criteria(folder, [Criterion(kind=kind, limit=limit) for kind, limit in limits.items()])
    press(draw("decide", run=run_id), "-keep").run()
    assert len(read_criteria(folder)) == 1


def test_a_class_that_the_images_do_not_have_stays_in_the_form(
    draw: Draw, seeded_store: Store, run_id: str
) -> None:
    folder = seeded_store.run_folder(run_id)
    asked = [Criterion(kind="accuracy_floor", limit=0.9, class_name="gone"),
             Criterion(kind="missed_defects", limit=0.1, ok_class="no such")]  # fmt: skip
    keep_criteria(folder, asked)
    test = draw("decide", run=run_id)
    assert "there is no class gone." in html_of(test)
    press(test, "-keep").run()
    assert [list(row.criteria) for row in read_criteria(folder)] == [asked]


def test_runs_that_are_not_there_are_said_and_none_is_shown_instead(
    draw: Draw, seeded_store: Store, run_id: str
) -> None:
    unknown = "20200101-000000-abcdef"
    test = draw("decide", run=unknown)
    for _time in range(2):
        assert f"There is no run {unknown}" in shown(test)
        assert test.multiselect(key="decide-runs").value == []
        test.run()
    test = draw("decide")
    test.query_params["run"] = [run_id, unknown]
    assert f"There is no run {unknown}" in shown(test.run())


def test_two_criteria_on_the_same_are_refused_at_the_form(
    draw: Draw, seeded_store: Store, run_id: str
) -> None:
    test = draw("decide", run=run_id)
    for _time in range(2):
        press(test, "-add").run()
    second = [row for row in test.selectbox if str(row.key).endswith("-kind")][1]
    second.set_value("largest_drop").run()
    press(test, "-keep").run()
    assert "two criteria limit the same" in shown(test)
    assert read_criteria(seeded_store.run_folder(run_id)) == ()


def test_criteria_may_be_set_before_the_result_is_known(draw: Draw, store: Store) -> None:
    waiting = store.create_run(RunRequest(model="inspection/resnet20"))
    test = draw("decide", run=waiting)
    assert "before the result was known" in shown(test)
    press(test, "-add").run()
    press(test, "-keep").run()
    shown(test)
    assert len(read_criteria(store.run_folder(waiting))) == 1


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_part_is_drawn_and_nothing_of_hostile_names_runs(
    draw: Draw, seeded_store: Store, run_id: str, language: str
) -> None:
    folder = seeded_store.run_folder(run_id)
    keep_criteria(folder, [Criterion(kind="missed_defects", limit=0.2, ok_class="ok"),
                           Criterion(kind="largest_drop", limit=0.001, class_name=HOSTILE)])  # fmt: skip
    keep_assumptions(folder, PRESETS["example_line"])
    for part in PARTS:
        test = draw("decide", run=run_id, part=part, lang=language)
        text = shown(test)
        assert "<b onclick" not in html_of(test)
        assert ("採否判断" if language == "ja" else "Decide") in text
    assert ("会議用の要約" in shown(draw("decide", run=run_id, part="risks", lang=language))) == (
        language == "ja"
    )


def test_what_is_missing_is_asked_for_as_jobs(draw: Draw, seeded_store: Store, run_id: str) -> None:
    test = draw("decide", run=run_id, part="checks")
    press(test, "ask-robustness").run()
    press(test, "ask-stability").run()
    assert "Waiting for a free place" in shown(test)
    jobs = {kind: seeded_store.last_job(kind, run_id) for kind in ("robustness", "stability")}
    assert isinstance(jobs["robustness"] and jobs["robustness"].request, RobustnessRequest)
    assert isinstance(jobs["stability"] and jobs["stability"].request, StabilityRequest)
    (seeded_store.run_folder(run_id) / "predictions.npz").unlink()
    test = draw("decide", run=run_id, part="changes")
    press(test, "ask-answers").run()
    assert seeded_store.last_job("answers", run_id) is not None


def test_a_case_begins_with_an_example(draw: Draw, seeded_store: Store, run_id: str) -> None:
    test = draw("decide", run=run_id, part="case")
    assert "Nothing is assumed yet" in shown(test)
    press(test, "preset-example_line").run()
    assert "Saved a month" in shown(test)
    assert load_assumptions(seeded_store.run_folder(run_id)) == PRESETS["example_line"]


def test_owners_and_decision_are_kept(draw: Draw, seeded_store: Store, run_id: str) -> None:
    test = draw("decide", run=run_id, part="risks")
    owner = next(row for row in test.text_input if str(row.key).startswith("owner-"))
    owner.set_value("Sato")
    next(row for row in test.text_area if str(row.key).startswith("notes-")).set_value("Ask {the} line.")
    next(button for button in test.button if button.label == "Save").click().run()
    shown(test)
    notes = read_notes(seeded_store.run_folder(run_id))
    assert (list(notes.owners.values()), notes.notes) == (["Sato"], "Ask {the} line.")
    assert notes.signers == ()


def test_files_that_go_while_they_are_looked_at_are_no_fault(
    draw: Draw, seeded_store: Store, run_id: str
) -> None:
    (seeded_store.run_folder(run_id) / "gone.part").symlink_to("nowhere")
    assert "What the network must hold" in shown(draw("decide", run=run_id))
