"""A user's own model: checked with recorded answers, mended, added, checked again, removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.state import catalogue
from dashboard.state.overrides import read_class_text
from dashboard.views.models import add_model
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import WEIGHT_SUFFIXES
from qaf_core.errors import QafError
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store.kinds import LIGHT
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import CheckRequest
from qaf_core.runs.store.store import Store

from .conftest import Answer, Draw, serve, shown

HOSTILE = ("![x](https://evil.example/a.png)", "<b>b</b>", ":red[x]", *(f"kind {n}" for n in range(7)))
PICTURE = "data:image/png;base64,iVBORw0KGgo="
SOUND = "Nothing is wrong with class order and preparation of images, as far as these images tell."
FIX = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "channel_order": "rgb", "scale": 255.0}

EXCHANGED = {
    "form": "red and blue exchanged (-2 to 2)", "n": 64, "value": 0.9, "gain": 0.0, "gain_ci95": [-0.1, 0.1],
    "agreement": 0.95,
}  # fmt: skip


def answer(**fields: Any) -> dict[str, Any]:
    """What ``qaf check --json --preview`` prints."""
    row = {"image": PICTURE, "label": HOSTILE[1], "predicted": HOSTILE[2], "right": False, "confidence": 0.7}
    return {
        "model": "cifar/resnet20", "value": 0.91, "ci95": [0.87, 0.94], "n": 256, "findings": [],
        "trials": [], "metric": "top1", "plausible": True, "preview": [row] * 9, "stored": {}, **fields,
    }  # fmt: skip


def finding(serious: bool = True, **fields: Any) -> dict[str, Any]:
    sentence = f"Normalisation seems to be wrong for {HOSTILE[0]}."
    remedy = "Prepare images so, with --preprocessing FILE."
    evidence = {"preprocessing": FIX}
    return {
        "kind": "normalisation", "sentence": sentence, "remedy": remedy, "serious": serious,
        "evidence": evidence, **fields,
    }  # fmt: skip


def judge(job: JobRecord) -> dict[str, Any]:
    """A check is right once the images are prepared as found."""
    asked = job.request
    wrong = {"value": 0.2, "findings": [finding()]}
    stored = {"weights": asked.weights, "data": asked.data}
    return answer(stored=stored, **({} if asked.preprocessing == FIX else wrong))


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network has the layers of the shipped ResNet-20."""
    rows = find_model("inspection/resnet20").card["inventory"]
    monkeypatch.setattr(catalogue.jobs, "wait_for", lambda *_: {"layers": rows})


@pytest.fixture
def weights(tmp_path: Path) -> str:
    shipped = find_model("inspection/resnet20").weights
    assert shipped is not None
    return str(shutil.copy(shipped, tmp_path / "mine.safetensors"))


def fill(test: AppTest, weights: str, data: Path) -> AppTest:
    test.text_input(key="add-model-name").set_value("my/parts")
    test.selectbox(key="add-model-base").set_value("cifar/resnet20")
    test.text_input(key="add-model-weights-path").set_value(weights)
    return test.text_input(key="add-model-data-path").set_value(str(data)).run()


def check(test: AppTest, store: Store, key: str = "check-model", answer: Answer = judge) -> CheckRequest:
    """Press a button that checks, answer, draw again; what was asked for."""
    test.button(key=key).click().run()
    (job,) = serve(store, answer)
    test.run()
    asked: CheckRequest = job.request
    return asked


def html_of(test: AppTest) -> str:
    return "\n".join(str(block.proto.body) for block in test.get("html"))


def test_a_check_needs_name_weights_and_images(draw: Draw) -> None:
    test = draw("models")
    assert "Still to give: a name, trained weights, labelled images." in shown(test)
    assert test.button(key="check-model").disabled
    test = fill(test, "/no/weights.safetensors", Path("/no/images"))
    assert not test.button(key="check-model").disabled


def test_a_wrong_preparation_is_mended_and_the_model_added(
    draw: Draw, store: Store, weights: str, tmp_path: Path, workspace: Path
) -> None:
    test = fill(draw("models"), weights, tmp_path)
    asked = check(test, store)
    text = shown(test)
    assert "The original is right on 20.0 %" in text
    assert "Normalisation seems to be wrong" in text
    assert "--preprocessing" not in text
    assert (asked.model, asked.weights, asked.name) == ("cifar/resnet20", weights, "my/parts")

    asked = check(test, store, "use-found-add-model")
    text = shown(test)
    assert asked.preprocessing == FIX
    assert "The original is right on 91.0 %" in text
    assert SOUND in text
    assert test.text_input(key="add-model-mean").value == "0.5, 0.5, 0.5"

    test.button(key="add-checked").click().run()
    assert "my/parts" in set(test.dataframe[0].value["model"])
    added = find_model("my/parts", workspace=workspace)
    assert added.preprocessing.mean == (0.5, 0.5, 0.5)
    assert added.data == str(tmp_path)


def test_what_is_typed_reaches_the_check(draw: Draw, store: Store, weights: str, tmp_path: Path) -> None:
    test = fill(draw("models"), weights, tmp_path)
    test.text_area(key="add-model-classes").set_value("\n".join(HOSTILE))
    test.text_input(key="add-model-mean").set_value("0.1, 0.2, 0.3")
    test.selectbox(key="add-model-order").set_value("bgr").run()
    asked = check(test, store)
    assert asked.preprocessing == {"channel_order": "bgr", "mean": [0.1, 0.2, 0.3]}
    assert read_class_text(asked.classes).splitlines() == list(HOSTILE)


def test_hostile_names_are_shown_as_they_stand(
    draw: Draw, store: Store, weights: str, tmp_path: Path
) -> None:
    test = fill(draw("models"), weights, tmp_path)
    check(test, store)
    warning = next(element.value for element in test.warning if "Normalisation" in element.value)
    assert "![x](" not in warning
    assert "!\\[x\\](https" in warning
    pictures = html_of(test)
    assert "&lt;b&gt;b&lt;/b&gt;" in pictures
    assert "<b>b</b>" not in pictures
    assert ":red[x]" in pictures  # plain HTML knows no directives


def test_a_check_shows_where_it_was_asked_for_and_the_same_check_is_shared(
    draw: Draw, store: Store, weights: str, tmp_path: Path
) -> None:
    first, second = draw("models"), draw("models")
    (images := tmp_path / "images").mkdir()
    asked = check(fill(first, weights, images), store)
    assert "The original is right" in shown(first)
    assert "The original is right" not in shown(second.run())
    fill(second, weights, images).button(key="check-model").click().run()
    assert "The original is right" in shown(second.run())
    assert serve(store, judge) == []
    place = "check-add-model"
    job = store.last_job("check", asked.model)
    assert job is not None
    assert job.id in first.query_params[place]
    reloaded = draw("models", **{place: job.id})
    assert "The original is right" in shown(reloaded)


def test_a_model_that_is_there_is_checked_and_mended(
    draw: Draw, store: Store, inspected: None, weights: str, tmp_path: Path, workspace: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(find_model("inspection/resnet20").classes))
    add_model.add_model(
        workspace, model_id="my/parts", base="cifar/resnet20", weights=weights, data=str(tmp_path),
        classes=names,
    )  # fmt: skip
    test = draw("models", model="my/parts")
    assert check(test, store, "check-listed").model == "my/parts"
    assert "The original is right on 20.0 %" in shown(test)
    assert not [button for button in test.button if button.key == "keep-found"]
    check(test, store, "use-found-models")
    test.button(key="keep-found").click().run()
    shown(test)
    kept = find_model("my/parts", workspace=workspace)
    assert (kept.preprocessing.mean, kept.classes[0]) == (
        (0.5, 0.5, 0.5),
        find_model("inspection/resnet20").classes[0],
    )


def test_a_shipped_model_is_checked(draw: Draw, store: Store) -> None:
    test = draw("models", model="digits/cnn")
    assert check(test, store, "check-listed").data == "builtin"
    shown(test)
    assert html_of(test).count("<figure") == 9
    assert not [button for button in test.button if str(button.key).startswith("use-found")]


@pytest.mark.parametrize(
    ("fields", "said", "unsaid"),
    [
        ({}, SOUND, "Cannot tell"),
        ({"trials": [EXCHANGED]}, f"(95.0 % the same on 64 images). {SOUND} Only whether", "seems"),
        ({"metric": "miou", "preview": []}, "Mean IoU of the original: 91.0 %", "is right on"),
        (
            {"split": "64 images calibrate, 192 others evaluate.", "skipped_count": 1,
             "skipped": [{"name": "a/broken.png", "reason": "it does not decode"}]},
            "1 image was left out", "wrong for",
        ),
        ({"findings": [finding(serious=False)]}, "Normalisation seems", SOUND),
    ],
)  # fmt: skip
def test_the_report_tells_all(
    draw: Draw, store: Store, fields: dict[str, Any], said: str, unsaid: str
) -> None:
    test = draw("models", model="digits/cnn")
    check(test, store, "check-listed", lambda _: answer(**fields))
    text = shown(test)
    assert said in text
    assert unsaid not in text


def test_a_refused_check_says_why(draw: Draw, store: Store) -> None:
    def refuse(_: JobRecord) -> dict[str, Any]:
        raise QafError("image :red[folder] is empty", got="<b>0</b> images")

    test = draw("models", model="digits/cnn")
    check(test, store, "check-listed", refuse)
    assert "image :red[folder] is empty; got <b>0</b> images." in shown(test)
    assert "\\:red\\[folder\\]" in test.error[0].value


def test_a_running_check_shows_where_it_is_and_can_be_stopped(draw: Draw, store: Store) -> None:
    test = draw("models", model="digits/cnn")
    test.button(key="check-listed").click().run()
    assert any("Waiting for a free place" in str(bar.proto.text) for bar in test.get("progress"))
    job_id = store.claim_next(os.getpid(), LIGHT)
    assert job_id is not None
    store.append_event(job_id, RunEvent(kind="stage", data={"stage": "check", "message": "Running"}))
    test.run()
    assert any("Running the original" in str(bar.proto.text) for bar in test.get("progress"))
    test.button(key=f"stop-check-{job_id}").click().run()
    assert store.cancel_requested(job_id)
    store.finish(job_id, "cancelled")
    assert "The check was stopped" in shown(test.run())


def test_another_check_stops_the_one_before(draw: Draw, store: Store, weights: str, tmp_path: Path) -> None:
    test = fill(draw("models"), weights, tmp_path)
    test.button(key="check-model").click().run()
    first = store.last_job("check", "cifar/resnet20")
    test.text_input(key="add-model-mean").set_value("0.5").run()
    test.button(key="check-model").click().run()
    second = store.last_job("check", "cifar/resnet20")
    assert first is not None
    assert second is not None
    assert store.job(first.id).status == "cancelled"  # type: ignore[union-attr]
    assert second.status == "queued"


def test_every_kind_of_weights_file_may_be_uploaded(draw: Draw) -> None:
    test = draw("models")
    kinds = {kind for uploader in test.get("file_uploader") for kind in uploader.proto.type}
    assert set(WEIGHT_SUFFIXES) | {".zip"} <= kinds


def test_explore_checks_own_images_before_a_run(
    draw: Draw, store: Store, inspected: None, weights: str, tmp_path: Path
) -> None:
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    assert test.button(key="check-choice").disabled
    names = "\n".join(find_model("inspection/resnet20").classes)
    test.text_area(key="own-classes").set_value(names)
    test.text_input(key="weights").set_value(weights)
    test.text_input(key="data-path").set_value(str(tmp_path)).run()
    check(test, store, "check-choice")
    assert "The original is right on 20.0 %" in shown(test)
    asked = check(test, store, "use-found-explore")
    assert "The original is right on 91.0 %" in shown(test)
    test.button(key="start-run").click().run()
    request = store.list_runs()[0].request
    assert request.preprocessing == asked.preprocessing == FIX
    assert read_class_text(request.classes) == names
    assert request.weights == weights
