"""A user's own model: checked with recorded answers, mended, added, checked again, removed."""

from __future__ import annotations

import io
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.state import catalogue, jobs
from dashboard.state.jobs import Job
from dashboard.state.overrides import read_class_text
from dashboard.views.models import add_model
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import WEIGHT_SUFFIXES
from qaf_core.errors import QafError
from qaf_core.runs.store.store import Store

from .conftest import Draw, settle, shown

HOSTILE = ("![x](https://evil.example/a.png)", "<b>b</b>", ":red[x]", *(f"kind {n}" for n in range(7)))
PICTURE = "data:image/png;base64,iVBORw0KGgo="
SOUND = "Nothing is wrong with class order and preparation of images, as far as these images tell."
FIX = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "channel_order": "rgb", "scale": 255.0}


def answer(**fields: Any) -> dict[str, Any]:
    """What ``qaf check --json --preview`` prints."""
    row = {"image": PICTURE, "label": HOSTILE[1], "predicted": HOSTILE[2], "right": False, "confidence": 0.7}
    return {
        "model": "cifar/resnet20", "value": 0.91, "ci95": [0.87, 0.94], "n": 256, "findings": [],
        "trials": [], "blind_to_colours": False, "cannot_tell": None, "metric": "top1", "summary": SOUND,
        "plausible": True, "preview": [row] * 9, **fields,
    }  # fmt: skip


def finding(serious: bool = True, **fields: Any) -> dict[str, Any]:
    sentence = f"Normalisation seems to be wrong for {HOSTILE[0]}."
    remedy = "Prepare images so, with --preprocessing FILE."
    evidence = {"preprocessing": FIX}
    return {
        "kind": "normalisation", "sentence": sentence, "remedy": remedy, "serious": serious,
        "evidence": evidence, **fields,
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Commands are written down; a check is right once the images are prepared as found."""
    told: list[list[str]] = []

    def run(arguments: Sequence[str], **_: Any) -> dict[str, Any]:
        told.append(list(arguments))
        wrong = {"value": 0.2, "findings": [finding()], "summary": ""}
        return answer(**({} if "--preprocessing" in arguments else wrong))

    monkeypatch.setattr(jobs, "run_command", run)
    yield told
    jobs.shared.clear()


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


def check(test: AppTest, key: str = "check-model", place: str = "add-model") -> AppTest:
    test.button(key=key).click().run()
    settle(f"check-{place}-{test.session_state['session-id']}")
    return test.run()


def html_of(test: AppTest) -> str:
    return "\n".join(str(block.proto.body) for block in test.get("html"))


def test_a_check_needs_name_weights_and_images(draw: Draw) -> None:
    test = draw("models")
    assert "Still to give: a name, trained weights, labelled images." in shown(test)
    assert test.button(key="check-model").disabled
    test = fill(test, "/no/weights.safetensors", Path("/no/images"))
    assert not test.button(key="check-model").disabled


def test_a_wrong_preparation_is_mended_and_the_model_added(
    draw: Draw, asked: list[list[str]], weights: str, tmp_path: Path, workspace: Path
) -> None:
    test = check(fill(draw("models"), weights, tmp_path))
    text = shown(test)
    assert "The original is right on 20.0 %" in text
    assert "Normalisation seems to be wrong" in text
    assert "--preprocessing" not in text
    assert asked[0][:2] == ["check", "cifar/resnet20"]
    assert asked[0][asked[0].index("--workspace") + 1] == str(workspace)
    assert asked[0][asked[0].index("--weights") + 1] == weights

    test.button(key="use-found-add-model").click().run()
    settle(f"check-add-model-{test.session_state['session-id']}")
    text = shown(test.run())
    assert "The original is right on 91.0 %" in text
    assert SOUND in text
    assert test.text_input(key="add-model-mean").value == "0.5, 0.5, 0.5"
    assert json.loads(Path(asked[1][asked[1].index("--preprocessing") + 1]).read_text()) == FIX

    test.button(key="add-checked").click().run()
    assert "my/parts" in set(test.dataframe[0].value["model"])
    added = find_model("my/parts", workspace=workspace)
    assert added.preprocessing.mean == (0.5, 0.5, 0.5)
    assert added.data == str(tmp_path)


def test_what_is_typed_reaches_the_check(
    draw: Draw, asked: list[list[str]], weights: str, tmp_path: Path
) -> None:
    test = fill(draw("models"), weights, tmp_path)
    test.text_area(key="add-model-classes").set_value("\n".join(HOSTILE))
    test.text_input(key="add-model-mean").set_value("0.1, 0.2, 0.3")
    test.selectbox(key="add-model-order").set_value("bgr").run()
    check(test)
    given = Path(asked[0][asked[0].index("--preprocessing") + 1]).read_text()
    assert json.loads(given) == {"channel_order": "bgr", "mean": [0.1, 0.2, 0.3]}
    assert read_class_text(asked[0][asked[0].index("--classes") + 1]).splitlines() == list(HOSTILE)


def test_hostile_names_are_shown_as_they_stand(
    draw: Draw, asked: list[list[str]], weights: str, tmp_path: Path
) -> None:
    test = check(fill(draw("models"), weights, tmp_path))
    warning = next(element.value for element in test.warning if "Normalisation" in element.value)
    assert "![x](" not in warning
    assert "!\\[x\\](https" in warning
    pictures = html_of(test)
    assert "&lt;b&gt;b&lt;/b&gt;" in pictures
    assert "<b>b</b>" not in pictures
    assert ":red[x]" in pictures  # plain HTML knows no directives


def test_two_sessions_have_their_own_checks(
    draw: Draw, asked: list[list[str]], weights: str, tmp_path: Path
) -> None:
    first, second = draw("models"), draw("models")
    check(fill(first, weights, tmp_path))
    assert first.session_state["session-id"] != second.session_state["session-id"]
    assert "The original is right" in shown(first)
    assert "The original is right" not in shown(second.run())


def test_a_model_that_is_there_is_checked_and_mended(
    draw: Draw, asked: list[list[str]], weights: str, tmp_path: Path, workspace: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(find_model("inspection/resnet20").classes))
    add_model.add_model(
        workspace, model_id="my/parts", base="cifar/resnet20", weights=weights, data=str(tmp_path),
        classes=names,
    )  # fmt: skip
    test = check(draw("models", model="my/parts"), "check-listed", "models")
    assert "The original is right on 20.0 %" in shown(test)
    assert asked[0][:2] == ["check", "my/parts"]
    assert not [button for button in test.button if button.key == "keep-found"]
    test.button(key="use-found-models").click().run()
    settle(f"check-models-{test.session_state['session-id']}")
    test.run()
    test.button(key="keep-found").click().run()
    shown(test)
    kept = find_model("my/parts", workspace=workspace)
    assert (kept.preprocessing.mean, kept.classes[0]) == (
        (0.5, 0.5, 0.5),
        find_model("inspection/resnet20").classes[0],
    )


def test_a_shipped_model_is_checked(draw: Draw, asked: list[list[str]]) -> None:
    test = check(draw("models", model="digits/cnn"), "check-listed", "models")
    shown(test)
    assert html_of(test).count("<figure") == 9
    assert "--data" in asked[0]
    assert not [button for button in test.button if str(button.key).startswith("use-found")]


@pytest.mark.parametrize(
    ("fields", "said", "unsaid"),
    [
        ({}, SOUND, "Cannot tell"),
        ({"cannot_tell": "Cannot tell whether red and blue are exchanged.", "summary": "Only that is open."},
         "Cannot tell whether red and blue are exchanged. Only that is open.", SOUND),
        ({"metric": "miou", "preview": []}, "Mean IoU of the original: 91.0 %", "is right on"),
        (
            {"split": "64 images calibrate, 192 others evaluate.", "skipped_count": 1,
             "skipped": [{"name": "a/broken.png", "reason": "it does not decode"}]},
            "1 image was left out", "wrong for",
        ),
        ({"summary": "", "findings": [finding(serious=False)]}, "Normalisation seems", SOUND),
    ],
)  # fmt: skip
def test_the_report_tells_all(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str, unsaid: str
) -> None:
    monkeypatch.setattr(jobs, "run_command", lambda *_, **__: answer(**fields))
    text = shown(check(draw("models", model="digits/cnn"), "check-listed", "models"))
    assert said in text
    assert unsaid not in text


def test_a_refused_check_says_why(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> dict[str, Any]:
        raise QafError("image :red[folder] is empty", got="<b>0</b> images")

    monkeypatch.setattr(jobs, "run_command", refuse)
    test = check(draw("models", model="digits/cnn"), "check-listed", "models")
    assert "image :red[folder] is empty; got <b>0</b> images." in shown(test)
    assert "\\:red\\[folder\\]" in test.error[0].value


def test_a_running_check_shows_where_it_is_and_can_be_stopped(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def wait(_arguments: Sequence[str], *, job: Job, **__: Any) -> dict[str, Any]:
        begun.set()
        job.stop.wait(20)
        raise QafError("stopped")

    monkeypatch.setattr(jobs, "run_command", wait)
    test = draw("models", model="digits/cnn")
    test.button(key="check-listed").click().run()
    assert begun.wait(10)
    test.run()
    assert any("Running the original" in str(bar.proto.text) for bar in test.get("progress"))
    key = f"check-models-{test.session_state['session-id']}"
    test.button(key=f"stop-{key}").click().run()
    settle(key)
    assert "The check was stopped" in shown(test.run())


class Upload:
    """An upload that ends its job after the first piece."""

    name, size = "mine.safetensors", 4 << 20

    def __init__(self, after_piece: Callable[[], None]) -> None:
        self._after_piece = after_piece

    def seek(self, offset: int) -> int:
        return offset

    def read(self, size: int = -1) -> bytes:
        self._after_piece()
        return b"\0" * size


def test_storing_an_upload_can_be_stopped(workspace: Path) -> None:
    job = Job(key="a")
    asked = add_model.Asked(model="cifar/resnet20", data="", name="my/parts")
    with pytest.raises(QafError, match="stopped"):
        add_model._store(job, workspace, asked, Upload(job.stop.set), "/no/images")
    assert not [path for path in (workspace / "models").iterdir() if path.is_file()]


def test_unpacking_an_upload_can_be_stopped(workspace: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good/a.png", b"\0" * 1000)
    archive.name = "parts.zip"
    job = Job(key="a")
    asked = add_model.Asked(model="cifar/resnet20", data="", name="my/parts")
    stored = add_model._store(job, workspace, asked, "/my/weights.pth", archive)
    assert (stored.given.weights, job.fraction) == ("/my/weights.pth", 1.0)
    shutil.rmtree(workspace / "data")
    job.stop.set()
    with pytest.raises(QafError, match="stopped"):
        add_model._store(job, workspace, asked, "/my/weights.pth", archive)
    assert not list((workspace / "data").iterdir())


def test_every_kind_of_weights_file_may_be_uploaded(draw: Draw) -> None:
    test = draw("models")
    kinds = {kind for uploader in test.get("file_uploader") for kind in uploader.proto.type}
    assert set(WEIGHT_SUFFIXES) | {".zip"} <= kinds


def test_explore_checks_own_images_before_a_run(
    draw: Draw, asked: list[list[str]], store: Store, weights: str, tmp_path: Path, workspace: Path
) -> None:
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    assert test.button(key="check-choice").disabled
    names = "\n".join(find_model("inspection/resnet20").classes)
    test.text_area(key="own-classes").set_value(names)
    test.text_input(key="weights").set_value(weights)
    rows = find_model("inspection/resnet20").card["inventory"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "run_command", lambda *_, **__: {"layers": rows})
        test.text_input(key="data-path").set_value(str(tmp_path)).run()
        test = check(test, "check-choice", "explore")
        assert "The original is right on 20.0 %" in shown(test)
        test.button(key="use-found-explore").click().run()
        settle(f"check-explore-{test.session_state['session-id']}")
        assert "The original is right on 91.0 %" in shown(test.run())
        test.button(key="start-run").click().run()
    request = store.list_runs()[0].request
    assert request.preprocessing == FIX
    assert read_class_text(request.classes) == names
    assert request.weights == weights
    assert asked[-1][asked[-1].index("--workspace") + 1] == str(workspace)
