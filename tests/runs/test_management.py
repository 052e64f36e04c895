"""Runs are named, tagged, put away, deleted and brought back, and go on where they were cut off."""

from __future__ import annotations

import os
import time

import pytest

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs import management
from qaf_core.runs.listing import RunRow, list_rows
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from tests.conftest import seed_finished_run


def rows_of(store: Store, *, deleted: bool = False) -> dict[str, RunRow]:
    return {row.id: row for row in list_rows(store, deleted=deleted)}


def test_a_run_is_named_noted_tagged_and_put_away(store: Store) -> None:
    first, second = seed_finished_run(store), seed_finished_run(store)
    management.rename(store, first, "  for the \n board ")
    management.set_note(store, first, "taken in June")
    management.tag(store, [first, second], add=["line 3", "line 3"])
    management.tag(store, [second], add=["b"], remove=["line 3"])
    management.archive(store, [second])
    rows = rows_of(store)
    assert (rows[first].title, rows[first].note) == ("for the board", "taken in June")
    assert store.run(first).title == "for the board"
    assert (rows[first].tags, rows[second].tags) == (("line 3",), ("b",))
    assert (rows[first].archived, rows[second].archived) == (False, True)
    management.rename(store, first, "")
    assert store.run(first).request.name is None
    management.archive(store, [second], False)
    assert not rows_of(store)[second].archived


def test_what_is_out_of_bounds_is_refused(store: Store) -> None:
    run_id = seed_finished_run(store)
    with pytest.raises(QafError, match="a name is too long"):
        management.rename(store, run_id, "x" * 121)
    with pytest.raises(QafError, match="a note is too long"):
        management.set_note(store, run_id, "x" * 4001)
    for bad in ("", "a,b", "x" * 41):
        with pytest.raises(QafError, match="tag"):
            management.tag(store, [run_id], add=[bad])
    with pytest.raises(QafError, match="too many tags"):
        management.tag(store, [run_id], add=[str(number) for number in range(21)])
    assert rows_of(store)[run_id].tags == ()


def test_deleted_runs_are_gone_everywhere_and_come_back_whole(store: Store) -> None:
    run_id, other = seed_finished_run(store), seed_finished_run(store)
    before = store.run(run_id)
    management.delete(store, [run_id, other])
    assert store.list_runs() == ()
    assert rows_of(store) == {}
    for look in (store.run, store.find):
        with pytest.raises(WorkspaceError, match="no such run"):
            look(run_id)
    assert set(rows_of(store, deleted=True)) == {run_id, other}
    assert management.find_deleted(store, run_id) == run_id
    with pytest.raises(WorkspaceError, match="several deleted runs"):
        management.find_deleted(store, run_id[:4])
    with pytest.raises(WorkspaceError, match="no such deleted run"):
        management.find_deleted(store, "x")
    management.restore(store, [run_id])
    assert store.run(run_id) == before
    assert store.events_since(run_id)


def test_what_is_at_work_or_needed_is_not_deleted(store: Store) -> None:
    parent, other = seed_finished_run(store), seed_finished_run(store)
    waiting = store.create_run(RunRequest(model="digits/cnn", finetune={"run": parent}))
    for run_id in (waiting, parent):
        with pytest.raises(WorkspaceError, match="stop that first"):
            management.delete(store, [other, run_id])
    assert len(rows_of(store)) == 3, "none is deleted where one cannot be"
    store.request_cancel(waiting)
    management.delete(store, [waiting, parent])
    assert set(rows_of(store)) == {other}


def test_after_a_while_deleted_runs_go_for_good(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = seed_finished_run(store), seed_finished_run(store)
    store.run_folder(old).mkdir(parents=True)
    management.delete(store, [old])
    later = time.time() + management.KEPT_SECONDS + 60
    monkeypatch.setattr(management.time, "time", lambda: later)
    management.delete(store, [new])
    assert set(rows_of(store, deleted=True)) == {new}
    assert not store.run_folder(old).exists()
    assert store.rows("SELECT COUNT(*) FROM layers WHERE run_id = ?", (old,)) == [(0,)]
    assert management.purge(store) == 1
    assert not rows_of(store, deleted=True)


def test_an_interrupted_run_goes_on_under_its_id(store: Store) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn", name="cut off"))
    assert store.claim_next(os.getpid()) == run_id
    store.append_event(run_id, RunEvent(kind="stage", data={"stage": "loading"}))
    store.put_layer(run_id, 0, {"name": "conv1"}, {})
    assert not management.resume(store, run_id)
    store.finish(run_id, "interrupted", error="The process ended.")
    assert management.resume(store, run_id)
    run = store.run(run_id)
    assert (run.status, run.error, run.layer_rows, run.title) == ("queued", None, (), "cut off")
    assert store.events_since(run_id) == ()
    assert store.claim_next(os.getpid()) == run_id
