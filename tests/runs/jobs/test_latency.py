"""A finished run measured: all models, layers, memory, accuracy, and what is said of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from qaf_core.cli.entry import main
from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8, write_original
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import ModelError, RunCancelled, WorkspaceError
from qaf_core.files import write_file
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.runs.jobs import exported_models
from qaf_core.runs.jobs.exported_models import FOLDER, STAMP, prepare_models
from qaf_core.runs.jobs.latency import measure_run, read_latency
from qaf_core.runs.store.request import LatencyRequest, RunRequest
from qaf_core.runs.store.store import Store

Run = tuple[Path, str]


def test_a_run_is_measured_and_the_result_kept(finished_run: Run) -> None:
    workspace, run_id = finished_run
    events: list[RunEvent] = []
    with Store(workspace) as store:
        report = measure_run(store, run_id, threads=1, rounds=20, progress=Progress(events.append))
        kept, record = read_latency(store.run_folder(run_id)), store.run(run_id)
    assert record.compressed is not None
    assert kept == report
    result = json.loads(json.dumps(report.to_dict()))
    assert result["verdict"] == " ".join(map(str, report.sentences()))
    assert set(result["latencies"]) == set(ModelFile)
    assert all(0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"] for row in result["latencies"].values())
    assert {row["n"] for row in result["latencies"].values()} == {20}
    assert result["ratios"]["dense_int8"]["value"] == 1.0
    assert result["ratios"]["factorized_int8"] == result["ratio_to_dense_int8"]
    assert set(result["ratios"]) == set(ModelFile)
    assert 0.9 < result["accuracy"]["factorized_int8"]["agreement_with_exact"] <= 1.0
    assert all(value > 0 for value in result["peak_memory_bytes"].values())
    assert result["size_bytes"]["dense_int8"] < result["size_bytes"]["original_fp32"]
    energy = result["energy"]
    assert energy["modelled"]["original"] > energy["modelled"]["compressed"] > 0
    assert "not measured" in energy["modelled"]["source"]
    assert bool(energy["reason"]) != bool(energy["joules"])
    accuracy = result["accuracy"]
    assert accuracy["original_fp32"]["drop"] == 0.0
    assert accuracy["factorized_int8"]["value"] > 0.9
    # The accuracy beside the times is that of the run: the same network on the same images.
    assert accuracy["factorized_int8_exact"]["n"] == record.compressed.n
    assert accuracy["factorized_int8_exact"]["value"] == pytest.approx(record.compressed.value, abs=2e-3)
    assert result["others_share"] is None or 0 <= result["others_share"] <= 1
    rows = {row["layer"]: row for row in result["layers"]}
    assert list(rows)[:-1] == ["features.0", "features.3", "features.7", "classifier.0", "classifier.2"]
    assert isinstance(rows["features.7"]["slower_than_dense"], bool)
    assert rows["features.0"]["slower_than_dense"] is None
    for name in ("original_fp32_ms", "dense_int8_ms", "factorized_int8_ms"):
        assert all(row[name] > 0 for row in rows.values()), name  # every layer is found in every model
    assert [event.data["fraction"] for event in events] == pytest.approx([i / 6 for i in range(6)])
    rows_here = [row["model"] for row in record.latencies if row["source"] == "this machine"]
    assert sorted(rows_here) == sorted(ModelFile)


@pytest.fixture
def sparing_run(finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of that run, of whose models the two are written that one of its own tests looks into."""

    def write_two(
        paths: dict[str, Path], _net: Any, model: Any, inventory: Any, images: Any, shape: Any, target: str
    ) -> bool:
        for path in paths.values():
            write_file(path, b"not looked into")
        write_original(model, inventory, paths["original_fp32"], input_shape=shape)
        write_dense_int8(
            paths["original_fp32"], paths["dense_int8"], images[:1], any_batch=True, target=target
        )
        return True

    monkeypatch.setattr(exported_models, "_write_models", write_two)
    return shutil.copytree(finished_run[0], tmp_path / "copy"), finished_run[1]


def test_models_for_any_processor_have_a_folder_of_their_own(
    sparing_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run_id = sparing_run
    for name in ("qaf_core.deploy.runtime.target", "qaf_core.runs.jobs.exported_models"):
        monkeypatch.setattr(f"{name}.saturates_products", lambda: False)
    with Store(workspace) as store:
        here, anywhere = (prepare_models(store, run_id, target=target).paths for target in ("this", "any"))
        for name in ("qaf_core.deploy.runtime.target", "qaf_core.runs.jobs.exported_models"):
            monkeypatch.setattr(f"{name}.saturates_products", lambda: True)
        moved = prepare_models(store, run_id).paths  # to a processor that cuts products off
    assert here["dense_int8"].parent != anywhere["dense_int8"].parent
    assert moved["dense_int8"] == here["dense_int8"]
    largest = {}
    for key, path in (("any", anywhere["dense_int8"]), ("moved", moved["dense_int8"])):
        held = [row for row in onnx.load(path).graph.initializer if row.data_type == onnx.TensorProto.INT8]
        largest[key] = max(int(abs(numpy_helper.to_array(row).astype(int)).max()) for row in held)
    assert largest == {"any": 64, "moved": 64}


def test_models_are_written_once(sparing_run: Run) -> None:
    workspace, run_id = sparing_run
    with Store(workspace) as store:
        first = prepare_models(store, run_id)
        written = {path: path.stat().st_mtime_ns for path in first.paths.values()}
        assert {
            path: path.stat().st_mtime_ns for path in prepare_models(store, run_id).paths.values()
        } == written
        folder = store.run_folder(run_id) / FOLDER
        (folder / STAMP).write_text("{", encoding="utf-8")
        again = prepare_models(store, run_id)
    assert all(again.paths[name].stat().st_mtime_ns > written[first.paths[name]] for name in again.paths)


def test_the_command_tells_models_layers_and_a_verdict(
    finished_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run_id = finished_run
    place = ("--workspace", str(workspace), "--threads", "1", "--images", "0", "--seconds", "1")
    assert main(["latency", run_id, *place]) == 0
    out = capsys.readouterr().out
    assert "dense INT8" in out
    assert "factorized, int8-fast over dense INT8: " in out
    assert "factorized, int8 (exact) over dense INT8: " in out
    assert "The fast file (int8-fast) is " in out
    assert "The exact file (int8) is " in out
    assert "features.7" in out
    assert "accuracy on" not in out
    assert main(["latency", run_id, *place, "--batch", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["batch"], told["run_id"], told["accuracy"]) == (2, run_id, {})
    with Store(workspace) as store:  # a job as one the page asks for, and found there
        job = store.last_job("latency", run_id)
        assert job is not None
        assert (job.status, job.result) == ("completed", told)
        assert job.request == LatencyRequest(run=run_id, threads=1, batch=2, images=0, seconds=1.0)
        kept = read_latency(store.run_folder(run_id))
        assert kept is not None
        assert kept.to_dict() == told


def test_a_run_shows_its_measured_speed(finished_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, run_id = finished_run
    with Store(workspace) as store:
        report = measure_run(store, run_id, threads=1, rounds=5, images=0)
    assert main(["show", run_id, "--workspace", str(workspace)]) == 0
    out = capsys.readouterr().out
    assert f"speed, this machine, {report.machine.processor}, 1 threads:" in out
    assert "factorized, int8-fast over dense INT8: " in out
    assert report.verdict in out


def test_runs_and_numbers_that_cannot_be_measured_are_told(store: Store, finished_run: Run) -> None:
    queued = store.create_run(RunRequest(model="digits/cnn"))
    with pytest.raises(WorkspaceError, match="no compressed network"):
        measure_run(store, queued, threads=1)
    for name in ("threads", "batch", "rounds"):
        with pytest.raises(WorkspaceError, match=f"{name} out of range"):
            measure_run(store, queued, **{"threads": 1, name: 0})
    workspace, run_id = finished_run
    with Store(workspace) as other:
        with pytest.raises(RunCancelled):
            measure_run(other, run_id, threads=1, progress=Progress(should_stop=lambda: True))
        models = prepare_models(other, run_id)
    object.__setattr__(models, "any_batch", False)
    models.check_batch(1)
    with pytest.raises(ModelError, match="one image at a time"):
        models.check_batch(2)


def test_a_damaged_or_missing_measurement_is_none(tmp_path: Path) -> None:
    assert read_latency(tmp_path) is None
    for content in ("{", "[]", '{"schema_version": 99}'):
        (tmp_path / "latency.json").write_text(content, encoding="utf-8")
        assert read_latency(tmp_path) is None
