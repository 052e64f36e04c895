"""What Explore expects: accuracy before a run, the table of harms, the best plan under budgets."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from dashboard.state import expectations, sheets
from dashboard.state.overrides import NOTHING
from dashboard.views.explore import expected, optimise
from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.files import ContentCache
from qaf_core.network.plan.cost import plan_cost
from qaf_core.network.plan.rules import plan_for_ratio, replace_layer
from qaf_core.network.plan.types import LayerPlan
from qaf_core.runs.jobs.plans import knowledge as subject
from qaf_core.runs.jobs.plans.knowledge import Knowledge
from qaf_core.runs.store.kinds import digest_request
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.search.budget.predict import curve_from_errors
from qaf_core.search.sensitivity.settings import Sensitivity, Setting, harm_rows

from .conftest import Draw, base_of, serve, shown, table_rows

MODEL, LAYER = "inspection/resnet20", "layer3.1.conv1"
REQUEST = expectations.request_for(MODEL, NOTHING, "builtin", None, 8)


def explore(store: Store) -> None:
    """Make the model known, as a job ``sensitivity`` does."""
    inventory = load_inventory(find_model(MODEL))
    harms = {("dense", None, bits): 0.2 * 4.0 ** (1 - bits) for bits in (8, 4, 3, 2)} | {("cp", 134, 4): 1e-5}
    known = Knowledge(
        sensitivity=Sensitivity(
            activation_bits=8,
            settings={row.name: harm_rows(row, harms, 8) for row in inventory if row.planned},
            floor=1e-5,
            unit="divergence",
            how="curvature",
            temperature=1.0,
            images=512,
            seconds=1.0,
        ),
        curve=curve_from_errors(),
        baseline={"metric": "top1", "value": 0.97, "n": 1000, "ci95": [0.96, 0.98]},
        inventory=inventory,
    )
    cache = ContentCache(store.workspace / subject.FOLDER)
    cache.keep(digest_request(REQUEST, store.workspace), subject._to_dict(known))


def test_a_model_is_explored_once_and_then_predicted(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    test.button(key="explore-model").click().run()
    assert "Waiting for a free place" in shown(test)
    explore(store)
    (asked,) = serve(store, lambda _job: {})
    assert (asked.kind, asked.request) == ("sensitivity", REQUEST)
    text = shown(test.run())
    assert "Accuracy, expected" in text
    assert "512 calibration images, no run yet" in text
    assert "Predict accuracy" not in text


def test_a_plan_that_would_collapse_is_told_with_its_layers(draw: Draw, store: Store) -> None:
    explore(store)
    plan = plan_for_ratio(load_inventory(find_model(MODEL)), model=MODEL, ratio=1.0, bits=2, method="dense")
    test = draw("explore", model=MODEL)
    test.session_state[sheets.BOOK_KEY].sheets[MODEL] = sheets.Sheet(base=plan)
    text = shown(test.run())
    assert "expected to collapse under this plan. Most harm is done by" in text


def test_a_setting_of_the_table_of_harms_goes_into_the_plan(
    draw: Draw, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore(store)
    test = draw("explore", model=MODEL)
    key = next(frame.key for frame in test.dataframe if (frame.key or "").startswith("heat-"))
    test.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": [(0, "3 bits")]}}
    shown(test.run())
    first = table_rows(test)[0]
    assert (first["structure"], first["rank"], first["bits"], first["edited"]) == ("dense", "", "3", True)


def test_predictions_are_told_at_once(store: Store) -> None:
    explore(store)
    inventory = load_inventory(find_model(MODEL))
    plan = plan_for_ratio(inventory, model=MODEL, ratio=2.0, bits=3)
    assert expectations.known(store, REQUEST) is not None
    began = time.process_time()
    for _ in range(10):
        known = expectations.known(store, REQUEST)
        assert known is not None
        known[1].predict(plan)
    assert (time.process_time() - began) / 10 < 0.05


def found(job: JobRecord) -> dict[str, Any]:
    plan = plan_for_ratio(load_inventory(find_model(MODEL)), model=MODEL, ratio=1.0, bits=4, method="dense")
    plan = replace_layer(plan, LayerPlan(name=LAYER, structure="cp", rank=40, bits=3))
    return {
        "plan": plan.to_dict(), "budget": list(job.request.budgets), "binding": "size",
        "price": "1 % more would win about 0.03 points", "predicted": {"value": 0.96, "ci95": [0.95, 0.97]},
        "cost": {"size_bytes": 60_000, "bops": 2}, "baseline_cost": {"bops": 100},
    }  # fmt: skip


def test_the_best_plan_under_budgets_fills_the_table(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    assert test.button(key="find-best").disabled
    test.number_input(key="budget-size").set_value(60.0)
    test.number_input(key="budget-bops").set_value(2.5)
    test.multiselect(key=f"locked-{MODEL}").set_value(["conv1"]).run()
    test.button(key="find-best").click().run()
    (asked,) = serve(store, found)
    assert list(asked.request.budgets) == ["size=60kB", "bops=0.025x"]
    assert list(asked.request.locks) == ["conv1=dense:8"]
    text = shown(test.run())
    assert "size=60kB, bops=0.025x: 60 kB, 2.0 % of the bit-operations, expected 96.0 %" in text
    assert "What holds it back is size: 1 % more would win about 0.03 points." in text
    plan = base_of(test, MODEL)
    assert plan.layer(LAYER).rank == 40


def test_what_is_found_is_taken_once_on_each_model(draw: Draw, store: Store) -> None:
    def found_for(job: JobRecord) -> dict[str, Any]:
        inventory = load_inventory(find_model(job.request.model))
        plan = plan_for_ratio(inventory, model=job.request.model, ratio=1.0, bits=8, method="dense")
        return {**found(job), "plan": plan.to_dict()}

    test = draw("explore")
    for model in (MODEL, "digits/cnn"):
        test.button(key=f"choose-{model}").click().run()
        test.number_input(key="budget-size").set_value(60.0).run()
        test.button(key="find-best").click().run()
        serve(store, found_for)
        test.run()
        assert {row.structure for row in base_of(test, model).layers} == {"dense"}
        test.button(key="reset-plan").click().run()
    test.button(key=f"choose-{MODEL}").click().run()
    assert "cp" in {row["structure"] for row in table_rows(test)}


def test_what_a_search_tells_is_in_japanese_too(draw: Draw, store: Store) -> None:
    explore(store)
    test = draw("explore", model=MODEL, lang="ja")
    test.number_input(key="budget-size").set_value(60.0).run()
    test.button(key="find-best").click().run()
    serve(store, found)
    text = shown(test.run())
    assert "1 % 緩めると約 0.03 ポイント改善" in text
    assert "校正画像 512 枚、実行はまだなし" in text


def test_what_more_room_would_save_is_told_as_the_search_tells_it() -> None:
    told = "1 % more would save about 3.2 kB"
    assert optimise._price_text(told) == told


def test_trade_offs_hold_runs_against_what_was_expected(draw: Draw, store: Store) -> None:
    explore(store)
    plan = plan_for_ratio(load_inventory(find_model(MODEL)), model=MODEL, ratio=2.0, bits=4)
    for method in ("joint", "paper"):
        run_id = store.create_run(RunRequest(model=MODEL, plan=plan.to_dict(), method=method))
        told = {"metric": "top1", "n": 1000, "ci95": [0.93, 0.96], "value": 0.95, "agreement": 0.97}
        cost = plan_cost(load_inventory(find_model(MODEL)), plan).to_dict()
        store.finish(
            run_id,
            "completed",
            {"baseline": told, "compressed": told, "cost": cost, "baseline_cost": cost, "drop": 0.0},
        )
    text = shown(draw("tradeoffs"))
    assert "of 1 runs measured what was expected" in text


def test_presets_of_an_explored_model_lie_on_its_front(draw: Draw, store: Store) -> None:
    explore(store)
    test = draw("explore", model=MODEL)
    found = expectations.known(store, REQUEST)
    assert found is not None
    test.button(key="preset-aggressive").click().run()
    plan = base_of(test, MODEL)
    assert plan.layers == expectations.smallest_within(found, 0.03)
    assert 0.005 < found[1].predict(plan).drop <= 0.03
    assert "Plain rounding" not in shown(test)


def test_where_plain_rounding_is_better_the_page_says_so(draw: Draw, store: Store) -> None:
    explore(store)
    plan = plan_for_ratio(load_inventory(find_model(MODEL)), model=MODEL, ratio=1.0, bits=3, method="dense")
    rows = tuple(
        LayerPlan(name=row.name, structure="dense", bits=2) if row.name.startswith("layer3.2") else row
        for row in plan.layers
    )
    test = draw("explore", model=MODEL)
    test.session_state[sheets.BOOK_KEY].sheets[MODEL] = sheets.Sheet(base=replace(plan, layers=rows))
    assert "Plain rounding, its bits spread over the layers, is expected to lose" in shown(test.run())


def test_a_front_is_asked_for_once_and_can_be_stopped(draw: Draw, store: Store) -> None:
    test = draw("explore", model=MODEL)
    test.button(key="measure-front").click().run()
    assert "0 of 10 searches are done" in shown(test)
    test.button(key="measure-front").click().run()
    assert store.count_queued("heavy") == 10
    place = f"front-{MODEL}"
    again = draw("explore", model=MODEL, **{place: test.query_params[place]})  # another browser
    assert "0 of 10 searches are done" in shown(again)
    test.button(key="stop-front").click().run()
    assert "10 of 10 searches are done" in shown(test)
    assert store.count_queued("heavy") == 0


def test_uneven_bits_have_one_column_whichever_factor_has_fewer() -> None:
    def setting(bits: int | tuple[int, ...], rank: int = 5) -> Setting:
        row = LayerPlan(name="a", structure="cp", rank=rank, bits=bits)
        return Setting(row=row, harm=1.0, size_bytes=1, bops=1)

    first = expected._cells([setting(4), setting(3), setting((4, 3, 4))])
    second = expected._cells([setting(4), setting(3), setting((4, 4, 3))])
    assert list(first) == list(second) == ["rank 1, 4 bits", "rank 1, 4/3 bits", "rank 1, 3 bits"]


def test_losses_that_no_run_could_tell_are_not_written_out() -> None:
    assert [expected._small(value) for value in (0.0, 4e-13, 0.0123)] == ["0", "< 0.001", "0.012"]
