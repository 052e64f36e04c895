"""Export and speed on the Export page: four files and their checks, both ratios, what a device answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dashboard.state import jobs
from dashboard.views.export import export, speed
from qaf_core.runs.jobs.device_kit import kit_stamp
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

from .conftest import Draw, settle, shown

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
    path = store.run_folder(run_id) / export.EXPORTS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_both_files_and_all_memories_are_told(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    accuracy = {name: {"value": 0.9, "n": 100, "metric": "top1"} for name in NAMES}
    accuracy["factorized_int8"]["agreement_with_exact"] = 0.99
    keep(seeded_store, run_id, speed.RESULT, measured(accuracy=accuracy))
    text = shown(draw("export", run=run_id))
    assert "**Compressed, integers, fastest:** 2.00× faster than the original in 8 bits" in text
    assert "It takes 0.50 times as long (95 %: 0.45 to 0.55)" in text
    assert "**Compressed, integers, exact:** Slower than the original in 8 bits, by 1.40×" in text
    assert "agree with the evaluated network's to 99.0 %. That is too little: its export is refused." in text
    assert "Peak memory of one inference" in text
    for size in ("1 MB", "2 MB", "3 MB"):
        assert size in text


def test_a_device_that_answers_wrongly_is_told(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    same = {"dense_int8": 1.0, "factorized_int8": 0.0}
    found = measured(same_answers=same, compared_images=64, failed={"factorized_fp32": "no such operator"})
    keep(seeded_store, run_id, speed.KIT_RESULT, found)
    text = shown(draw("export", run=run_id))
    assert "on 64 images" in text
    assert "Compressed, integers, fastest answers wrongly on this device: only 0.0 %" in text
    assert "Original, 8-bit by ONNX Runtime answers wrongly" not in text
    assert "Compressed, 32-bit does not run on this device: no such operator" in text


def test_the_packed_file_is_checked_by_the_command(
    draw: Draw, seeded_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = finished(seeded_store)
    asked: list[list[str]] = []

    def run_command(arguments: list[str], **_: object) -> dict[str, Any]:
        asked.append(arguments)
        check = {"name": "checksum", "passed": True, "detail": "every byte is as it was written"}
        return {"checks": [check], "size_bytes": 6, "seconds": 1.0}

    monkeypatch.setattr(jobs, "run_command", run_command)
    test = draw("export", run=run_id)
    text = shown(test)
    assert "every byte is as it was written" not in text
    assert "was measured on this file" not in text
    assert "some answers differ" in text  # of the fast file
    test.button(key="make-packed").click().run()
    settle(f"export-{run_id}-packed")
    assert "checksum: every byte is as it was written" in shown(test.run())
    assert asked[0][:4] == ["export", run_id, "--format", "packed"]


def test_a_kit_is_offered_only_while_it_is_of_this_network(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    folder = seeded_store.run_folder(run_id) / export.EXPORTS
    folder.mkdir()
    (folder / f"device-kit-{kit_stamp(seeded_store, run_id)[:12]}.zip").write_bytes(b"zip")
    test = draw("export", run=run_id)
    shown(test)
    assert "make-kit" not in {button.key for button in test.button}
    (seeded_store.run_folder(run_id) / PACKED_NAME).write_bytes(b"packed anew")
    test.run()
    assert "make-kit" in {button.key for button in test.button}


def test_a_result_is_read_once_not_at_every_rerun(
    seeded_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = seeded_store.run(finished(seeded_store))
    read: list[bytes] = []

    def read_back(_: object, content: bytes) -> dict[str, Any]:
        read.append(content)
        return {}

    monkeypatch.setattr(speed, "_read_back", read_back)
    state: dict[str, Any] = {}
    monkeypatch.setattr(speed.st, "session_state", state)
    for file_id in ("a", "a", "b"):
        upload = SimpleNamespace(file_id=file_id, getvalue=io.BytesIO(file_id.encode()).getvalue)
        speed.take_result(run, upload, tmp_path / "device.json")
    assert read == [b"a", b"b"]
