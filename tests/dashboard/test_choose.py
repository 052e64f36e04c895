"""Explore's first half: a user's own models and images, and runs taken up again with all that was given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dashboard.state import catalogue
from dashboard.state.overrides import keep_class_names, read_class_text
from qaf_core.data.formats.sources import ACCEPTED
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import add_model
from qaf_core.factorization.effort import effort_options
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

from .conftest import Draw, shown

SHIPPED = "inspection/resnet20"
GIVEN = {
    "crop": [64, 64], "resize": None, "mean": [0.446, 0.446, 0.446], "channel_order": "bgr", "scale": 1.0,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ResNet-20 of the user's; looking into it is answered from the shipped one's card."""
    shipped = find_model(SHIPPED)
    assert shipped.weights is not None
    rows = shipped.card["inventory"]
    monkeypatch.setattr(catalogue.jobs, "wait_for", lambda *_: {"layers": rows})
    return str(shutil.copy(shipped.weights, tmp_path / "mine.safetensors"))


def test_a_registered_model_is_run_on_other_images(
    draw: Draw, store: Store, weights: str, tmp_path: Path, workspace: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(find_model(SHIPPED).classes))
    images, others = tmp_path / "images", tmp_path / "others"
    images.mkdir()
    others.mkdir()
    add_model(
        workspace, model_id="my/parts", base="cifar/resnet20", weights=weights, classes=names,
        data=str(images),
    )  # fmt: skip
    test = draw("explore", model="my/parts")
    assert f"Measured on {images}" in shown(test)
    test.segmented_control(key="registered-data-mode").set_value("other").run()
    assert test.button(key="start-run").disabled
    test.text_input(key="data-path").set_value(str(others)).run()
    test.button(key="start-run").click().run()
    run = store.list_runs()[0]
    assert (run.model, run.request.data, run.request.weights) == ("my/parts", str(others), None)
    again = draw("explore", run=run.id)
    assert again.segmented_control(key="registered-data-mode").value == "other"
    assert again.text_input(key="data-path").value == str(others)


def test_a_model_whose_weights_are_gone_is_not_run(
    draw: Draw, weights: str, tmp_path: Path, workspace: Path
) -> None:
    kept = add_model(
        workspace, model_id="my/parts", base="cifar/resnet20", weights=weights, data=str(tmp_path)
    )  # fmt: skip
    assert kept.weights is not None
    kept.weights.unlink()
    test = draw("explore", model="my/parts")
    assert "The file of this model's weights is gone" in shown(test)
    assert test.button(key="start-run").disabled


def test_all_that_was_given_is_taken_up_again(
    draw: Draw, store: Store, weights: str, tmp_path: Path, workspace: Path
) -> None:
    classes = keep_class_names(workspace, "\n".join(find_model(SHIPPED).classes))
    plan = {"schema_version": 1, "model": "cifar/resnet20", "layers": []}
    asked = RunRequest(
        model="cifar/resnet20", plan=plan, weights=weights, classes=classes, preprocessing=GIVEN,
        data=str(tmp_path),
    )  # fmt: skip
    test = draw("explore", run=store.create_run(asked))
    shown(test)
    assert test.text_input(key="own-size").value == "64 × 64"
    assert test.selectbox(key="own-scale").value == 1.0
    test.segmented_control(key="solver-effort").set_value("thorough").run()
    test.button(key="start-run").click().run()
    again = store.list_runs()[0].request
    assert again.plan["options"] == effort_options("thorough")
    assert (again.weights, again.preprocessing, again.data) == (weights, GIVEN, str(tmp_path))
    assert read_class_text(again.classes) == read_class_text(classes)


def test_what_cannot_be_used_closes_run_and_says_why(draw: Draw, weights: str, tmp_path: Path) -> None:
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    test.text_input(key="weights").set_value(weights)
    test.text_input(key="data-path").set_value(str(tmp_path))
    test.text_area(key="own-classes").set_value("one\ntwo").run()
    assert "the classes do not fit" in shown(test)
    assert test.button(key="start-run").disabled
    test.text_area(key="own-classes").set_value("").run()
    test.text_input(key="own-mean").set_value("a, b").run()
    assert "one number or three" in shown(test)
    assert test.button(key="start-run").disabled


def test_the_help_names_every_kind_of_data(draw: Draw) -> None:
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    told = test.text_input(key="data-path").help.replace("\\", "").replace("\u2060", "")
    assert ACCEPTED in told
