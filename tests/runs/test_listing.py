"""Rows of runs tell what the runs themselves tell, and follow every change."""

from __future__ import annotations

import json

import pytest

from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.runs import listing, management
from qaf_core.runs.listing import list_rows, plan_text, refresh_row
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from tests.conftest import seed_finished_run


def test_rows_tell_what_runs_tell(seeded_store: Store) -> None:
    for _time in range(2):  # made, then kept
        rows, runs = list_rows(seeded_store), seeded_store.list_runs()
        assert [row.id for row in rows] == [run.id for run in runs]
        for row, run in zip(rows, runs, strict=True):
            assert (row.title, row.status, row.method, row.error) == (
                run.title, run.status, run.method, run.error
            )  # fmt: skip
            assert (row.is_partial, row.size_bytes, row.drop) == (run.is_partial, run.size_bytes, run.drop)
            assert (row.value is None) == (run.compressed is None)
    best = next(row for row in rows if row.method == "dense")
    assert best.plan == "dense 5 · W4 · A8"
    assert (best.shares, best.bits, best.before) == ({"dense": 1.0}, 4.0, (0.942, 0.931, 0.951))
    assert list_rows(seeded_store, model="digits/cnn") == ()


def test_kept_rows_follow_every_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = seed_finished_run(store)
    waiting = store.create_run(RunRequest(model="digits/cnn", plan={"layers": []}))
    list_rows(store)
    made: list[str] = []
    tell = listing._summarise
    monkeypatch.setattr(listing, "_summarise", lambda run, folder: made.append(run.id) or tell(run, folder))
    list_rows(store)
    assert made == [waiting], "rows of ended runs are kept"
    store.add_to_result(run_id, {"latencies": [
        {"model": "factorized_int8", "source": "this machine", "batch": 2, "median_ms": 5.0,
         "peak_memory_bytes": 7},
        {"model": "dense_int8", "source": "device kit", "batch": 1, "median_ms": 9.0},
    ]})  # fmt: skip
    (row,) = [row for row in list_rows(store) if row.id == run_id]
    assert (row.latency_ms, row.dense_ms, row.memory_bytes) == (2.5, None, 7)
    management.rename(store, run_id, "another")
    store.run_folder(run_id).mkdir(parents=True)
    (store.run_folder(run_id) / PACKED_NAME).write_bytes(b"123")
    refresh_row(store, run_id)
    (row,) = [row for row in list_rows(store) if row.id == run_id]
    assert (row.title, row.files) == ("another", {"packed": 3})
    store.finish(waiting, "failed", error="no")
    assert {row.id: row.error for row in list_rows(store)}[waiting] == "no"


def test_damaged_runs_and_damaged_rows(seeded_store: Store) -> None:
    damaged, odd = [run.id for run in seeded_store.list_runs() if run.status == "completed"][:2]
    list_rows(seeded_store)
    with seeded_store.transaction() as connection:
        connection.execute("UPDATE runs SET result = '{' WHERE id = ?", (damaged,))
        connection.execute(
            "UPDATE runs SET listed = ?, tags = '7' WHERE id = ?", (json.dumps({"title": 3}), odd)
        )
    rows = {row.id: row for row in list_rows(seeded_store)}
    assert rows[damaged].damaged
    assert rows[damaged].status == "failed"
    assert rows[odd].title != 3
    assert rows[odd].tags == ()


def test_a_workspace_that_can_only_be_read_is_listed_too(seeded_store: Store) -> None:
    seeded_store.read_only = True
    assert len(list_rows(seeded_store)) == 7
    assert seeded_store.rows("SELECT COUNT(*) FROM runs WHERE listed IS NOT NULL") == [(0,)]


def test_a_plan_in_one_line() -> None:
    rows = [("cp", 134, 4), ("cp", 8, 8), ("dense", None, 8), ("keep", None, None),
            ("tucker2", (24, 32), (4, 4, 8))]  # fmt: skip
    layers = tuple(LayerPlan(name="a", structure=name, rank=rank, bits=bits) for name, rank, bits in rows)
    plan = Plan(model="m", layers=layers)
    assert plan_text(plan) == "cp 2, dense 1, keep 1, tucker2 1 · R 8–134 · W4/8 · A8"
    assert plan_text(Plan(model="m", layers=())) == ""
