"""The command ``sweep``: a measured front, which goes on where it was stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.interrupt import EXIT_CANCELLED, EXIT_DONE, execute, stop_on_interrupt
from qaf_core.cli.options import (
    ActBits,
    Calibration,
    Classes,
    Data,
    EffortName,
    Json,
    Model,
    PreprocessingFile,
    Seed,
    Weights,
    Workspace,
    image_fields,
)
from qaf_core.cli.runs import TimeLimit, refining_seconds, run_here
from qaf_core.cli.text import print_json, print_stage, print_table
from qaf_core.errors import PlanError
from qaf_core.factorization.effort import Effort
from qaf_core.review.tradeoffs.pareto import knee, pareto_front
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.text.units import percent_text, points_text, size_text

if TYPE_CHECKING:
    from pathlib import Path

    from qaf_core.runs.store.request import SearchRequest

SIGNS = {"front": "★", "knee": "★ knee"}


def sweep(
    model: Model,
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=LIMIT,…",
            help="Each one point; joined by + they hold together [default: five sizes]",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD,…",
            help="found, dense (bits allocated alike), or the best uniform joint, paper, sequential plan "
            "[default: found,dense]",
        ),
    ] = None,
    time_limit: TimeLimit = None,
    effort: EffortName = Effort.STANDARD,
    act_bits: ActBits = None,
    data: Data = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> int:
    """Measure a front of plans under several budgets; what was measured before is not done again."""
    from qaf_core.runs.jobs.plans.sweep import BUDGETS, METHODS, front_requests
    from qaf_core.runs.store.request import SensitivityRequest

    folder = default_workspace() if workspace is None else workspace
    _, fields = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    exploration = SensitivityRequest(**fields, activation_bits=8 if act_bits is None else act_bits)
    points: list[dict[str, Any]] = []
    seconds = refining_seconds(time_limit, effort)
    for request in front_requests(
        exploration, _parts(budgets) or BUDGETS, _parts(methods) or METHODS, seconds, effort
    ):
        try:
            point = _measure(request, workspace)
        except PlanError as error:
            print(f"{request.method}, {'+'.join(request.budgets)}: {error}", file=sys.stderr)
            continue
        if point is None:
            return EXIT_CANCELLED
        points.append(point)
    _mark(points)
    if as_json:
        print_json({"model": model, "points": points})
    else:
        _print_points(points)
    return EXIT_DONE


def _parts(texts: list[str] | None) -> list[str]:
    return [part for text in texts or () for part in text.split(",") if part]


def _measure(request: SearchRequest, workspace: Path | None) -> dict[str, Any] | None:
    """One point, measured now or earlier; None where the run was stopped."""
    from qaf_core.runs.jobs.plans.sweep import measured_point, run_request
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        earlier = measured_point(store, request)
        if earlier is not None:
            return _point(request, earlier.id, dict(earlier.result))
        with stop_on_interrupt("what was measured is kept", print_stage) as progress:
            result = execute(store, replace(request, then_run=False), progress)
    run = run_here(run_request(request, result["plan"]), workspace)
    return _point(request, run["run_id"], run) if run["status"] == "completed" else None


def _point(request: SearchRequest, run_id: str, run: dict[str, Any]) -> dict[str, Any]:
    return {
        "budget": "+".join(request.budgets),
        "method": request.method,
        "run_id": run_id,
        "metric": run["compressed"]["metric"],
        "value": run["compressed"]["value"],
        "drop": run["drop"],
        "size_bytes": run["cost"]["size_bytes"],
        "bops_fraction": run["cost"]["bops"] / run["baseline_cost"]["bops"],
        "mark": None,
    }


def _mark(points: list[dict[str, Any]]) -> None:
    """Name those on the front by size, and its knee."""
    front = pareto_front([point["size_bytes"] for point in points], [point["value"] for point in points])
    for index in front:
        points[index]["mark"] = "front"
    turn = knee([points[i]["size_bytes"] for i in front], [points[i]["value"] for i in front])
    if turn is not None:
        points[front[turn]]["mark"] = "knee"


def _print_points(points: list[dict[str, Any]]) -> None:
    cells = [
        (
            point["budget"], point["method"], size_text(point["size_bytes"]),
            percent_text(point["bops_fraction"]), percent_text(point["value"]),
            points_text(-point["drop"]), SIGNS.get(point["mark"], ""), point["run_id"],
        )
        for point in points
    ]  # fmt: skip
    print_table(("budget", "method", "size", "bit operations", "metric", "points", "best", "run"), cells)
