"""Risks read off a run, with owners and steps of the user's; the plan and the three sentences."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import paired_answers

from qaf_core.deploy.runtime.measure_kit import Latency
from qaf_core.deploy.runtime.speed_report import DEVICE, HERE, Machine, SpeedReport
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.decision.changes import compare_answers
from qaf_core.review.decision.criteria import Criterion
from qaf_core.review.decision.economics import PRESETS, NetworkCosts, compute_case
from qaf_core.review.decision.evidence import Evidence
from qaf_core.review.decision.risks import (
    FILE_NAME,
    ReviewNotes,
    keep_notes,
    list_risks,
    plan_stages,
    read_notes,
    three_sentences,
)
from qaf_core.review.decision.verdict import judge
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest


def evidence(lost: int = 5, **fields: Any) -> Evidence:
    told = {"value": 0.95, "n": 600, "metric": "top1", "ci95": [0.93, 0.97]}
    cost = {
        **dict.fromkeys(("params", "macs", "bops", "peak_activation_bytes"), 1),
        "size_bytes": 9000, "energy_joules": 0.001,
    }  # fmt: skip
    layer = {"name": "conv1", "structure": "cp", "rank": 3, "bits": [4, 4, 8]}
    record = RunRecord(
        id="run", kind="compress", status=RunStatus.COMPLETED, created_at=0.0,
        request=RunRequest(model="inspection/resnet20"),
        result={
            "baseline": told, "compressed": told, "drop": 0.01, "drop_ci95": [-0.001, 0.02],
            "baseline_cost": cost, "cost": cost,
            "plan": {"schema_version": 1, "model": "inspection/resnet20", "layers": [layer]},
            "data": {"skipped_count": 3, "warnings": ["Only 9 calibration images."]},
        },
    )  # fmt: skip
    given = {"predictions": paired_answers(600, lost, 2), "files": {"packed": 3000}, **fields}
    return Evidence(record=record, **given)


def risks_of(found: Evidence, *criteria: Criterion, notes: ReviewNotes | None = None) -> dict[str, Any]:
    changes = None if found.predictions is None else compare_answers(found.predictions)
    rows = list_risks(found, judge(criteria, found), changes, notes or ReviewNotes())
    levels = [row.level for row in rows]
    assert levels == sorted(levels, key=("high", "medium", "low").index)
    return {row.key: row for row in rows}


def test_what_a_run_leaves_open_is_listed() -> None:
    found = risks_of(evidence(), Criterion(kind="largest_drop", limit=0.01))
    assert {"open-0", "kernels", "few-images", "skipped", "warning-0", "unlike", "bits", "stability"} == set(
        found
    )
    assert "about" in found["open-0"].next_step.text()
    assert found["warning-0"].text.text() == "Only 9 calibration images."


def timed(**fields: Any) -> SpeedReport:
    machine = Machine(processor="Atom", onnxruntime="1.26.0", threads=2)
    own = {"source": HERE, "threads": 2, "batch": 1, "latencies": {}, "machine": machine}
    return SpeedReport(**{**own, **fields})


def test_images_are_asked_for_only_where_they_would_tell() -> None:
    row = Latency(median_ms=5.0, p5_ms=3.0, p95_ms=8.0, n=30)
    timing = timed(measured_at=1.0, latencies={"factorized_int8": row})
    found = risks_of(evidence(timings=(timing,)), Criterion(kind="latency", limit=5.2))["open-0"]
    assert re.fullmatch(r"Measure it again, with about [\d,]+ more measurements\.", found.next_step.text())


def test_measurements_that_lack_something_are_not_measured() -> None:
    found = risks_of(evidence(timings=(timed(), timed())), Criterion(kind="memory", limit=1e6))
    assert found["open-0"].next_step.text() == "Measure it."


def test_failures_and_classes_come_first() -> None:
    found = risks_of(evidence(lost=120), Criterion(kind="largest_drop", limit=0.01))
    assert found["failed-0"].level == "high"
    assert "ok (" in found["classes"].text.text()
    assert "criteria" in risks_of(evidence())


def test_measurements_take_risks_away() -> None:
    timing = timed(measured_at=1.0)
    worst = {"disturbance": "blur", "severity": 3, "extra_drop": 0.09}
    found = risks_of(
        evidence(
            timings=(timing, replace(timing, source=DEVICE, failed={"dense_int8": "no kernel"})),
            added={"robustness": {"worst": worst}, "stability": {}},
        )
    )
    assert {"kernels", "stability"} & set(found) == set()
    assert "9.0 points under blur, severity 3" in found["unlike"].text.text()
    assert "dense_int8" in found["formats"].text.text()
    assert "Atom only" in risks_of(evidence(timings=(timing,)))["kernels"].text.text()


def test_owner_and_step_are_the_users(tmp_path: Path) -> None:
    assert read_notes(tmp_path) == ReviewNotes()
    notes = ReviewNotes(owners={"kernels": "Sato"}, steps={"kernels": "ask {vendor}"}, decision="go")
    keep_notes(tmp_path, notes)
    assert read_notes(tmp_path) == notes
    row = risks_of(evidence(), notes=notes)["kernels"]
    assert (row.owner, row.own_step) == ("Sato", "ask {vendor}")
    with pytest.raises(QafError, match="unknown decision"):
        keep_notes(tmp_path, replace(notes, decision="maybe"))
    with pytest.raises(QafError, match="notes are too long"):
        keep_notes(tmp_path, replace(notes, notes="x" * 5000))
    (tmp_path / FILE_NAME).write_text('{"format": 7}')
    with pytest.raises(WorkspaceError, match="notes of a review"):
        read_notes(tmp_path)


def test_three_sentences_follow_from_the_verdict() -> None:
    found = evidence()
    case = compute_case(PRESETS["example_line"], NetworkCosts(size_bytes=(9000, 3000)))
    passed = judge([Criterion(kind="largest_drop", limit=0.1)], found)
    gained, lost, asked = (text.text() for text in three_sentences(found, passed, case))
    assert gained == "inspection/resnet20 becomes 3 times smaller, 3 kB instead of 9 kB."
    assert "the change lies between −2.00 and +0.10 points" in lost  # minus is worse, as everywhere
    assert "pays for itself in" in asked
    open_one = judge([Criterion(kind="latency", limit=1)], found)
    assert "not all criteria are shown" in three_sentences(found, open_one, None)[2].text().lower()
    assert len(plan_stages(passed)) == 3
    assert "done: 1 of 1" in plan_stages(passed)[0].exits[0].text()
