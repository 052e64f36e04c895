"""Export and speed on the Export page: four files and their checks, both ratios, what a device answers."""

from __future__ import annotations

import io
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from dashboard.views.export import speed
from qaf_core.deploy.onnx_export.report import Check, ExportReport
from qaf_core.runs.jobs.device_kit import RESULT_NAME
from qaf_core.runs.jobs.latency import FILE_NAME, SCHEMA_VERSION
from qaf_core.runs.store.kinds import LIGHT
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import ExportRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import EXPORTS_FOLDER, PACKED_NAME

from .conftest import Draw, serve, shown

ROW = {"median_ms": 2.0, "p5_ms": 1.5, "p95_ms": 3.0, "n": 100}
NAMES = ("dense_int8", "factorized_int8", "factorized_int8_exact")


def finished(store: Store) -> str:
    """A finished run with a packed file (its content is not looked at here)."""
    run = next(run for run in store.list_runs() if run.status == "completed")
    path = store.run_folder(run.id) / PACKED_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"packed")
    return run.id


def measured(**more: Any) -> dict[str, Any]:
    ratio = {"value": 0.5, "low": 0.45, "high": 0.55}
    return {
        "source": "this machine", "threads": 2, "batch": 1, "verdict": "",
        "latencies": dict.fromkeys(NAMES, ROW),
        "ratio_to_dense_int8": ratio,
        "ratios": {
            "factorized_int8": ratio, "factorized_int8_exact": {"value": 1.4, "low": 1.3, "high": 1.5}
        },
        "peak_memory_bytes": dict(zip(NAMES, (1_000_000, 2_000_000, 3_000_000), strict=True)),
        "machine": {"processor": "A processor", "threads": 2, "onnxruntime": "1.32.0"},
        **more,
    }  # fmt: skip


def keep(store: Store, run_id: str, name: str, content: dict[str, Any]) -> None:
    told = {"schema_version": SCHEMA_VERSION, **content}
    (store.run_folder(run_id) / name).write_text(json.dumps(told), encoding="utf-8")


def test_both_files_and_all_memories_are_told(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    accuracy = {name: {"value": 0.9, "n": 100, "metric": "top1"} for name in NAMES}
    accuracy["factorized_int8"]["agreement_with_exact"] = 0.99
    keep(seeded_store, run_id, FILE_NAME, measured(accuracy=accuracy, others_share=0.4))
    text = shown(draw("export", run=run_id))
    assert "Other programs used 40 % of the processors meanwhile" in text
    assert "on 100 images, not on all 2,000 that the run was measured on" in text
    assert "**Compressed, integers, fastest:** 2× faster than the original in 8 bits" in text
    assert "It takes 0.50× as long (95 %: 0.45× to 0.55×)" in text
    assert "**Compressed, integers, exact:** Slower than the original in 8 bits, by 1.40×" in text
    assert "agree with the evaluated network's to 99.0 %. That is too little: its export is refused." in text
    assert "Peak memory of one inference" in text
    for size in ("1 MB", "2 MB", "3 MB"):
        assert size in text


def test_a_device_that_answers_wrongly_is_told(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    same = {"dense_int8": 1.0, "factorized_int8": 0.0}
    found = measured(same_answers=same, compared_images=64, failed={"factorized_fp32": "no such operator"})
    keep(seeded_store, run_id, RESULT_NAME, found)
    text = shown(draw("export", run=run_id))
    assert "on 64 images" in text
    assert "Compressed, integers, fastest answers wrongly on this device: only 0.0 %" in text
    assert "Original, 8-bit by ONNX Runtime answers wrongly" not in text
    assert "Compressed, 32-bit does not run on this device: no such operator" in text


def test_the_packed_file_is_checked_by_a_job(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)

    def check(job: JobRecord) -> dict[str, Any]:
        row = Check(name="checksum", passed=True, detail="every byte is as it was written")
        told = ExportReport(
            format="packed", path="model", written=True, precision=None, target=None, size_bytes=6,
            checks=(row,), agreement=None, integer_operators={}, float_operators={}, weights_stored_as={},
            any_batch=True, opset=None, seconds=1.0,
        ).to_dict()  # fmt: skip
        path = seeded_store.run_folder(run_id) / EXPORTS_FOLDER / job.request.file_name
        path.parent.mkdir()
        path.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
        return told

    test = draw("export", run=run_id)
    text = shown(test)
    assert "every byte is as it was written" not in text
    assert "was measured on this file" not in text
    assert "some answers differ" in text  # of the fast file
    test.button(key="make-packed").click().run()
    assert "Waiting for a free place" in shown(test.run())
    (asked,) = serve(seeded_store, check)
    assert "checksum: every byte is as it was written" in shown(test.run())
    assert asked.request == ExportRequest(run=run_id, format="packed")


def test_an_export_at_work_can_be_stopped_and_its_failure_is_told(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    test = draw("export", run=run_id)
    test.button(key="make-int8").click().run()
    job_id = seeded_store.claim_next(os.getpid(), LIGHT)
    assert job_id is not None
    test.run()
    assert "Exporting and checking" in shown(test)
    test.button(key=f"stop-export-{job_id}").click().run()
    assert seeded_store.cancel_requested(job_id)
    seeded_store.finish(job_id, "failed", error="the exported network failed a check.")
    text = shown(test.run())
    assert "the exported network failed a check." in text
    assert "make-int8" in {button.key for button in test.button}


def test_a_measurement_is_a_job_that_all_who_look_at_the_run_see(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    test = draw("export", run=run_id)
    test.button(key="measure-speed").click().run()
    assert "Waiting for a free place" in shown(draw("export", run=run_id))

    def measure(job: JobRecord) -> dict[str, Any]:
        keep(seeded_store, job.request.run, FILE_NAME, measured())
        return {}

    (asked,) = serve(seeded_store, measure)
    assert (asked.kind, asked.request.batch) == ("latency", 1)
    assert "**Compressed, integers, fastest:** 2× faster" in shown(test.run())


def test_a_kit_is_offered_only_while_it_is_of_this_network(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    folder = seeded_store.run_folder(run_id) / EXPORTS_FOLDER

    def pack(_: JobRecord) -> dict[str, Any]:
        folder.mkdir()
        (folder / "device-kit.zip").write_bytes(b"zip")
        return {"file": "device-kit.zip"}

    test = draw("export", run=run_id)
    test.button(key="make-kit").click().run()
    serve(seeded_store, pack)
    shown(test.run())
    assert "make-kit" not in {button.key for button in test.button}
    (seeded_store.run_folder(run_id) / PACKED_NAME).write_bytes(b"packed anew")
    test.run()
    assert "make-kit" in {button.key for button in test.button}


def test_a_result_is_read_once_not_at_every_rerun(
    seeded_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = seeded_store.run(finished(seeded_store))
    read: list[bytes] = []
    monkeypatch.setattr(speed, "read_kit_result", lambda _, __, path: read.append(path.read_bytes()))
    state: dict[str, Any] = {}
    monkeypatch.setattr(speed.st, "session_state", state)
    for file_id in ("a", "a", "b"):
        upload = SimpleNamespace(file_id=file_id, getvalue=io.BytesIO(file_id.encode()).getvalue)
        speed.take_result(run, upload)
    assert read == [b"a", b"b"]


def test_the_tile_of_a_run_measures_with_one_click_and_tells_what_was_found(
    draw: Draw, seeded_store: Store
) -> None:
    run_id = finished(seeded_store)
    test = draw("run", run=run_id)
    assert "not measured yet" in shown(test)
    test.button(key="tile-measure").click().run()
    assert "measuring…" in shown(test)
    assert "tile-measure" not in {button.key for button in test.button}

    def measure(job: JobRecord) -> dict[str, Any]:
        keep(seeded_store, job.request.run, FILE_NAME, measured())
        return {}

    (asked,) = serve(seeded_store, measure)
    assert (asked.kind, asked.request.run) == ("latency", run_id)
    assert "as the original in 8 bits" in shown(test.run())
