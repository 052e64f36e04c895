import copy
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import begun_run
from PIL import Image

from qaf_core.data.load import load_images, to_batches
from qaf_core.data.models.catalogue import build_model, find_model, load_inventory
from qaf_core.deploy.packed.read import load_packed
from qaf_core.errors import DataError, PlanError, SolverError
from qaf_core.network.plan.rules import plan_done, plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.compress.result import read_options
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.tasks import find_task, predict
from qaf_core.runs.jobs import compress, inputs
from qaf_core.runs.jobs.baseline import find_predictions, predictions_key
from qaf_core.runs.jobs.environment import describe_environment, peak_memory_bytes
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import JobFailed, execute_job

SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}


@pytest.fixture(scope="module")
def plan() -> Plan:
    inventory = load_inventory(find_model("digits/cnn"))
    return replace(plan_for_ratio(inventory, model="digits/cnn", ratio=2.0, bits=4), options=SHORT)


def start(store: Store, plan: Plan, **fields: Any) -> str:
    request = RunRequest(model="digits/cnn", plan=plan.to_dict(), images=100, **fields)
    return begun_run(store, request)


def stop_at(kind: str, layer: str | None = None) -> tuple[Callable[[RunEvent], None], Callable[[], bool]]:
    """A listener and the wish to stop it raises once it hears of ``kind``."""
    heard: list[bool] = []

    def listen(event: RunEvent) -> None:
        if event.kind == kind and layer in (None, event.layer):
            heard.append(True)

    return listen, lambda: bool(heard)


def test_a_run_is_told_stored_and_packed(store: Store, plan: Plan) -> None:
    told: list[RunEvent] = []
    run_id = start(store, plan, name="first")
    result = execute_job(store, run_id, Progress(told.append))
    record = store.run(run_id)
    assert record.status == result["status"] == "completed"
    assert record.result == result
    assert [event.kind for event in told] == [stored.event.kind for stored in store.events_since(run_id)]
    stages = [event.data["stage"] for event in told if event.kind == "stage"]
    assert list(dict.fromkeys(stages)) == [
        "loading", "solving", "calibrating", "saving", "baseline", "evaluating",
    ]  # fmt: skip
    assert [event.data["which"] for event in told if event.kind == "evaluated"] == ["original", "compressed"]
    changed = [row.name for row in plan.layers if row.structure != "keep"]
    assert [row.name for row in record.layers] == changed
    assert [event.layer for event in told if event.kind == "layer_finished"] == changed
    histograms = store.layer_details(run_id, "features.3")["histograms"]
    assert histograms["weight"]["counts"]
    assert result["environment"]["torch"]
    assert result["peak_memory_bytes"] > 10**8
    file = store.workspace / result["file"]["path"]
    assert file.stat().st_size == result["file"]["size_bytes"]


def test_the_accuracy_is_that_of_the_packed_file(store: Store, plan: Plan) -> None:
    result = execute_job(store, start(store, plan))
    source = find_model("digits/cnn")
    images = load_images("builtin", source, split="evaluation", limit=100)
    path = store.workspace / result["file"]["path"]
    packed = load_packed(path, build_model(source, with_weights=False))
    predictions = predict(find_task("classification"), packed, to_batches(images, source))
    assert result["compressed"]["value"] == float((predictions["ranked"][:, 0] == images.labels).mean())
    within = (predictions["ranked"] == images.labels[:, None]).any(axis=1)
    assert result["compressed"]["extra"] == {"top5": float(within.mean())}


def test_the_originals_predictions_are_made_once(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[int] = []

    def count(*arguments: Any) -> Any:
        predicted.append(1)
        return predict(*arguments)

    monkeypatch.setattr(inputs, "predict", count)
    first, second = (execute_job(store, start(store, plan)) for _ in range(2))
    assert first["baseline"] == second["baseline"]
    # A look at two images before each solve, the original once, the packed network each time.
    assert len(predicted) == 2 + 1 + 2


def test_a_zip_of_pictures_is_unpacked_split_and_told(store: Store, plan: Plan, tmp_path: Path) -> None:
    digits = load_images("builtin", find_model("digits/cnn"), split="train", limit=300)
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for number, (pixels, label) in enumerate(zip(digits.read(range(300)), digits.labels, strict=True)):
            content = io.BytesIO()
            Image.fromarray(pixels[..., 0]).save(content, "PNG")
            archive.writestr(f"digits/{label}/{number}.png", content.getvalue())
        archive.writestr("digits/0/broken\x1b.png", b"broken")
    result = execute_job(store, start(store, plan, data=str(tmp_path / "digits.zip")))
    assert result["compressed"]["n"] == 100
    told = result["data"]
    assert told["evaluation"].startswith("digits.zip, evaluation part, subset of 226")
    assert told["split"] == "74 images calibrate, 100 others evaluate: split by seed 17, no image in both."
    assert told["skipped"] == [{"name": "0/broken\\x1b.png", "reason": "no picture of a known format"}]
    assert told["calibration"] == "digits.zip, calibration part, 1 unreadable left out, 74 images"
    assert list((store.workspace / "cache" / "decoded").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "layer", "solved"),
    [("stage", None, 0), ("layer_finished", "features.3", 2), ("layer_started", "features.7", 2)],
)
def test_a_stopped_run_keeps_the_layers_done(
    store: Store, plan: Plan, kind: str, layer: str | None, solved: int
) -> None:
    listen, should_stop = stop_at(kind, layer)
    run_id = start(store, plan)
    result = execute_job(store, run_id, Progress(listen, should_stop))
    record = store.run(run_id)
    assert record.status == result["status"] == "cancelled"
    assert solved <= len(record.layers) <= solved + 1
    if solved:
        done = plan_done(plan, [row.name for row in record.layers])
        assert result["cost"]["params"] > 0
        assert result["compressed"]["n"] == 100
        assert sum(row.structure != "keep" for row in done.layers) == len(record.layers)
    else:
        assert "compressed" not in result


def test_a_stop_asked_for_in_the_store_is_heard(store: Store, plan: Plan) -> None:
    run_id = start(store, plan)

    def ask(event: RunEvent) -> None:
        if event.kind == "layer_started":
            store.request_cancel(run_id)

    assert execute_job(store, run_id, Progress(ask))["status"] == "cancelled"


def test_bad_input_fails_the_run_in_one_line(store: Store, plan: Plan) -> None:
    for fields, kind in (({"data": "nowhere"}, DataError), ({"method": "joint", "weights": "x"}, Exception)):
        run_id = start(store, plan, **fields)
        with pytest.raises(kind) as caught:
            execute_job(store, run_id)
        record = store.run(run_id)
        assert record.status == "failed"
        assert record.error == str(caught.value)
        assert "\n" not in record.error
        assert not store.run_folder(run_id).exists()


def test_a_plan_for_another_model_is_refused(store: Store, plan: Plan) -> None:
    run_id = start(store, replace(plan, model="inspection/vgg"))
    with pytest.raises(PlanError, match="another model"):
        execute_job(store, run_id)


def test_our_own_faults_leave_one_line_and_a_traceback(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(compress, "compress_network", fail)
    run_id = start(store, plan)
    with pytest.raises(JobFailed, match="RuntimeError: first line second line"):
        execute_job(store, run_id)
    record = store.run(run_id)
    path = store.run_folder(run_id) / "traceback.txt"
    assert str(path) in str(record.error)
    assert "in fail" in path.read_text()


def test_memory_running_out_is_said_in_words(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(compress, "compress_network", fail)
    with pytest.raises(JobFailed, match="memory ran out.*fewer"):
        execute_job(store, start(store, plan))


def test_plans_carry_options_by_name(plan: Plan) -> None:
    options = read_options(replace(plan, options={"iterations": 7, "output_fit": False}))
    assert options.solver.iterations == 7
    assert options.output_fit is False
    with pytest.raises(PlanError, match="unknown options; got magic"):
        read_options(replace(plan, options={"magic": 1}))
    with pytest.raises(SolverError, match="iterations out of range"):
        read_options(replace(plan, options={"iterations": -1}))


def test_kept_predictions_belong_to_weights_and_images(tmp_path: Path) -> None:
    source = find_model("digits/cnn")
    model = build_model(source)
    images = load_images("builtin", source, split="evaluation", limit=10)
    made = {"ranked": np.arange(10), "counts": np.ones(3)}
    find = partial(find_predictions, tmp_path, model, source, images)
    assert find(lambda: made) is made
    kept = find(lambda: pytest.fail("they are kept"))
    assert np.array_equal(kept["ranked"], np.arange(10))
    assert set(kept) == {"ranked", "counts"}
    key = predictions_key(model, source, images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-6)
    assert predictions_key(other, source, images) != key
    fewer = load_images("builtin", source, split="evaluation", limit=9)
    assert predictions_key(model, source, fewer) != key
    assert predictions_key(model, replace(source, output="logits"), images) != key
    assert predictions_key(model, replace(source, task="brightness"), images) != key
    (path,) = tmp_path.rglob("*.npz")
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    for damaged in (b"damaged", bytes(content)):
        path.write_bytes(damaged)
        assert find(lambda: made) is made


def test_the_environment_is_described() -> None:
    environment = describe_environment()
    assert environment["torch"] == torch.__version__.partition("+")[0]
    assert environment["threads"] >= 1
    assert environment["processor"]
    assert peak_memory_bytes() > 10**7


@pytest.mark.parametrize(("count", "said"), [(1, "Only one"), (40, "Only 40"), (200, "")])
def test_few_calibration_images_are_told(
    store: Store, plan: Plan, tmp_path: Path, count: int, said: str
) -> None:
    digits = load_images("builtin", find_model("digits/cnn"), split="train", limit=count)
    x = digits.read(range(count))
    np.savez(tmp_path / "few.npz", x=x, y=digits.labels)
    result = execute_job(store, start(store, plan, calibration=str(tmp_path / "few.npz")))
    warnings = result["data"]["warnings"]
    assert len(warnings) == bool(said)
    assert all(warning.startswith(said) for warning in warnings)
