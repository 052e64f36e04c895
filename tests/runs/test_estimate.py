"""Work counted, and its pace learnt from the runs of a workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.factorization.effort import effort_options, work_share
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.estimate import EVENT, KNOWN_LAYER, STAGES, History, count_work, read_history, read_work
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

MODEL, OTHER = "digits/cnn", "inspection/resnet20"


@pytest.fixture(scope="module")
def inventory() -> tuple[LayerInfo, ...]:
    return load_inventory(find_model(MODEL))


@pytest.fixture(scope="module")
def request_(inventory: tuple[LayerInfo, ...]) -> RunRequest:
    plan = plan_for_ratio(inventory, model=MODEL, ratio=2.0, bits=4)
    return RunRequest(model=MODEL, plan=plan.to_dict())


def keep_run(store: Store, request: RunRequest, inventory: tuple[LayerInfo, ...], *, pace: float) -> str:
    """A run that took ``pace`` times what was counted for each stage, on 100 images."""
    run_id = store.create_run(request)
    work, elapsed = count_work(request, inventory, History(pace={})), 0.0
    store.append_event(run_id, RunEvent(kind=EVENT, data=work.to_dict()))
    for stage in STAGES:
        store.append_event(
            run_id, RunEvent(kind="stage", data={"stage": stage, "message": ""}, elapsed_seconds=elapsed)
        )
        share = 100 / work.images if stage in ("baseline", "evaluating") else 1.0
        elapsed += pace * share * work.stages[stage]
    rows = [row for row in request.plan["layers"] if row["structure"] != "keep"]
    measured = {"metric": "top1", "value": 0.9, "n": 100, "ci95": [0.8, 0.95]}
    told = {"compressed": measured, "layers": rows, "seconds": {"total": elapsed}}
    for position, row in enumerate(rows):
        store.put_layer(run_id, position, row, {})
    store.finish(run_id, "completed", told)
    return run_id


def test_before_there_is_a_run_the_basis_counts(
    store: Store, request_: RunRequest, inventory: tuple[LayerInfo, ...]
) -> None:
    history = read_history(store, request_)
    assert (history.runs, history.images, history.original_known) == (0, None, False)
    work = count_work(request_, inventory, history)
    assert set(work.stages) == set(STAGES)
    assert history.seconds(work) == work.stages
    assert work.stages["solving"] == pytest.approx(sum(work.layers.values()))
    assert 2.0 < sum(work.stages.values()) < 60.0


def test_the_pace_is_learnt_by_stage_from_the_runs_most_alike(
    store: Store, request_: RunRequest, inventory: tuple[LayerInfo, ...]
) -> None:
    keep_run(store, replace(request_, model=OTHER), inventory, pace=9.0)
    assert read_history(store, request_).pace["solving"] == pytest.approx(9.0)
    for pace in (2.0, 3.0, 4.0):
        run_id = keep_run(store, replace(request_, seed=7), inventory, pace=pace)
    assert read_work(store, run_id) is not None
    history = read_history(store, request_)
    assert history.runs == 3
    assert {stage: round(pace, 6) for stage, pace in history.pace.items()} == dict.fromkeys(history.pace, 3.0)
    work = count_work(request_, inventory, history)
    assert sum(history.seconds(work).values()) == pytest.approx(3 * sum(work.stages.values()))


def test_what_is_known_already_takes_no_time(
    store: Store, request_: RunRequest, inventory: tuple[LayerInfo, ...]
) -> None:
    keep_run(store, request_, inventory, pace=1.0)
    history = read_history(store, request_)
    assert (history.images, history.original_known) == (100, True)
    work = count_work(request_, inventory, history)
    assert set(work.layers.values()) == {KNOWN_LAYER}
    assert work.stages["baseline"] == 0.0
    rows = [dict(row, bits=3) if row["name"] == "features.3" else row for row in request_.plan["layers"]]
    changed = count_work(replace(request_, plan={**request_.plan, "layers": rows}), inventory, history)
    assert [name for name, seconds in changed.layers.items() if seconds > KNOWN_LAYER] == ["features.3"]


def test_effort_takes_its_time(store: Store, request_: RunRequest, inventory: tuple[LayerInfo, ...]) -> None:
    keep_run(store, request_, inventory, pace=1.0)
    history, known = read_history(store, request_), History(pace={})
    thorough = replace(request_, plan={**request_.plan, "options": effort_options("thorough")})
    found, usual = (count_work(asked, inventory, known).layers for asked in (thorough, request_))
    share = work_share(effort_options("thorough"))
    assert found == {name: pytest.approx(share * seconds) for name, seconds in usual.items()}
    assert count_work(thorough, inventory, history).layers == found  # what is kept was solved otherwise


def test_fine_tuning_takes_its_time_limit(request_: RunRequest, inventory: tuple[LayerInfo, ...]) -> None:
    asked = replace(request_, finetune={"run": "x", "time_limit_seconds": 240.0})
    work = count_work(asked, inventory, History(pace={}), images=50)
    assert work.stages["finetuning"] == 240.0
    assert "solving" not in work.stages


def test_what_a_run_told_otherwise_is_passed_over(store: Store, request_: RunRequest) -> None:
    run_id = store.create_run(request_)
    store.append_event(run_id, RunEvent(kind=EVENT, data={"stages": 3}))
    assert read_work(store, run_id) is None
