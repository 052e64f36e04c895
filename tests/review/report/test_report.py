"""The report: everything inside, everything escaped, in both languages, of one run and of several."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import paired_answers
from PIL import Image
from sklearn.metrics import confusion_matrix

from qaf_core.deploy.runtime.measure_kit import Latency
from qaf_core.deploy.runtime.speed_report import Machine, SpeedReport
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.marks import picture_address
from qaf_core.review.decision.criteria import Criterion, keep_criteria
from qaf_core.review.decision.economics import PRESETS, keep_assumptions
from qaf_core.review.decision.evidence import DISTURBANCES
from qaf_core.review.decision.other_tasks import ClassMeasure, TaskChanges
from qaf_core.review.decision.risks import ReviewNotes, keep_notes
from qaf_core.review.marks import mark_legend
from qaf_core.review.report import report
from qaf_core.review.report.blocks import Gallery, Table
from qaf_core.review.report.evidence_sections import changes_section, checks_section
from qaf_core.review.report.report import answers_csv, font_faces, render_html, to_json, write_report
from qaf_core.review.report.review import changed_places, gather_review
from qaf_core.review.report.sections import side_by_side, three_numbers
from qaf_core.runs.evidence.predictions import PairedPredictions, keep_predictions, read_predictions
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from tests.browsing import require_chromium
from tests.pdf_text import NO_GLYPH, read_text

HOSTILE = "<img src=x onerror=alert(1)>{x}</script>"
CLASSES = ("ok", HOSTILE, "=pit")


def add_run(store: Store, name: str, lost: int, *, size: int = 4000, digest: str = "0" * 64) -> str:
    run_id = store.create_run(RunRequest(model="inspection/resnet20", name=name))
    folder = store.run_folder(run_id)
    told = paired_answers(600, lost, 4, CLASSES)
    keep_predictions(folder, PairedPredictions(**{**vars(told), "data_sha256": digest}))
    (folder / "model.safetensors").write_bytes(b"x" * size)
    right = {"metric": "top1", "value": 0.95, "n": 600, "ci95": [0.93, 0.97], "agreement": 0.98}
    cost = {
        "params": 10_000, "size_bytes": 40_000, "macs": 10**6, "bops": 10**9,
        "peak_activation_bytes": 1000, "energy_joules": 1e-3,
    }  # fmt: skip
    result = {
        "status": "completed", "plan": {
            "model": "inspection/resnet20", "activation_bits": 8,
            "layers": [{"name": "conv1", "structure": "cp", "rank": 3, "bits": 4}],
        },
        "baseline": right, "compressed": right, "drop": 0.001, "drop_ci95": [-0.01, 0.012],
        "cost": cost, "baseline_cost": cost, "data": {"warnings": [HOSTILE], "split": "apart"},
        "environment": {"torch": "2.14"},
    }  # fmt: skip
    store.finish(run_id, "completed", result)
    return run_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def complete(store: Store) -> str:
    run_id = add_run(store, HOSTILE, 6)
    folder = store.run_folder(run_id)
    keep_criteria(folder, [Criterion(kind="largest_drop", limit=0.1, source=HOSTILE)])
    keep_criteria(
        folder,
        [
            Criterion(kind="largest_drop", limit=0.12, owner=HOSTILE),
            Criterion(kind="missed_defects_rise", limit=0.2, ok_class="ok"),
            Criterion(kind="accuracy_floor", limit=0.5, class_name=HOSTILE),
            Criterion(kind="latency", limit=4, device="Cortex"),
        ],
    )
    keep_assumptions(folder, PRESETS["example_line"])
    keep_notes(folder, ReviewNotes(notes=HOSTILE, decision="conditions", signers=("佐藤",)))
    return run_id


@pytest.mark.parametrize("language", ["en", "ja"])
def test_it_loads_nothing_and_runs_nothing_of_hostile_names(store: Store, language: str) -> None:
    page = render_html(gather_review(store, [complete(store)]), language)
    assert len(page.encode()) < 8e6
    body = page[page.index("<body>") :]
    assert "<img" not in body
    assert body.count("<script>") == body.count("</script>")
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    assert not re.search(r'(src|href)="(?!data:)', body)
    assert "default-src 'none'" in page
    assert page.count('charts["chart-') == 5


def test_japanese_texts_stand_in_the_japanese_report(store: Store) -> None:
    page = render_html(gather_review(store, [complete(store)]), "ja")
    body = page[page.index("<body>") :]
    for text in ("見逃し", "過検出", "信頼区間", "条件付き採用", "佐藤", "校正画像", "記入例"):
        assert text in body
    assert "font/woff2" in page


@pytest.mark.parametrize(
    ("text", "files"), [("AMD ±1 →", 0), ("佐藤", 1), ('{"x":"\\u4f50"}', 1), ("渡邉", 2), ("㈱", 2)]
)
def test_a_report_has_the_japanese_letters_it_needs(text: str, files: int) -> None:
    assert font_faces(text).count("@font-face") == files


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_letter_is_missing_in_charts_and_on_paper(store: Store, tmp_path: Path, language: str) -> None:
    """Also where no Japanese font is installed."""
    require_chromium()
    folder = store.run_folder(run_id := complete(store))
    keep_notes(folder, ReviewNotes(notes="稟議 №7", signers=("髙橋", "渡邉", "山﨑")))
    rows = {name: {"original": [0.9] * 5, "compressed": [0.8] * 5} for name in DISTURBANCES}
    (folder / "robustness.json").write_text(json.dumps({"n": 500, "disturbances": rows}))
    review = gather_review(store, [run_id])
    write_report(review, tmp_path / "a.pdf", language=language)
    text = read_text((tmp_path / "a.pdf").read_bytes())
    assert NO_GLYPH not in text
    assert all(name in text for name in ("稟議", "髙橋", "渡邉", "山﨑"))
    of_charts = ("明るさの変化", "累積効果", "混同行列") if language == "ja" else ("brightness", "Net after")
    assert all(word in text for word in of_charts)
    assert len(render_html(review, language).encode()) < 8e6


def test_changed_criteria_are_both_told(store: Store) -> None:
    review = gather_review(store, [complete(store)])
    page = render_html(review)
    assert len(review.criteria_sets) == 2
    assert "after the result was known: Accuracy lost: limit 10.00 points became 12.00 points" in page


def test_exported_answers_give_the_same_counts_by_scikit_learn(store: Store) -> None:
    review = gather_review(store, [complete(store)])
    rows = list(csv.DictReader(io.StringIO(answers_csv(review))))
    assert rows[0]["label"] == "ok"
    assert {row["label"] for row in rows} == {"ok", HOSTILE, "'=pit"}  # a spreadsheet takes no formula of it
    missed = review.changes.missed  # type: ignore[union-attr]
    defect = [row["label"] != "ok" for row in rows]
    for column, counted in (("original", missed.before), ("compressed", missed.after)):  # type: ignore[union-attr]
        table = confusion_matrix(defect, [row[column] != "ok" for row in rows], labels=[False, True])
        assert table[1, 0] == counted


def test_runs_stand_side_by_side_and_the_smallest_that_passes_is_chosen(store: Store) -> None:
    first = add_run(store, "large", 3, size=9000)
    second = add_run(store, "small", 3, size=2000)
    keep_criteria(store.run_folder(first), [Criterion(kind="largest_drop", limit=0.1)])
    review = gather_review(store, [first, second])
    assert review.chosen.run_id == second
    assert "Recommended: small" in render_html(review)
    told = to_json(review)
    assert told["recommended"] == second
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_what_cannot_be_compared_is_refused(store: Store) -> None:
    first, other = add_run(store, "a", 3), add_run(store, "b", 3, digest="1" * 64)
    with pytest.raises(QafError, match="different images"):
        gather_review(store, [first, other])
    with pytest.raises(QafError, match="each once"):
        gather_review(store, [first, first])
    queued = store.create_run(RunRequest(model="inspection/resnet20"))
    with pytest.raises(WorkspaceError, match="no result to decide about"):
        gather_review(store, [queued])


def test_times_of_several_machines_never_stand_in_one_row(store: Store) -> None:
    def timed(processor: str, source: str, compressed: float) -> SpeedReport:
        row = Latency(median_ms=compressed, p5_ms=1.0, p95_ms=9.0, n=30)
        return SpeedReport(
            source=source, threads=2, batch=1,
            machine=Machine(processor=processor, onnxruntime="1.26.0", threads=2),
            latencies={"original_fp32": replace(row, median_ms=7.0), "factorized_int8": row},
        )  # fmt: skip

    here = timed("Xeon", "this machine", 3.0)
    runs = [add_run(store, name, 3) for name in "abc"]
    found = gather_review(store, runs)
    timings = ((here, timed("Atom", "device", 40.0)), (timed("Atom", "device", 50.0),), ())
    told = tuple(replace(run, timings=kept) for run, kept in zip(found.runs, timings, strict=True))
    row = side_by_side(replace(found, runs=told), str).rows[-1]
    assert row == [
        "Time of one inference: Atom, 2 threads, 1 at once",
        "7 ms",
        "40 ms",
        "50 ms",
        "–",
    ]
    told = (told[0], replace(told[1], timings=(timed("Cortex", "device", 50.0),)), told[2])
    row = side_by_side(replace(found, runs=told), str).rows[-1]
    assert row[0].startswith("Time of one inference: Xeon")
    assert row[1:] == ["7 ms", "3 ms", "on another machine", "–"]
    number = three_numbers(replace(found, chosen=told[0]), str)[2]
    assert (number["value"], number["note"]) == ("7 ms → 3 ms", "original in 32 bits; Xeon")


def test_what_changed_of_masks_and_boxes_is_told_by_class(store: Store) -> None:
    run_id = add_run(store, "a", 3)
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[:, :4] = 1
    worse = masks.copy()
    worse[2, :2] = 0
    sides = {"original": {"masks": masks}, "compressed": {"masks": worse}, "targets": {"masks": masks}}
    review = gather_review(store, [run_id])
    told = PairedPredictions(
        task="segmentation", classes=("ground", "pit"), images="x", data_sha256="0" * 64, **sides
    )
    keep_predictions(store.run_folder(run_id), told)
    review = gather_review(store, [run_id])
    (table,) = changes_section(review, str).blocks
    assert table.title == "Class by class: IoU"  # type: ignore[union-attr]
    assert table.rows[1][:4] == ["pit", "4", "100.0 %", "87.5 %"]  # type: ignore[union-attr]
    picture = picture_address(Image.new("RGB", (388, 192)))
    shown = replace(review, pictures=dict.fromkeys(changed_places(None, review.task_changes), picture))
    gallery = changes_section(shown, str).blocks[-1]
    assert isinstance(gallery, Gallery)
    assert gallery.wide
    assert [lines for _address, lines, _mark in gallery.pictures] == [
        ["#2", "missed 0.0 % → 25.0 %", "invented 0.0 % → 0.0 %"]
    ]
    text = render_html(shown)
    assert all(meaning in text for _colour, meaning in mark_legend(str))
    assert text.count(picture) == 1
    assert len(text) < 8e6
    keep_predictions(store.run_folder(run_id), replace(told, task="of the user's own"))
    assert gather_review(store, [run_id]).task_changes is None
    boxes = replace(
        review, task_changes=TaskChanges(
            metric="ap50", changed=((0, 1.0), (1, -1.0)), per_class=(
                ClassMeasure(name="pit", n=3, before=0.9, after=0.8, missed_before=1, missed_after=2,
                             false_before=0, false_after=4),
            ),
        ),
    )  # fmt: skip
    (table,) = changes_section(boxes, str).blocks
    assert table.rows == [["pit", "3", "90.0 %", "80.0 %", "−10.00", "1 → 2", "0 → 4"]]  # type: ignore[union-attr]
    assert table.note == "1 images have more errors than before, 1 fewer."


def test_a_run_that_kept_no_answers_is_compared_by_what_was_asked(store: Store) -> None:
    first, other = add_run(store, "a", 3), add_run(store, "b", 3)
    (store.run_folder(other) / "predictions.npz").unlink()
    assert [run.run_id for run in gather_review(store, [first, other]).runs] == [first, other]


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"checks": [{}], "worst": {"disturbance": "fog", "severity": 1, "extra_drop": 0.1}},
        {"n": 5, "disturbances": {"fog": {"original": [1.0], "compressed": [1.0]}}},
        {"n": 5, "disturbances": {"blur": {"original": [1.0], "compressed": []}}, "checks": [{"check": "x"}]},
        {
            "n": 5,
            "disturbances": {"blur": {"original": [1.0], "compressed": [1.0]}},
            "odd": [{"input": HOSTILE, "finite": True}],
        },
    ],
)
def test_what_is_damaged_is_said_and_not_called_unmeasured(store: Store, told: Any) -> None:
    run_id = add_run(store, "a", 3)
    folder = store.run_folder(run_id)
    keep_criteria(folder, [Criterion(kind="latency", limit=4)])
    for name in ("robustness", "stability", "latency"):
        (folder / f"{name}.json").write_text(json.dumps(told))
    review = gather_review(store, [run_id])
    assert review.chosen.added == {}
    assert review.chosen.unreadable == ("speed", "robustness", "stability")
    page = render_html(review)
    assert "not measured" not in page[page.index("<body>") : page.index("<h2>Business case")]
    for what in (
        "a measurement kept with this run cannot be read; measure again.",
        "A measurement of speed kept with this run cannot be read: measure again.",
        "the measurement of time cannot be read",
        "The result of the robustness check cannot be read: check again.",
        "The result of the stability check cannot be read: check again.",
        "The measurement of speed and memory kept with this run cannot be read.",
    ):
        assert html.escape(what) in page


def test_inputs_that_are_no_images_are_told_of(store: Store) -> None:
    run_id = add_run(store, "a", 3)
    told = {
        "n": 5, "disturbances": {"blur": {"original": [1.0] * 5, "compressed": [0.5] * 5}},
        "odd": [
            {"input": "black", "finite": True, "agreement": 0.75, "original_confidence": 0.6,
             "compressed_confidence": None},
            {"input": "random", "finite": False, "detail": "no numbers"},
        ],
        "saliency": {"agreement": 0.987, "images": 8, "grid": 6},
    }  # fmt: skip
    (store.run_folder(run_id) / "robustness.json").write_text(json.dumps(told))
    review = gather_review(store, [run_id])
    (table,) = [row for row in checks_section(review, str).blocks if row.key == "odd"]
    assert isinstance(table, Table)
    assert table.rows == [
        ["black image", "75 %", "60.0 %", "–"],
        ["random pixels", "outputs that are not finite", "–", "–"],
    ]
    assert "saliency maps on 8 images: 0.99" in table.note
    assert "黒一色の画像" in render_html(review, "ja")


def test_a_run_without_criteria_and_answers_still_gives_a_report(store: Store) -> None:
    run_id = add_run(store, "old", 3)
    (store.run_folder(run_id) / "predictions.npz").unlink()
    review = gather_review(store, [run_id])
    page = render_html(review)
    assert "No criteria are set" in page
    assert "not kept with this run" in page
    with pytest.raises(WorkspaceError, match="cannot be written as rows"):
        answers_csv(review)


def test_files_by_their_ending(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = gather_review(store, [add_run(store, "a", 3)])
    for name in ("a.html", "a.json", "a.csv"):
        write_report(review, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(QafError, match="unknown kind of report"):
        write_report(review, tmp_path / "a.docx")
    monkeypatch.setattr(report, "BROWSERS", ("no-such-browser",) * 2)
    with pytest.raises(QafError, match="no Chromium"):
        write_report(review, tmp_path / "a.pdf")


def test_damaged_answers_are_said(store: Store) -> None:
    folder = store.run_folder(add_run(store, "a", 3))
    (folder / "predictions.npz").write_bytes(b"PK not a zip")
    with pytest.raises(WorkspaceError, match="predictions kept with a run"):
        read_predictions(folder)
