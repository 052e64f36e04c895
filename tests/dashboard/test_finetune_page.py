"""Fine-tuning on the Live run page: offered, begun, watched and told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers import begun_run

from dashboard.state import live_charts
from dashboard.state.progress import RunProgress
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.finetune.options import FinetuneOptions
from qaf_core.runs.estimate import FINETUNE_STAGES, Work
from qaf_core.runs.store.record import StoredEvent
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

from .conftest import Draw, shown


def finished(store: Store) -> str:
    """A finished run with a packed file (its content is not looked at here)."""
    run = next(run for run in store.list_runs() if run.status == "completed")
    path = store.run_folder(run.id) / PACKED_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"packed")
    return run.id


def point(epoch: int, held_back: float, best: float) -> dict[str, Any]:
    return {
        "epoch": epoch, "loss": None if epoch == 0 else held_back / 2, "held_back": held_back, "best": best,
        "fraction": epoch / 10, "elapsed_seconds": 3.0 * epoch,
    }  # fmt: skip


def begin(store: Store, parent: str) -> str:
    """A fine-tuning at work in this very process, three passes on."""
    fields = {"run": parent, **asdict(FinetuneOptions(trains="codes"))}
    request = RunRequest(model="inspection/resnet20", plan=dict(store.run(parent).plan_row), finetune=fields)
    run_id = begun_run(store, request)
    stage = {"stage": "finetuning", "fraction": 0.3, "message": "Learning"}
    store.append_event(run_id, RunEvent(kind="stage", data=stage, elapsed_seconds=1.0))
    for epoch, held_back, best in ((0, 0.2, 0.2), (1, 0.16, 0.16), (2, 0.1, 0.1), (3, 0.12, 0.1)):
        event = RunEvent(kind="finetune", data=point(epoch, held_back, best), elapsed_seconds=10.0 + epoch)
        store.append_event(run_id, event)
    return run_id


def test_it_begins_with_what_is_set(draw: Draw, seeded_store: Store, tmp_path: Path) -> None:
    parent = finished(seeded_store)
    test = draw("run", run=parent)
    assert "Start fine-tuning" in shown(test)
    test.radio(key="finetune-trains").set_value("codes").run()
    test.text_input(key="finetune-images").set_value(str(tmp_path)).run()
    test.button(key="start-finetune").click().run()
    begun = seeded_store.list_runs()[0]
    assert begun.status == "queued"
    assert begun.request.finetune == {
        "run": parent, "data": str(tmp_path), "labels": None, "trains": "codes", "epochs": 1000,
        "time_limit_seconds": 240.0, "seed": 0, "flips": None, "crops": None,
    }  # fmt: skip
    assert begun.request.plan == seeded_store.run(parent).request.plan
    assert "fine-tuned" in (begun.request.name or "")


def test_what_is_off_the_grid_is_a_curve_of_its_own_and_not_the_best(draw: Draw, seeded_store: Store) -> None:
    run_id = begin(seeded_store, finished(seeded_store))
    for epoch, held_back in ((4, 0.05), (5, 0.04)):
        data = {**point(epoch, held_back, 0.1), "on_grid": False}
        seeded_store.append_event(run_id, RunEvent(kind="finetune", data=data, elapsed_seconds=20.0))
    test = draw("run", run=run_id)
    text = shown(test)
    assert "best after pass 2" in text
    assert "0.2000 → 0.1000" in text
    assert "set on them again, layer by layer" in text
    rows = live_charts.finetune_rows([point(0, 0.2, 0.2), {**point(1, 0.1, 0.2), "on_grid": False}])
    assert rows == [{"epoch": 0, "on_grid": 0.2}, {"epoch": 1, "off_grid": 0.1}]


def test_what_is_set_stands_in_the_address(draw: Draw, seeded_store: Store) -> None:
    sent = {"trains": "scales", "minutes": "15", "learn-from": "more images"}
    test = draw("run", run=finished(seeded_store), **sent)
    assert test.radio(key="finetune-trains").value == "scales"
    assert test.select_slider(key="finetune-minutes").value == 15
    assert test.text_input(key="finetune-images").value == "more images"
    test.select_slider(key="finetune-minutes").set_value(30).run()
    assert test.query_params["minutes"] == "30"


def test_without_a_network_it_is_not_offered(draw: Draw, seeded_store: Store) -> None:
    run = next(run for run in seeded_store.list_runs() if run.status == "completed")
    assert "Start fine-tuning" not in shown(draw("run", run=run.id))


def test_while_it_learns_the_curve_and_its_numbers_show(draw: Draw, seeded_store: Store) -> None:
    run_id = begin(seeded_store, finished(seeded_store))
    test = draw("run", run=run_id)
    text = shown(test)
    assert "0.2000 → 0.1000" in text
    assert "50 %" in text
    assert "best after pass 2" in text
    assert "learns for 4 min 00 s at most" in text
    assert ", fine-tuned" in text
    assert len(test.get("vega_lite_chart")) == 1
    test.button(key="stop-run").click().run()
    assert seeded_store.cancel_requested(run_id)


@pytest.mark.parametrize("best_epoch", [2, 0])
def test_the_result_says_what_was_gained(draw: Draw, seeded_store: Store, best_epoch: int) -> None:
    parent = finished(seeded_store)
    run_id = begin(seeded_store, parent)
    before = seeded_store.run(parent)
    assert before.compressed is not None
    value = before.compressed.value + (0.013 if best_epoch else 0.0)
    asked, after = seeded_store.run(run_id).request.finetune or {}, 0.1 if best_epoch else 0.2
    told = {
        **asked, "before": 0.2, "after": after, "images": 9000, "labelled": True,
        "best_epoch": best_epoch, "epochs": 3, "status": "completed", "seconds": 10.0,
    }  # fmt: skip
    result = {**before.result, "run_id": run_id, "finetune": told}
    result["compressed"] = {**before.compressed.to_dict(), "value": value}
    seeded_store.finish(run_id, "completed", result)
    text = shown(draw("run", run=run_id))
    assert "pass 2 of 3 kept" in text or not best_epoch
    assert ("+1.3 points" in text) == bool(best_epoch)
    assert "9,000 images with labels" in text
    assert ("Nothing was gained" in text) == (not best_epoch)


def test_its_progress_has_its_own_stages() -> None:
    expected = {"loading": 1.0, "finetuning": 8.0, "saving": 0.5, "baseline": 0.5, "evaluating": 1.0}
    work = Work(stages=expected, layers={}, images=10)
    progress = RunProgress(run_id="x", stages=FINETUNE_STAGES, work=work)
    rows: list[tuple[str, dict[str, Any]]] = [
        ("stage", {"stage": "finetuning", "fraction": 0.0}),
        ("finetune", point(0, 0.2, 0.2)),
        ("stage", {"stage": "finetuning", "fraction": 0.5}),
    ]
    seen = []
    for number, (moment, (kind, data)) in enumerate(zip((1.0, 1.0, 5.0), rows, strict=True), 1):
        event = RunEvent(kind=kind, data=data, elapsed_seconds=moment)
        progress.absorb([StoredEvent(seq=number, event=event)])
        seen.append(progress.fraction())
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(5.0 / 11.0)
    assert [stage for stage, _ in progress.stage_states()] == list(FINETUNE_STAGES)
    assert dict(progress.stage_states())["finetuning"] == "now"
