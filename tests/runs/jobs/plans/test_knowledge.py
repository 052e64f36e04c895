"""What is known of a model, and what its runs teach: from a workspace with a run in it."""

from pathlib import Path

import pytest

from qaf_core.errors import PlanError
from qaf_core.files import ContentCache
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import Progress
from qaf_core.runs.jobs.plans import knowledge as subject
from qaf_core.runs.jobs.plans.knowledge import Knowledge, describe_sensitivity
from qaf_core.runs.jobs.plans.latency import layer_latencies
from qaf_core.runs.jobs.plans.search import carry_out, predict_plan, search_plan
from qaf_core.runs.jobs.plans.sweep import front_requests
from qaf_core.runs.store.kinds import digest_request
from qaf_core.runs.store.request import RunRequest, SearchRequest, SensitivityRequest
from qaf_core.runs.store.store import Store
from qaf_core.search import latency_table
from qaf_core.search.budget.predict import curve_from_errors
from qaf_core.search.sensitivity.settings import Sensitivity, harm_rows

MODEL = "digits/cnn"
REQUEST = SensitivityRequest(model=MODEL)


def info(name: str) -> LayerInfo:
    return LayerInfo(
        name=name,
        kind="conv2d",
        weight_shape=(16, 16, 3, 3),
        kernel=(3, 3),
        padding=(1, 1),
        input_hw=(8, 8),
        output_hw=(8, 8),
        macs=147_456,
        params=2304,
        output_elements=1024,
        structures=("cp", "dense", "keep"),
    )


@pytest.fixture
def known() -> Knowledge:
    inventory = (info("first"), info("second"))
    harms = {("dense", None, bits): 4.0 ** (1 - bits) for bits in (8, 4, 3, 2)} | {("cp", 12, 4): 0.02}
    sensitivity = Sensitivity(
        activation_bits=8,
        settings={row.name: harm_rows(row, harms, 8) for row in inventory},
        floor=1e-4,
        unit="squared error",
        how="curvature",
        temperature=1.0,
        images=10,
        seconds=1.0,
    )
    baseline = {"metric": "top1", "value": 0.9, "n": 500, "ci95": [0.87, 0.93]}
    return Knowledge(
        sensitivity=sensitivity, curve=curve_from_errors(), baseline=baseline, inventory=inventory
    )


def plan(bits: int = 3, activation_bits: int = 8) -> Plan:
    rows = (LayerPlan(name=name, structure="dense", bits=bits) for name in ("first", "second"))
    return Plan(model=MODEL, layers=tuple(rows), activation_bits=activation_bits)


def finish(store: Store, agreement: float, **changes: object) -> None:
    run_id = store.create_run(RunRequest(model=MODEL, plan=plan().to_dict(), **changes))  # type: ignore[arg-type]
    told = {"metric": "top1", "n": 500, "ci95": [0.8, 0.95]}
    result = {
        "baseline": {**told, "value": 0.9},
        "compressed": {**told, "value": 0.9, "agreement": agreement},
        "drop": 0.0,
        "drop_ci95": [-0.01, 0.01],
    }
    store.finish(run_id, "completed", result)


def test_runs_teach_and_those_of_other_images_do_not(store: Store, known: Knowledge) -> None:
    before = known.predictor(store, REQUEST).predict(plan())
    finish(store, 0.998, data="elsewhere.npz")
    finish(store, 0.998, method="paper")
    finish(store, 0.998, classes="others.txt")
    assert known.predictor(store, REQUEST).predict(plan()) == before
    for _ in range(3):
        finish(store, 0.998)
    after = known.predictor(store, REQUEST).predict(plan())
    assert after.value > before.value
    assert "3 runs of this model" in after.to_dict()["learnt_from"]


def test_what_is_known_is_read_back_without_torch(workspace: Path, known: Knowledge) -> None:
    cache = ContentCache(workspace / subject.FOLDER)
    digest = digest_request(REQUEST, workspace)
    assert subject.read_knowledge(digest, workspace) is None
    cache.keep(digest, subject._to_dict(known))
    assert subject.read_knowledge(digest, workspace) == known
    assert describe_sensitivity(known, MODEL)["layers"][0]["name"] == "first"


def test_predictions_of_other_activations_are_refused(store: Store, known: Knowledge) -> None:
    predictor = known.predictor(store, REQUEST)
    assert predict_plan(known, predictor, plan())["predicted"]["value"] < 0.9
    with pytest.raises(PlanError, match="other activations"):
        predict_plan(known, predictor, plan(activation_bits=32))


def test_what_makes_no_sense_is_told_before_anything_is_measured(
    store: Store, known: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "load_explored", lambda *_: pytest.fail("loads the model"))
    with pytest.raises(PlanError, match="8 bits or not at all"):
        subject.find_knowledge(
            SensitivityRequest(model=MODEL, activation_bits=4), store.workspace, Progress()
        )
    monkeypatch.setattr("qaf_core.runs.jobs.plans.search.load_inventory", lambda _: known.inventory)
    for budgets, locks, told in (
        (("size=0.5x", "latency=0.5x"), (), "this budget; got latency=0.5x"),
        (("drop=1pp",), (), "this budget; got drop=1pp"),
        (("size=0.5x",), ("first=keep",), "no locked layers; got first=keep"),
    ):
        for method in ("joint", "paper", "sequential"):
            request = SearchRequest(model=MODEL, budgets=budgets, locks=locks, method=method)
            with pytest.raises(PlanError, match=told):
                search_plan(request, store, Progress())


def test_several_budgets_latency_among_them(
    store: Store, known: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"layer": name, "structure": structure, "rank": rank, "median_ms": ms}
        for name in ("first", "second")
        for structure, rank, ms in (("dense", None, 1.0), ("cp", 6, 0.4), ("cp", 24, 0.8))
    ]
    monkeypatch.setattr(latency_table, "measure_layer_table", lambda *_, **__: rows)
    latency, whole = layer_latencies(known.inventory, store.workspace, Progress())
    by_setting = {(s.row.structure, s.row.bits): latency(s) for s in known.sensitivity.settings["first"]}
    assert whole == 2.0
    assert by_setting["dense", 4] == 1.0 < by_setting["keep", None]
    assert 0.4 < by_setting["cp", 4] < 0.8
    monkeypatch.setattr("qaf_core.runs.jobs.plans.search.find_knowledge", lambda *_: known)
    monkeypatch.setattr("qaf_core.runs.jobs.plans.search.load_inventory", lambda _: known.inventory)
    request = SearchRequest(
        model=MODEL, budgets=("latency=0.9x", "size=0.5x"), locks=("second=dense:8",), time_limit=0.0
    )
    found = search_plan(request, store, Progress())
    assert [row.structure for row in found.plan.layers] == ["cp", "dense"]
    with pytest.raises(PlanError, match="latency"):
        search_plan(SearchRequest(model=MODEL, budgets=("latency=0.1x",)), store, Progress())


def test_a_search_of_a_sweep_queues_the_run_of_what_it_found(
    store: Store, known: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qaf_core.runs.jobs.plans.search.find_knowledge", lambda *_: known)
    monkeypatch.setattr("qaf_core.runs.jobs.plans.search.load_inventory", lambda _: known.inventory)
    for request in front_requests(REQUEST, ["size=0.6x+bops=0.6x"], ["found", "dense", "joint"], 0.0):
        job = store.job(store.ask(request))
        assert job is not None
        assert job.request.about == MODEL
        told = carry_out(store, job, Progress())
        run = store.run(told["run"])
        assert (run.method, run.request.name) == (
            "dense" if request.method == "dense" else "joint", f"{request.method}, size=0.6x+bops=0.6x"
        )  # fmt: skip
        assert run.plan.to_dict() == told["plan"]
        assert told["cost"]["size_bytes"] <= 0.6 * told["baseline_cost"]["size_bytes"]
        assert request.method != "dense" or all(row.rank is None for row in run.plan.layers)
