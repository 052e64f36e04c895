"""Explore's search for the fastest plan: what it asks for, and how its answer fills the table."""

from __future__ import annotations

import os
from typing import Any

import pytest

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.errors import QafError
from qaf_core.network.plan.rules import plan_for_ratio, replace_layer
from qaf_core.network.plan.types import LayerPlan
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.store import Store

from .conftest import Draw, base_of, serve, shown

MODEL = "inspection/resnet20"
LAYER = "layer3.1.conv1"


def answer(job: JobRecord, **more: Any) -> dict[str, Any]:
    """A plan in which one layer is Tucker-2 and all others are dense."""
    if job.request.answer_bound == 0.1:
        raise QafError("the layers cannot be timed", remedy="close other programs")
    inventory = load_inventory(find_model(MODEL))
    plan = plan_for_ratio(inventory, model=MODEL, ratio=1.0, bits=4, method="dense")
    plan = replace_layer(plan, LayerPlan(name=LAYER, structure="tucker2", rank=(24, 24), bits=4))
    row = {"name": LAYER, "structure": "tucker2", "rank": [24, 24], "latency_ms": 0.2, "dense_ms": 0.5}
    candidates = [
        {key: row[key] for key in ("structure", "rank", "latency_ms")}
        | {"output_error": 0.04, "verdict": "chosen"},
        {"structure": "dense", "rank": None, "latency_ms": 0.5, "output_error": None,
         "verdict": "slower than the chosen one"},
    ]  # fmt: skip
    return {"plan": plan.to_dict(), "choices": [{**row, "candidates": candidates}], **more}


@pytest.mark.parametrize(
    ("ratio", "kind", "note"),
    [(0.57, "success", ""), (1.01, "warning", "The whole network is no faster")],
)
def test_the_time_of_the_whole_network_is_told(
    draw: Draw, store: Store, ratio: float, kind: str, note: str
) -> None:
    spread = {"value": ratio, "low": ratio - 0.02, "high": ratio + 0.02}
    whole = {"dense_ms": 0.7, "planned_ms": 0.7 * ratio, "ratio": spread}
    counted = {"changed": 0.021, "changed_by_dense": 0.002, "limit": 0.02, "images": 512}
    more = {"whole": whole, "note": note, "answers": counted}
    test = draw("explore", model=MODEL)
    test.button(key="find-fastest").click().run()
    (asked,) = serve(store, lambda job: answer(job, **more))
    test.run()
    told = [box.value for box in getattr(test, kind) if "faster form" in box.value]
    assert len(told) == 1
    assert f"{ratio:.2f}× as long" in told[0]
    assert "On 512 calibration images 2.1 % of the answers change. Plain rounding changes 0.2 %." in told[0]
    assert asked.request.answer_bound == 0.02
    assert note in shown(test)


def test_the_plan_it_finds_fills_the_table(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    assert "Find the fastest plan" in shown(test)
    test.button(key="find-fastest").click().run()
    assert "Waiting for a free place" in shown(test)
    (asked,) = serve(store, answer)
    text = shown(test.run())
    assert "1 layer gets a faster form" in text
    assert "0.50 ms as plain INT8, 0.20 ms as planned" in text
    assert (asked.kind, asked.request.model, asked.request.bits) == ("plan", MODEL, 4)
    plan = base_of(test, MODEL)
    assert next(row for row in plan.layers if row.name == LAYER).structure == "tucker2"
    test.button(key="start-run").click().run()
    queued = store.list_runs()[0]
    chosen = [row for row in queued.plan.layers if row.structure == "tucker2"]
    assert [row.name for row in chosen] == [LAYER]


def test_what_went_wrong_is_said(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    test.select_slider(key="fastest-answer-bound").set_value(0.1).run()
    test.button(key="find-fastest").click().run()
    serve(store, answer)
    assert "the layers cannot be timed" in shown(test.run())


def test_other_methods_have_no_search(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    test.button(key="use-dense").click().run()
    assert test.button(key="find-fastest").disabled


def test_a_search_shows_how_far_it_is_is_found_again_after_a_reload_and_can_be_stopped(
    draw: Draw, store: Store
) -> None:
    test = draw("explore", model=MODEL)
    test.button(key="find-fastest").click().run()
    job_id = store.claim_next(os.getpid())
    assert job_id is not None
    data = {"stage": "selecting", "fraction": 0.5, "message": "Timing {a}, 1 of 2 kinds"}
    store.append_event(job_id, RunEvent(kind="stage", data=data))
    assert "Timing {a}, 1 of 2 kinds." in shown(test.run())
    place = f"search-{MODEL}"
    assert job_id in test.query_params[place]
    reloaded = draw("explore", model=MODEL, **{place: job_id})
    assert "Searching" in shown(reloaded)
    other = draw("explore", model=MODEL)
    assert "Searching" not in shown(other)
    other.button(key="find-fastest").click().run()  # the same search is shared
    assert "Searching" in shown(other)
    assert [store.job(job_id)] == [store.last_job("plan", MODEL)]
    other.button(key=f"stop-plan-{job_id}").click().run()
    assert store.cancel_requested(job_id)
    store.finish(job_id, "cancelled")
    assert "Searching" not in shown(test.run())
