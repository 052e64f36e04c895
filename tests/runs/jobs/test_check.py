"""The check before a run: kept, refused or noted, and left out where there is nothing to check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import begun_run

from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import build_model, find_model, load_inventory
from qaf_core.errors import DataError
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.check.plausibility import Finding, FindingKind, Plausibility
from qaf_core.pipeline.events import Progress
from qaf_core.runs.jobs import check
from qaf_core.runs.jobs.check import checked, needs_check, refuse_serious
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import execute_job

SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The digits as a user's own data."""
    images = load_images("builtin", find_model("digits/cnn"), split="calibration")
    np.savez(tmp_path / "own.npz", x=images.images, y=images.labels)
    return tmp_path / "own.npz"


def start(store: Store, data: Path, **fields: Any) -> str:
    plan = plan_for_ratio(load_inventory(find_model("digits/cnn")), model="digits/cnn", ratio=2.0, bits=4)
    request = RunRequest(
        model="digits/cnn", plan=replace(plan, options=SHORT).to_dict(), data=str(data), images=200, **fields
    )
    return begun_run(store, request)


def test_a_sound_original_is_checked_and_compressed(store: Store, digits: Path) -> None:
    result = execute_job(store, start(store, digits))
    assert result["status"] == "completed"
    assert result["checks"]["findings"] == []
    assert result["checks"]["value"] > 0.95
    assert store.run(result["run_id"]).result["checks"] == result["checks"]


def test_a_serious_fault_stops_the_run_before_anything_is_compressed(store: Store, digits: Path) -> None:
    wrong = {"mean": [0.0], "std": [1.0]}
    run_id = start(store, digits, preprocessing=wrong)
    with pytest.raises(
        DataError, match=r"Normalisation seems to be missing: of 200 .*--preprocessing FILE.*--no-check"
    ):
        execute_job(store, run_id)
    record = store.run(run_id)
    assert record.status == "failed"
    assert "Normalisation seems to be missing" in (record.error or "")
    assert not record.layers
    result = execute_job(store, start(store, digits, preprocessing=wrong, check=False))
    assert result["status"] == "completed"
    assert result["checks"] is None
    assert result["baseline"]["value"] < 0.6, "the run uses the preprocessing it was given"


def test_a_run_can_be_stopped_while_it_is_checked(store: Store, digits: Path) -> None:
    run_id = start(store, digits)
    said: list[str] = []
    result = execute_job(
        store,
        run_id,
        Progress(
            lambda event: said.append(str(event.data.get("message"))),
            lambda: any("Checking" in message for message in said),
        ),
    )
    assert result["status"] == "cancelled"
    assert not store.run(run_id).layers


def test_the_same_check_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_model("digits/cnn")
    model = build_model(source)
    images = load_images("builtin", source, split="calibration", limit=50)
    made: list[int] = []
    check_original = check.check_original

    def count(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return check_original(*arguments, **options)

    monkeypatch.setattr(check, "check_original", count)
    first = checked(tmp_path, model, source, images, macs=1)
    assert checked(tmp_path, model, source, images, macs=1) == first
    assert len(made) == 1
    other = replace(images, labels=np.roll(images.labels, 1))
    assert checked(tmp_path, model, source, other, macs=1) != first
    marked = replace(images, targets={"masks": images.labels.astype(np.uint8)})
    checked(tmp_path, model, source, marked, macs=1)
    assert len(made) == 3, "other masks, another check"
    kept = next((tmp_path / "cache" / "checks").glob("*.json"))
    for file in kept.parent.iterdir():
        file.write_text("damaged")
    assert checked(tmp_path, model, source, images, macs=1) == first
    assert len(made) == 4


def test_a_run_of_another_task_is_checked_by_its_metric(store: Store, tmp_path: Path) -> None:
    source = find_model("inspection/unet")
    drawn = load_images("builtin", source, split="calibration", limit=64)
    np.savez(tmp_path / "own.npz", x=drawn.images, y=drawn.targets["masks"])
    plan = plan_for_ratio(load_inventory(source), model=source.id, ratio=2.0, bits=4)
    request = RunRequest(
        model=source.id,
        plan=replace(plan, options=SHORT).to_dict(),
        data=str(tmp_path / "own.npz"),
        preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1]},
    )
    with pytest.raises(DataError, match="Normalisation .* missing: on 48 images miou is.*--no-check"):
        execute_job(store, begun_run(store, request))


def test_what_needs_no_check() -> None:
    digits = find_model("digits/cnn")
    assert not needs_check(digits, "builtin")
    assert needs_check(digits, "/images")
    assert needs_check(replace(digits, shipped=False), "builtin")
    assert needs_check(find_model("inspection/unet"), "/masks.npz"), "every task is checked"
    assert not needs_check(find_model("inspection/unet"), "builtin")


def test_notes_do_not_stop_a_run() -> None:
    note = Finding(kind=FindingKind.BELOW_STATED, sentence="Few are right.", remedy="Look.", serious=False)
    found = Plausibility(value=0.5, ci95=(0.4, 0.6), n=100, findings=(note,))
    refuse_serious(found)
    with pytest.raises(
        DataError, match=r"Few are right; Look. To compress it all the same, pass --no-check\."
    ):
        refuse_serious(replace(found, findings=(note, replace(note, serious=True))))
