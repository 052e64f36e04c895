"""Previews: kept by every run of a task whose answers can be shown, read without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import build_model, find_model, load_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.jobs.preview import PREVIEW_NAME, read_preview, write_preview
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import execute_job


def test_a_run_keeps_what_both_networks_say(store: Store) -> None:
    plan = plan_for_ratio(load_inventory(find_model("digits/cnn")), model="digits/cnn", ratio=2.0, bits=4)
    short = replace(plan, options={"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2})
    run_id = store.create_run(RunRequest(model="digits/cnn", plan=short.to_dict(), images=60))
    execute_job(store, run_id)
    rows = read_preview(store.run_folder(run_id))
    assert len(rows) == 9
    assert {"image", "label", "predicted", "right", "compressed"} <= rows[0].keys()
    assert rows[0]["compressed"].keys() == {"predicted", "right", "confidence", "top"}
    assert sum(row["right"] and row["compressed"]["right"] for row in rows) >= 6


def test_previews_are_read_without_torch(tmp_path: Path) -> None:
    source = find_model("digits/cnn")
    model = build_model(source)
    images = load_images("builtin", source, split="calibration", limit=20)
    write_preview(tmp_path, model, model, source, images)
    code = (
        "import sys; from pathlib import Path; from qaf_core.runs.jobs.preview import read_preview\n"
        "rows = read_preview(Path(sys.argv[1]))\n"
        "assert len(rows) == 9 and rows[0]['compressed']['predicted'] == rows[0]['predicted']\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_a_missing_or_damaged_preview_is_none(tmp_path: Path) -> None:
    assert read_preview(tmp_path) == []
    for content in ("{", "3", ""):
        (tmp_path / PREVIEW_NAME).write_text(content)
        assert read_preview(tmp_path) == []


def test_boxes_of_both_networks_are_kept(tmp_path: Path) -> None:
    source = find_model("inspection/detector")
    model = build_model(source)
    images = load_images("builtin", source, split="calibration", limit=9)
    write_preview(tmp_path, model, model, source, images)
    (row, *_others) = read_preview(tmp_path)
    assert row["compressed"].keys() == {"image", "right", "task", "found"}
    assert row["compressed"]["found"] == row["found"]
    (tmp_path / PREVIEW_NAME).unlink()
    write_preview(tmp_path, model, model, replace(source, task="of the user's own"), images)
    assert not (tmp_path / PREVIEW_NAME).exists()
