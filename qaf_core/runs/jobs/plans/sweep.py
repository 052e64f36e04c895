"""A measured front: one search for each budget and way to meet it, and a run of what each finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from qaf_core.factorization.effort import Effort
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import (
    FOUND,
    ImagesRequest,
    RunRequest,
    SearchRequest,
    SensitivityRequest,
)
from qaf_core.runs.store.store import Store

TOGETHER = "+"  # joins budgets that hold at once
BUDGETS = ("size=0.25x", "size=0.16x", "size=0.1x", "size=0.07x", "size=0.05x")
METHODS = (FOUND, "dense")


def front_requests(
    request: SensitivityRequest,
    budgets: Sequence[str],
    methods: Sequence[str],
    time_limit: float,
    effort: str = Effort.STANDARD,
) -> list[SearchRequest]:
    """The searches of a sweep, from the loosest budget on, each to be followed by a run.

    Args:
        request: The model and its images.
        budgets: Each one point, or several joined by ``+``.
        methods: Ways to meet a budget (``SearchRequest.method``).
        time_limit: Seconds of refinement of each plan that is found.
        effort: How hard the layers of each plan are solved.
    """
    return [
        SearchRequest(
            **vars(request),
            budgets=tuple(budget.split(TOGETHER)),
            method=method,
            time_limit=time_limit,
            effort=effort,
            then_run=True,
        )
        for budget in budgets
        for method in methods
    ]


def run_request(request: SearchRequest, plan: dict[str, object]) -> RunRequest:
    """The run of a plan that a search has found."""
    images = {item.name: getattr(request, item.name) for item in fields(ImagesRequest)}
    method = "joint" if request.method == FOUND else request.method
    return RunRequest(**images, plan=plan, method=method, name=point_name(request))


def point_name(request: SearchRequest) -> str:
    """What the run of a search is called."""
    name = f"{request.method}, {TOGETHER.join(request.budgets)}"
    locked = f", {len(request.locks)} locked" if request.locks else ""
    return name + locked + ("" if request.effort == Effort.STANDARD else f", {request.effort}")


def measured_point(store: Store, request: SearchRequest) -> RunRecord | None:
    """The finished run of the same search, made earlier; None if there is none, or layers are locked."""
    if request.locks:  # a run's name tells how many, not which
        return None
    for run in store.list_runs(request.model):
        same = all(
            getattr(run.request, item.name) == getattr(request, item.name) for item in fields(ImagesRequest)
        )
        if (
            same
            and run.status == RunStatus.COMPLETED
            and run.request.name == point_name(request)
            and run.request.finetune is None
            and run.plan.activation_bits == request.activation_bits
        ):
            return run
    return None
