"""Runs of a list are searched, named, tagged, archived, deleted and brought back on the page."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.widgets import ui
from qaf_core.runs import management
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from tests.conftest import seed_finished_run
from tests.dashboard.conftest import Draw, shown


def tools_of(store: Store, ids: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The tools for some runs, as if they were ticked."""
    monkeypatch.setattr(ui, "open_store", lambda: store)

    def script(ids: tuple[str, ...]) -> None:
        from dashboard.widgets import run_tools, ui
        from qaf_core.runs.listing import list_rows

        rows = list_rows(ui.open_store())
        run_tools.tools([row for row in rows if row.id in ids], key="runs")
        run_tools.deleted()

    return AppTest.from_function(script, default_timeout=60, args=(tuple(ids),)).run()


def test_search_and_tags_narrow_the_list(draw: Draw, seeded_store: Store) -> None:
    rows = list_rows(seeded_store)
    dense = next(row.id for row in rows if row.method == "dense")
    management.tag(seeded_store, [dense], add=["line 3"])
    management.set_note(seeded_store, dense, "for the board")
    management.archive(seeded_store, [rows[-1].id])
    test = draw("run")
    assert len(test.dataframe[0].value) == len(rows) - 1
    test.toggle(key="runs-archived").set_value(True).run()
    assert len(test.dataframe[0].value) == len(rows)
    test.text_input(key="runs-find").set_value("board DENSE").run()
    assert test.dataframe[0].value["tags"].tolist() == [["line 3"]]
    test.text_input(key="runs-find").set_value("no such words").run()
    assert "No run matches" in shown(test)
    test.text_input(key="runs-find").set_value("").run()
    test.multiselect(key="runs-tags").set_value(["line 3"]).run()
    assert len(test.dataframe[0].value) == 1
    shown(test)


def test_several_runs_are_deleted_and_the_deletion_undone(
    seeded_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [row.id for row in list_rows(seeded_store)[:2]]
    test = tools_of(seeded_store, ids, monkeypatch)
    test.button(key="runs-delete").click().run()
    assert not set(ids) & {row.id for row in list_rows(seeded_store)}
    assert "2 runs were deleted" in shown(test)
    test.button(key="undo").click().run()
    assert set(ids) <= {row.id for row in list_rows(seeded_store)}
    assert "were deleted" not in shown(test)
    test.button(key="runs-delete").click().run()
    test.multiselect(key="deleted-runs").set_value(ids[:1]).run()
    test.button(key="restore-runs").click().run()
    assert ids[0] in {row.id for row in list_rows(seeded_store)}
    test.button(key="purge-runs").click().run()
    assert not list_rows(seeded_store, deleted=True)


def test_a_run_is_named_noted_and_tagged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = seed_finished_run(store)
    test = tools_of(store, [run_id], monkeypatch)
    test.text_input[0].set_value("the chosen one")
    test.text_area[0].set_value("as agreed")
    next(button for button in test.button if button.label == "Save").click().run()
    (row,) = list_rows(store)
    assert (row.title, row.note) == ("the chosen one", "as agreed")
    management.tag(store, [run_id], add=["a"])
    test.run()
    tags = next(each for each in test.multiselect if each.label == "Tags of all chosen runs")
    tags.set_value([])
    [button for button in test.button if button.label == "Save"][1].click().run()
    assert list_rows(store)[0].tags == ()
    test.button(key="runs-archive").click().run()
    assert list_rows(store)[0].archived
    assert "1 run was archived" in shown(test)
    test.button(key="undo").click().run()
    assert not list_rows(store)[0].archived
    assert "archived:" not in shown(test)


def test_interrupted_runs_go_on_and_waiting_ones_are_not_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn", plan={"layers": []}))
    assert tools_of(store, [run_id], monkeypatch).button(key="runs-delete").disabled
    store.finish(run_id, "interrupted")
    test = tools_of(store, [run_id], monkeypatch)
    assert test.button(key="runs-compare").disabled
    test.button(key="runs-resume").click().run()
    assert store.run(run_id).status == "queued"


def test_a_deleted_run_is_brought_back_from_its_own_page(draw: Draw, store: Store) -> None:
    run_id = seed_finished_run(store)
    management.delete(store, [run_id])
    test = draw("run", run=run_id)
    assert "was deleted" in shown(test)
    test.button(key=f"restore-{run_id}").click().run()
    assert "Against the original" in shown(test)
