"""A finished run tells how it was made and shows some images; a run the check stopped has a way on."""

from __future__ import annotations

import json
from typing import Any

from qaf_core.runs.jobs.preview import PREVIEW_NAME
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

from .conftest import Draw, shown

REFUSAL = (
    "Normalisation seems to be missing: of 384 images 12.0 % are right; Prepare images so. "
    "To compress it all the same, pass --no-check."
)
HOSTILE = "![x](https://evil.example/a.png)"


def finished(store: Store, **fields: Any) -> str:
    """A finished run like a seeded one, with other fields of its result; its id."""
    result = dict(next(run for run in store.list_runs() if run.status == "completed").result)
    run_id = store.create_run(RunRequest(model="inspection/resnet20", plan=result["plan"], name=HOSTILE))
    store.finish(run_id, "completed", {**result, "run_id": run_id, **fields})
    return run_id


def html_of(test: Any) -> str:
    return "\n".join(str(block.proto.body) for block in test.get("html"))


def test_how_the_images_were_used_is_told(draw: Draw, seeded_store: Store) -> None:
    data = {
        "evaluation": "parts", "calibration": "parts, 25 images", "split": "25 images calibrate, 75 others.",
        "skipped": [{"name": HOSTILE, "reason": "it does not decode"}], "skipped_count": 3,
        "warnings": ["Only 25 calibration images."],
    }  # fmt: skip
    test = draw("run", run=finished(seeded_store, data=data))
    text = shown(test)
    assert "25 images calibrate, 75 others." in text
    assert "3 images were left out" in text
    assert "Only 25 calibration images." in text
    left_out = next(frame.value for frame in test.dataframe if "reason" in frame.value)
    assert left_out["name"].tolist() == [HOSTILE]
    assert test.header[0].value == "!\\[x\\](https\\:\u2060//evil.example/a.png)"


MEASURED = {"metric": "top1", "value": 0.7, "ci95": [0.6, 0.8], "n": 100}


def test_notes_of_the_check_are_told(draw: Draw, seeded_store: Store) -> None:
    note = {"kind": "below", "sentence": "Few images are right: 70.0 %.", "remedy": "Look at the images."}
    checks = {**MEASURED, "findings": [{**note, "serious": False}]}
    test = draw("run", run=finished(seeded_store, checks=checks))
    assert "Few images are right: 70.0 %. Look at the images." in shown(test)
    assert not test.warning


def test_some_images_are_shown_with_both_answers(draw: Draw, seeded_store: Store) -> None:
    run_id = finished(seeded_store)
    answer = {"predicted": "<b>b</b>", "right": True, "confidence": 0.98}
    row = {
        "image": "data:image/png;base64,iVBORw0KGgo=", "label": "<b>b</b>", **answer,
        "compressed": {"predicted": ":red[x]", "right": False, "confidence": 0.5},
    }  # fmt: skip
    outside = {**row, "image": "https://evil.example/a.png"}
    folder = seeded_store.run_folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREVIEW_NAME).write_text(json.dumps([row] * 8 + [outside]))
    test = draw("run", run=run_id)
    assert "what both networks say" in shown(test)
    pictures = html_of(test)
    assert pictures.count("<figure") == 8
    assert "✓ &lt;b&gt;b&lt;/b&gt; (98 %)" in pictures
    assert "✗ :red[x] (50 %)" in pictures
    assert "evil.example" not in pictures


def test_a_run_the_check_stopped_can_be_run_all_the_same(draw: Draw, seeded_store: Store) -> None:
    plan = dict(seeded_store.list_runs()[0].plan_row)
    asked = RunRequest(
        model="inspection/resnet20", plan=plan, data="/my/images", preprocessing={"scale": 1.0}, name="mine"
    )
    run_id = seeded_store.create_run(asked)
    seeded_store.finish(run_id, "failed", error=REFUSAL)
    test = draw("run", run=run_id)
    text = shown(test)
    assert "Normalisation seems to be missing" in text
    assert "--no-check" not in text
    test.button(key="run-unchecked").click().run()
    queued = seeded_store.list_runs()[0]
    assert queued.status == "queued"
    assert queued.request.check is False
    assert (queued.request.data, queued.request.preprocessing) == (asked.data, asked.preprocessing)


def test_other_failures_offer_no_such_thing(draw: Draw, seeded_store: Store) -> None:
    failed = next(run.id for run in seeded_store.list_runs() if run.status == "failed")
    test = draw("run", run=failed)
    assert not [button for button in test.button if button.key == "run-unchecked"]
    assert "Mend the cause" in shown(test)
