"""Every page in its states: empty, running, failed, stopped, finished."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import begun_run, paired_answers
from streamlit.testing.v1 import AppTest

from dashboard.state import catalogue
from dashboard.widgets import network_graph
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import add_model
from qaf_core.errors import ModelError
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.evidence.predictions import keep_predictions
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import EXPORTS_FOLDER, PACKED_NAME, default_workspace

from .conftest import Draw, shown, table_rows, words, words_of


def run_with(store: Store, status: str) -> str:
    return next(run.id for run in store.list_runs() if run.status == status)


def start_run(store: Store, plan: dict[str, object]) -> str:
    """A run at work in this very process."""
    run_id = begun_run(store, RunRequest(model="inspection/resnet20", plan=plan))
    store.append_event(run_id, RunEvent(kind="stage", data={"stage": "solving"}, elapsed_seconds=1.0))
    started = {"index": 0, "total": 5, "structure": "cp", "rank": 20, "bits": 4}
    store.append_event(run_id, RunEvent(kind="layer_started", layer="layer1.0.conv1", data=started))
    for iteration in (1, 2, 3):
        row = {"iteration": iteration, "float_error": 0.3, "quantized_error": 0.5, "primal_residual": 0.1,
               "dual_residual": 0.1, "rho": 1.0}  # fmt: skip
        store.append_event(run_id, RunEvent(kind="iteration", layer="layer1.0.conv1", data=row))
    return run_id


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("run", "No run yet"),
        ("tradeoffs", "No result to compare yet"),
        ("layers", "No layer has been compressed yet"),
    ],
)
def test_empty_pages_show_the_way_on(draw: Draw, page: str, said: str) -> None:
    text = shown(draw(page))
    assert said in text
    assert "Choose a model" in text


def test_a_queued_run_waits(draw: Draw, store: Store) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    test = draw("run", run=run_id)
    assert "Stop" in shown(test)
    assert "Waiting" in words(test)


def test_a_running_run_shows_layer_curve_and_stop(draw: Draw, seeded_store: Store) -> None:
    run_id = start_run(seeded_store, dict(seeded_store.list_runs()[0].plan_row))
    test = draw("run", run=run_id)
    text = shown(test)
    assert "0 / 5" in text
    assert "layer1.0.conv1" in text
    assert len(test.get("vega_lite_chart")) == 2
    test.button(key="stop-run").click().run()
    assert seeded_store.cancel_requested(run_id)
    assert test.button(key="stop-run").disabled


def test_a_finished_run_shows_its_headline(draw: Draw, seeded_store: Store) -> None:
    test = draw("run", run=run_with(seeded_store, "completed"))
    text = shown(test)
    assert "93.1 %" in text
    assert "was 94.2 %" in text
    assert "−1.1 points" in text
    assert "7.20× smaller" in text
    assert "3.1 %" in text
    assert "Change and run again" in text
    assert not [button for button in test.button if button.key == "stop-run"]


def test_a_segmentation_run_is_told_in_its_own_words(draw: Draw, seeded_store: Store) -> None:
    result = dict(seeded_store.run(run_with(seeded_store, "completed")).result)
    for which, value in (("baseline", 0.79), ("compressed", 0.78)):
        result[which] = {
            "metric": "miou", "value": value, "n": 2000, "ci95": [value - 0.01, value + 0.01],
            "per_class": {"scratch": value - 0.1, "pit": value}, "extra": {"pixel_accuracy": 0.99},
            "agreement": 0.97,
        }  # fmt: skip
    run_id = seeded_store.create_run(RunRequest(model="inspection/unet", plan=result["plan"]))
    seeded_store.finish(run_id, "completed", {**result, "run_id": run_id, "model": "inspection/unet"})
    test = draw("run", run=run_id)
    text = shown(test)
    assert "Mean IoU" in text
    assert "Accuracy" not in text
    assert "Pixels right: 99.0 % → 99.0 %" in text
    assert "Same answers as the original: 97.0 %" in text
    classes = next(frame for frame in test.dataframe if "name" in frame.value and "change" in frame.value)
    assert classes.value["name"].tolist() == ["scratch", "pit"]
    assert classes.value["change"].tolist() == pytest.approx([-1.0, -1.0])  # sorted as numbers
    assert words_of(classes)["change"].tolist() == ["−1.0", "−1.0"]
    compared = draw("tradeoffs", model="inspection/unet")
    shown(compared)
    assert compared.selectbox(key="tradeoffs-y").options[0] == "Mean IoU"
    assert "Accuracy" not in words(compared)


@pytest.mark.parametrize("model", ["inspection/unet", "inspection/detector"])
def test_sample_pictures_show_masks_and_boxes(model: str) -> None:
    source = find_model(model)
    images = load_images("builtin", source, split="calibration", limit=16)
    drawn = catalogue.with_targets(images)
    changed = np.array([(new != old).any(axis=2) for new, old in zip(drawn, images.images, strict=True)])
    assert (changed.any(axis=(1, 2)) == (images.labels > 0)).all()
    if model == "inspection/unet":
        assert (changed[images.targets["masks"] == 0] == 0).all()
    else:
        left, top, right, bottom = images.targets["boxes"][0].astype(int)
        first = changed[images.labels > 0][0]
        assert not first[top:bottom, left:right].any(), "the line lies around the box"
        assert first[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any()
    assert len(catalogue.sample_strip(model, 4)) == 4


def test_a_stopped_run_says_what_was_kept(draw: Draw, seeded_store: Store) -> None:
    text = shown(draw("run", run=run_with(seeded_store, "cancelled")))
    assert "of 5 layers, 2 layers were compressed" in text
    assert "Accuracy" in text


def test_a_failed_run_says_why(draw: Draw, seeded_store: Store) -> None:
    text = shown(draw("run", run=run_with(seeded_store, "failed")))
    assert "weights hold NaN; got layer1.0.conv1; train the model again." in text


def test_an_interrupted_run_is_explained(draw: Draw, seeded_store: Store) -> None:
    run_id = seeded_store.create_run(RunRequest(model="digits/cnn"))
    seeded_store.finish(run_id, "interrupted", error="the worker ended")
    assert "ended before it was done" in shown(draw("run", run=run_id))


def test_an_unknown_run_is_a_message_and_the_list(draw: Draw, seeded_store: Store) -> None:
    text = shown(draw("run", run="nonsense"))
    assert "There is no run nonsense" in text
    assert "Every compression started" in text


def test_the_list_of_runs(draw: Draw, seeded_store: Store) -> None:
    test = draw("run")
    shown(test)
    table = test.dataframe[0].value
    assert len(table) == len(seeded_store.list_runs())
    assert set(table["status"]) == {"Finished", "Stopped", "Failed"}


def test_tradeoffs_show_every_method_and_filter(draw: Draw, seeded_store: Store) -> None:
    test = draw("tradeoffs")
    assert "6 runs" in shown(test)
    charts = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    names = {trace.get("name") for trace in charts[0]["data"]}
    assert {"Joint", "Paper", "Sequential", "Dense", "Original", "Best trade-offs"} <= names
    test.selectbox[2].set_value(0.05).run()
    assert set(test.dataframe[0].value["method"]) == {"Joint", "Dense"}
    test.selectbox[2].set_value(0.01).run()
    assert "No run matches" in shown(test)


def test_tradeoffs_wait_for_the_first_result(draw: Draw, store: Store) -> None:
    store.create_run(RunRequest(model="digits/cnn"))
    assert "not finished yet" in shown(draw("tradeoffs"))


def test_layers_of_one_run_and_of_two(draw: Draw, seeded_store: Store) -> None:
    test = draw("layers", run=run_with(seeded_store, "completed"))
    text = shown(test)
    assert "Original weights" in text
    assert "Output factor A" in text
    single = len(test.get("plotly_chart"))
    test.selectbox[1].select_index(1).run()
    shown(test)
    assert len(test.get("plotly_chart")) > single


def test_explore_starts_with_a_plan_that_can_be_run(draw: Draw, store: Store) -> None:
    test = draw("explore")
    test.button(key="choose-digits/cnn").click().run()
    text = shown(test)
    assert "5 layers" in text
    assert "smaller than 360 kB" in text
    assert not test.button(key="start-run").disabled
    test.button(key="start-run").click().run()
    run = store.list_runs()[0]
    assert run.model == "digits/cnn"
    assert run.method == "joint"
    assert [row.bits for row in run.plan.layers] == [8, 4, 4, 4, 8]


def test_a_run_can_be_taken_up_again(draw: Draw, store: Store) -> None:
    test = draw("explore")
    test.button(key="choose-digits/cnn").click().run()
    test.select_slider(key="bits").set_value(3).run()
    test.button(key="start-run").click().run()
    run = store.list_runs()[0]
    again = draw("explore", run=run.id)
    assert "5 layers" in shown(again)
    assert again.session_state["bits"] == 3
    again.button(key="start-run").click().run()
    assert store.list_runs()[0].plan == run.plan
    assert len(store.list_runs()) == 2


def test_a_run_taken_up_again_has_its_controls_and_its_edits_marked(draw: Draw, store: Store) -> None:
    test = draw("explore")
    test.button(key="choose-digits/cnn").click().run()
    test.slider(key="ratio").set_value(3.1).run()
    test.selectbox(key="structure").set_value("svd").run()
    assert not [slider.label for slider in test.slider if "Custom" in slider.label]
    test.button(key="start-run").click().run()
    run = store.list_runs()[0]
    plan: dict[str, Any] = json.loads(json.dumps(dict(run.plan_row)))
    plan["layers"][1] |= {"rank": 7, "bits": 5}
    plan["seed"] = 4
    edited = store.create_run(replace(run.request, plan=plan, seed=4))
    again = draw("explore", run=edited)
    state = again.session_state
    assert (state["ratio"], state["structure"], state["bits"]) == (3.1, "svd", 4)
    assert again.slider(key="ratio").label == "Reduction · Custom"
    assert [control.label for control in again.select_slider if "Custom" in control.label] == [
        "Weight bits · Custom"
    ]
    assert again.selectbox(key="structure").label == "Structure"
    marked = [row["layer"] for row in table_rows(again) if row["edited"]]
    assert marked == [plan["layers"][1]["name"]]
    again.button(key="start-run").click().run()
    repeated = next(found for found in store.list_runs() if found.id not in (run.id, edited))
    assert (repeated.plan_row, repeated.request.seed) == (plan, 4)


def test_bulk_controls_change_the_prediction(draw: Draw) -> None:
    test = draw("explore")
    test.button(key="choose-digits/cnn").click().run()
    before = test.metric[0].value
    test.select_slider(key="bits").set_value(2).run()
    assert test.metric[0].value != before
    test.button(key="reset-plan").click().run()
    assert test.metric[0].value == before
    test.button(key="use-dense").click().run()
    assert shown(test)
    assert test.slider(key="ratio").disabled


def test_without_weights_run_is_closed_with_the_remedy(draw: Draw, served: Callable[..., Any]) -> None:
    rows = find_model("digits/cnn").card["inventory"]
    served(lambda _: {"layers": rows})
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    assert "give the path of a weights file" in shown(test)
    assert test.button(key="start-run").disabled
    test.text_input(key="weights").set_value("/no/such/file").run()
    assert "weights file not found" in shown(test)


def test_a_model_that_cannot_be_inspected_is_a_message(draw: Draw, served: Callable[..., Any]) -> None:
    def fail(_: object) -> dict[str, object]:
        raise ModelError("it does not run on such images")

    served(fail)
    test = draw("explore")
    test.segmented_control(key="mode").set_value("own").run()
    assert "it does not run on such images" in words(test)


def test_own_images_must_be_there(draw: Draw) -> None:
    test = draw("explore")
    test.button(key="choose-digits/cnn").click().run()
    test.segmented_control(key="data-mode").set_value("own").run()
    assert "Give the path of labelled images" in shown(test)
    test.text_input(key="data-path").set_value("/no/images").run()
    assert "There is no file or folder /no/images" in shown(test)
    assert test.button(key="start-run").disabled


def test_models_are_listed_and_drawn(draw: Draw, seeded_store: Store) -> None:
    test = draw("models", model="inspection/resnet20")
    text = shown(test)
    assert "ResNet-20, surface inspection" in text
    assert set(test.dataframe[0].value["model"]) >= {"inspection/resnet20", "digits/cnn"}
    assert drawn(test).count("<B>conv1</B>") == 10
    assert " bit · " not in drawn(test)
    finished = run_with(seeded_store, "completed")
    test.selectbox(key="map-run-inspection/resnet20").set_value(finished).run()
    shown(test)
    assert " bit · " in drawn(test)  # after: layers have opened into their links
    test.segmented_control(key="model-graph-when").set_value("before").run()
    before = drawn(test)
    assert " bit · " not in before
    test.selectbox(key="model-graph-colour").set_value("error").run()
    assert fills(drawn(test)) != fills(before)


def drawn(test: AppTest) -> str:
    """The graph of the network on a page, as Graphviz reads it."""
    (chart,) = test.get("graphviz_chart")
    return str(chart.proto.spec)


def fills(text: str) -> list[str]:
    return re.findall(r'fillcolor="([^"]+)"', text)


def test_a_large_network_opens_where_it_is_clicked(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_graph, "MOST_BOXES", 10)
    test = draw("models", model="inspection/resnet20")
    shown(test)
    assert "Layers: 6" in drawn(test)
    (listener,) = (part for part in test.get("bidi_component") if "clicks" in (part.key or ""))
    assert "layer2" in json.loads(listener.proto.json)["names"].values()
    test.selectbox(key="model-graph-block").set_value("layer2").run()
    shown(test)
    assert drawn(test).count("Layers: 2") == 3  # its three blocks
    assert test.query_params["block"] == "layer2"


def test_a_layer_chosen_elsewhere_stands_out(draw: Draw, seeded_store: Store) -> None:
    test = draw("layers", run=run_with(seeded_store, "completed"))
    shown(test)
    box = next(box for box in test.selectbox if box.label == "Layer")
    (marked,) = (line for line in drawn(test).splitlines() if "penwidth=3" in line)
    assert f'tooltip="{box.value} ' in marked
    other = next(name for name in box.options if name != box.value)
    box.set_value(other).run()
    (marked,) = (line for line in drawn(test).splitlines() if "penwidth=3" in line)
    assert f'tooltip="{other} ' in marked


def test_a_network_whose_graph_is_not_known_says_so(draw: Draw, served: Callable[..., Any]) -> None:
    shipped = find_model("digits/cnn")
    served(lambda _: {"layers": shipped.card["inventory"]})
    add_model(default_workspace(), model_id="my/digits", base="digits/cnn", weights=str(shipped.weights))
    test = draw("models", model="my/digits")
    assert "How the layers of this network are connected is not known" in shown(test)
    assert not test.get("graphviz_chart")


def test_explore_draws_the_network_only_while_it_is_looked_at(draw: Draw) -> None:
    test = draw("explore", model="digits/cnn")
    shown(test)
    assert not test.get("graphviz_chart")
    test.session_state["plan-network"] = True
    test.run()
    shown(test)
    assert "dw" in drawn(test)


def test_a_model_is_taken_to_explore(draw: Draw) -> None:
    test = draw("explore", model="inspection/vgg")
    shown(test)
    assert test.button(key="choose-inspection/vgg").label == "Chosen"


def test_a_registered_model_is_listed_compressed_and_removed(draw: Draw, served: Callable[..., Any]) -> None:
    shipped = find_model("digits/cnn")
    served(lambda _: {"layers": shipped.card["inventory"]})
    add_model(
        default_workspace(), model_id="my/digits", base="digits/cnn", weights=str(shipped.weights),
        title="My digits",
    )  # fmt: skip
    test = draw("explore", model="my/digits")
    shown(test)
    assert test.selectbox(key="registered-model").value == "my/digits"
    assert not test.button(key="start-run").disabled
    test = draw("models", model="my/digits")
    assert "My digits" in shown(test)
    assert "my/digits" in set(test.dataframe[0].value["model"])
    test.button(key="remove-model").click().run()
    assert "my/digits" not in set(test.dataframe[0].value["model"])


def test_without_a_finished_run_there_is_nothing_to_export(draw: Draw) -> None:
    assert "Nothing to export yet" in shown(draw("export"))


def test_a_finished_run_is_taken_away(draw: Draw, seeded_store: Store) -> None:
    """Any bytes do for the packed file here; exports themselves are tested in tests/deploy."""
    run_id = run_with(seeded_store, "completed")
    seeded_store.run_folder(run_id).mkdir(parents=True, exist_ok=True)
    (seeded_store.run_folder(run_id) / PACKED_NAME).write_bytes(b"\0" * 1000)
    test = draw("export", run=run_id)
    text = shown(test)
    assert "**1 kB**" in text
    assert "Make and check it" in text
    assert "result.json" in text
    table = test.dataframe[0].value
    assert table["share"].sum() == pytest.approx(100)
    assert "layer1.0.conv1" in set(table["name"])
    assert set(table["stored"]) <= {"CP", "Dense", "Keep"}
    code = "\n".join(str(block.value) for block in test.code)
    assert "from qaf_core import load" in code
    assert "onnxruntime.InferenceSession" in code


def test_the_report_of_an_export_is_shown(draw: Draw, seeded_store: Store) -> None:
    run_id = run_with(seeded_store, "completed")
    folder = seeded_store.run_folder(run_id)
    (folder / EXPORTS_FOLDER).mkdir(parents=True)
    (folder / PACKED_NAME).write_bytes(b"\0" * 1000)
    (folder / EXPORTS_FOLDER / "model-int8.onnx").write_bytes(b"\0" * 2000)
    report = {
        "format": "onnx", "path": "model-int8.onnx", "written": True, "precision": "int8", "target": "this",
        "size_bytes": 2000, "agreement": None, "integer_operators": {"ConvInteger": 3}, "float_operators": {},
        "weights_stored_as": {"int8": 3}, "any_batch": True, "opset": 21, "seconds": 3.0, "passed": True,
        "checks": [{"name": "agreement", "passed": True, "detail": "Same answer on 99.9 % of images."}],
    }  # fmt: skip
    (folder / EXPORTS_FOLDER / "model-int8.json").write_text(json.dumps(report))
    text = shown(draw("export", run=run_id))
    assert "Same answer on 99.9 % of images." in text
    assert "**2 kB**, made and checked in 3.0 s." in text


PAGES = ("models", "explore", "run", "tradeoffs", "layers", "export")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_damaged_is_named_and_the_rest_is_drawn(draw: Draw, seeded_store: Store, page: str) -> None:
    damaged, sound = [run.id for run in seeded_store.list_runs() if run.status == "completed"][:2]
    folder = seeded_store.run_folder(sound)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PACKED_NAME, "preview.json", "latency.json", "device-latency.json"):
        (folder / name).write_bytes(b"[{}]")
    with seeded_store.transaction() as connection:
        connection.execute("UPDATE runs SET result = substr(result, 1, 90) WHERE id = ?", (damaged,))
        connection.execute("UPDATE events SET data = substr(data, 1, 5)")
        connection.execute("UPDATE layers SET details = '{' WHERE run_id = ?", (sound,))
    (seeded_store.workspace / "settings.json").write_text('{"schema_version": 1, "models": [{"id": 3}]}')
    test = draw(page, run=sound)
    text = shown(test)
    assert f"a run in the store is damaged; got {damaged}" in text
    assert "a model in settings.json is malformed" in text
    assert "could not be drawn" not in text
    if page == "run":
        assert "preview.json of this run is damaged and left out" in text
    if page == "export":
        assert "latency.json of this run is damaged and left out" in text


def test_a_deleted_workspace_is_told_on_the_page(draw: Draw, seeded_store: Store) -> None:
    seeded_store.path.unlink()
    text = shown(draw("models"))
    assert "deleted or replaced while it was in use" in text
    assert "Add your own" not in text


def test_code_of_a_workspace_waits_for_trust(
    draw: Draw, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    steps = {"crop": [1, 1], "mean": [0.5] * 3, "std": [0.5] * 3}
    entry = {"id": "my/own", "title": "own", "base": "strange:make", "code_path": str(tmp_path),
             "input_shape": [3, 1, 1], "classes": ["a", "b"], "preprocessing": steps}  # fmt: skip
    settings = {"schema_version": 1, "models": [entry]}
    (store.workspace / "settings.json").write_text(json.dumps(settings))
    test = draw("explore", model="my/own")
    assert f"This workspace names code: strange:make in {tmp_path}" in words(test)
    assert not store.rows("SELECT id FROM runs"), "no job was asked for"
    test.button(key="trust-strange:make").click()
    monkeypatch.setattr(catalogue.jobs, "LONGEST_WAIT_SECONDS", 0.2)
    test.run()
    assert [row[0] for row in store.rows("SELECT kind FROM runs")] == ["inspect"]
    assert "strange:make" in (tmp_path / "config" / "qaf" / "trusted.json").read_text()


def test_no_page_of_a_run_loads_torch(seeded_store: Store) -> None:
    """A page that did would take seconds to draw, once in each process; all such work is a worker's."""
    run_id = run_with(seeded_store, "completed")
    folder = seeded_store.run_folder(run_id)
    folder.mkdir(parents=True)
    (folder / PACKED_NAME).write_bytes(b"packed")
    keep_predictions(folder, paired_answers(600, 5, 2, classes=("ok", "pit")))
    looks = [(page, {}) for page in ("run", "tradeoffs", "compare", "layers", "export", "decide")]
    looks += [("decide", {"part": part}) for part in ("changes", "checks", "case", "risks", "report")]
    code = f"""
import sys
from streamlit.testing.v1 import AppTest
from dashboard.widgets import ui
ui.keep_worker = lambda: None
for page, query in {looks!r}:
    test = AppTest.from_string(f"from dashboard import app\\napp.main({{page!r}})", default_timeout=60)
    for name, value in {{"run": {run_id!r}, **query}}.items():
        test.query_params[name] = value
    test.run()
    assert not test.exception and not test.error, (page, query, test.exception, test.error)
    assert "torch" not in sys.modules, (page, query)
"""
    environment = {**os.environ, "QAF_WORKSPACE": str(seeded_store.workspace)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
