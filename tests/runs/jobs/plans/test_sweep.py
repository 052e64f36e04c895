"""The points of a sweep: how their runs are called, and which run is the same point measured earlier."""

from typing import Any

from qaf_core.network.plan.types import Plan
from qaf_core.runs.jobs.plans.sweep import measured_point, point_name, run_request
from qaf_core.runs.store.request import RunRequest, SearchRequest
from qaf_core.runs.store.store import Store

MODEL = "digits/cnn"


def search(**changes: Any) -> SearchRequest:
    return SearchRequest(model=MODEL, budgets=("size=0.1x", "drop=1pp"), **changes)


def finish(store: Store, request: RunRequest) -> str:
    run_id = store.create_run(request)
    store.finish(run_id, "completed", {})
    return run_id


def made_by(request: SearchRequest) -> RunRequest:
    plan = Plan(model=MODEL, layers=(), activation_bits=request.activation_bits)
    return run_request(request, plan.to_dict())


def test_a_name_tells_of_locks_and_stays_short() -> None:
    assert point_name(search()) == "found, size=0.1x+drop=1pp"
    locks = tuple(f"layers.{place}.conv=keep" for place in range(50))
    assert point_name(search(locks=locks)) == "found, size=0.1x+drop=1pp, 50 locked"
    assert made_by(search(locks=locks)).name == "found, size=0.1x+drop=1pp, 50 locked"


def test_only_a_run_of_the_same_search_is_the_point(store: Store) -> None:
    locked = search(locks=("features.0=keep",))
    for other in (made_by(search(activation_bits=32)), made_by(locked)):
        finish(store, other)
    tuned = RunRequest(**{**vars(made_by(search())), "finetune": {"run": "20250101-000000-abcdef"}})
    finish(store, tuned)
    assert measured_point(store, search()) is None
    assert measured_point(store, locked) is None
    wanted = finish(store, made_by(search()))
    finish(store, tuned)
    found = measured_point(store, search())
    assert found is not None
    assert found.id == wanted
