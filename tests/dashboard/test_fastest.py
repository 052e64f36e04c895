"""Explore's search for the fastest plan: what it asks for, and how its answer fills the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dashboard.state import jobs
from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.errors import QafError
from qaf_core.network.plan.rules import LayerPlan, plan_for_ratio, replace_layer
from qaf_core.runs.store.store import Store

from .conftest import Draw, settle, shown

MODEL = "inspection/resnet20"
LAYER = "layer3.1.conv1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands are answered at once with a plan in which one layer is Tucker-2 and all others are dense."""
    told: list[list[str]] = []
    inventory = load_inventory(find_model(MODEL))
    plan = plan_for_ratio(inventory, model=MODEL, ratio=1.0, bits=4, method="dense")
    plan = replace_layer(plan, LayerPlan(name=LAYER, structure="tucker2", rank=(24, 24), bits=4))
    row = {"name": LAYER, "structure": "tucker2", "rank": [24, 24], "latency_ms": 0.2, "dense_ms": 0.5}
    candidates = [
        {key: row[key] for key in ("structure", "rank", "latency_ms")}
        | {"output_error": 0.04, "verdict": "chosen"},
        {"structure": "dense", "rank": None, "latency_ms": 0.5, "output_error": None, "verdict": "slower"},
    ]

    def answer(arguments: Sequence[str], **_: Any) -> dict[str, Any]:
        told.append(list(arguments))
        if "--error-bound" in arguments and arguments[arguments.index("--error-bound") + 1] == "0.3":
            raise QafError("the layers cannot be timed", remedy="close other programs")
        return {"plan": plan.to_dict(), "choices": [{**row, "candidates": candidates}]}

    monkeypatch.setattr(jobs, "run_command", answer)
    return told


@pytest.mark.parametrize(
    ("ratio", "kind", "note"),
    [(0.57, "success", ""), (1.01, "warning", "The whole network is no faster")],
)
def test_the_time_of_the_whole_network_is_told(
    draw: Draw, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, ratio: float, kind: str, note: str
) -> None:
    answer = jobs.run_command
    spread = {"value": ratio, "low": ratio - 0.02, "high": ratio + 0.02}
    whole = {"dense_ms": 0.7, "planned_ms": 0.7 * ratio, "ratio": spread}
    counted = {"changed": 0.021, "changed_by_dense": 0.002, "limit": 0.02, "images": 512}
    more = {"whole": whole, "note": note, "answers": counted}
    monkeypatch.setattr(jobs, "run_command", lambda *given, **named: {**answer(*given, **named), **more})
    test = draw("explore", model=MODEL)
    test.button(key="find-fastest").click().run()
    settle(f"fastest-{MODEL}-{test.session_state['session-id']}")
    test.run()
    told = [box.value for box in getattr(test, kind) if "faster form" in box.value]
    assert len(told) == 1
    assert f"{ratio:.2f} times as long" in told[0]
    assert "On 512 calibration images 2.1 % of the answers change. Plain INT8 changes 0.2 %." in told[0]
    assert asked[0][asked[0].index("--answer-bound") + 1] == "0.02"
    assert note in shown(test)


def test_the_plan_it_finds_fills_the_table(draw: Draw, store: Store, asked: list[list[str]]) -> None:
    test = draw("explore", model=MODEL)
    assert "Find the fastest plan" in shown(test)
    test.button(key="find-fastest").click().run()
    settle(f"fastest-{MODEL}-{test.session_state['session-id']}")
    text = shown(test.run())
    assert "1 layer gets a faster form" in text
    assert "0.50 ms as plain INT8, 0.20 ms as planned" in text
    arguments = asked[0]
    assert arguments[:4] == ["plan", MODEL, "--structure", "auto"]
    assert arguments[arguments.index("--bits") + 1] == "4"
    plan = test.session_state["plan-bases"][MODEL]
    assert next(row for row in plan.layers if row.name == LAYER).structure == "tucker2"
    test.button(key="start-run").click().run()
    queued = store.list_runs()[0]
    chosen = [row for row in queued.plan["layers"] if row["structure"] == "tucker2"]
    assert [row["name"] for row in chosen] == [LAYER]


def test_what_went_wrong_is_said(draw: Draw, store: Store, asked: list[list[str]]) -> None:
    test = draw("explore", model=MODEL)
    test.select_slider(key="fastest-bound").set_value(0.3).run()
    test.button(key="find-fastest").click().run()
    settle(f"fastest-{MODEL}-{test.session_state['session-id']}")
    assert "the layers cannot be timed" in shown(test.run())


def test_other_methods_have_no_search(draw: Draw, store: Store, asked: list[list[str]]) -> None:
    test = draw("explore", model=MODEL)
    test.button(key="use-dense").click().run()
    assert test.button(key="find-fastest").disabled
