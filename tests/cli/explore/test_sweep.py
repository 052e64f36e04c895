"""``qaf sweep``: a point for each budget and method, the front marked, nothing measured twice."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli.entry import main
from qaf_core.cli.explore import sweep
from qaf_core.errors import PlanError
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.runs.jobs.plans import search
from qaf_core.runs.store.request import RunRequest, SearchRequest
from qaf_core.runs.store.store import Store

MODEL = "digits/cnn"
SIZES = {"size=30kB": (30_000, 0.98), "size=20kB": (20_000, 0.97), "size=10kB": (10_000, 0.6)}


class Found:
    plan = Plan(model=MODEL, layers=(LayerPlan(name="features.0", structure="dense", bits=8),))

    @classmethod
    def to_dict(cls) -> dict[str, Any]:
        return {"plan": cls.plan.to_dict()}


def finished(store: Store, request: RunRequest) -> dict[str, Any]:
    size, value = SIZES[str(request.name).split(", ")[1]]
    run_id = store.create_run(request)
    told = {"metric": "top1", "n": 100, "ci95": [0.5, 1.0]}
    value -= 0.05 * (request.method == "dense")
    result = {
        "baseline": {**told, "value": 0.99}, "compressed": {**told, "value": value, "agreement": 1.0},
        "drop": 0.99 - value, "drop_ci95": [0.0, 0.1], "cost": {"size_bytes": size, "bops": 1},
        "baseline_cost": {"size_bytes": 100_000, "bops": 4},
    }  # fmt: skip
    store.finish(run_id, "completed", result)
    return {**result, "run_id": run_id, "status": "completed"}


def test_points_are_measured_once_and_the_front_is_marked(
    workspace: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SearchRequest] = []

    def find(request: SearchRequest, *_: Any) -> type[Found]:
        asked.append(request)
        if list(request.budgets) == ["size=1kB"]:
            raise PlanError("nothing meets the budget")
        return Found

    monkeypatch.setattr(search, "search_plan", find)
    monkeypatch.setattr(sweep, "run_here", lambda request, _: finished(store, request))

    def points(*arguments: str) -> Sequence[dict[str, Any]]:
        command = ["sweep", MODEL, "--json", "--workspace", str(workspace), *arguments]
        assert main(command) == 0
        found: Sequence[dict[str, Any]] = json.loads(capsys.readouterr().out)["points"]
        return found

    first = points("--budgets", "size=30kB,size=20kB", "--budgets", "size=1kB")
    assert [(row["budget"], row["method"], row["mark"]) for row in first] == [
        ("size=30kB", "found", "front"), ("size=30kB", "dense", None),
        ("size=20kB", "found", "front"), ("size=20kB", "dense", None),
    ]  # fmt: skip
    assert len(asked) == 6
    again = points("--budgets", "size=30kB,size=20kB,size=10kB", "--methods", "found")
    assert len(asked) == 7
    assert [row["mark"] for row in again] == ["front", "knee", "front"]
    points("--budgets", "size=30kB", "--methods", "found", "--effort", "quick")
    assert [(row.effort, row.time_limit) for row in asked[6:]] == [("standard", 600.0), ("quick", 0.0)]
    assert [row["run_id"] for row in again[:2]] == [first[0]["run_id"], first[2]["run_id"]]
