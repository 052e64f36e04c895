"""The start page: five steps on the shipped example, also in an empty workspace, and words explained."""

from __future__ import annotations

import pytest

from dashboard.views.start.start import EXAMPLE
from dashboard.widgets import ui
from qaf_core.runs.evidence.exchange import list_evidence
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store

from .conftest import Draw, shown


def test_it_begins_in_an_empty_workspace(draw: Draw, store: Store) -> None:
    assert "Five steps, two minutes" in shown(draw("start"))
    assert store.list_runs() == ()
    assert "What the network costs today" in shown(draw("start", step="1"))
    assert [run.id for run in store.list_runs()] == list_evidence(EXAMPLE)


def test_the_example_is_marked_as_measured_elsewhere(draw: Draw, store: Store) -> None:
    draw("start", step="1")
    (row,) = list_rows(store)
    assert row.tags == ("example",)
    assert "measured elsewhere, taken over with its evidence" in shown(draw("run", run=row.id))
    japanese = shown(draw("run", run=row.id, lang="ja"))
    assert "校正に 350 枚、評価に別の 449 枚を使用" in japanese
    assert "scikit-learn の手書き数字 · 評価用" in japanese


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_step_is_drawn(draw: Draw, store: Store, language: str) -> None:
    for step in range(1, 6):
        test = draw("start", step=str(step), lang=language)
        text = shown(test)
        assert ("根拠に基づく" if language == "ja" else "decided on evidence") in text
        assert not test.error


def test_the_run_of_the_example_is_repeated_live(draw: Draw, store: Store) -> None:
    test = draw("start", step="2")
    shown(test)
    next(button for button in test.button if button.key == "start-live").click().run()
    newest = store.list_runs()[0]
    assert newest.status == "queued"
    assert newest.request.plan == store.run(list_evidence(EXAMPLE)[0]).request.plan
    assert test.session_state[ui.GUIDED_RUN_KEY] == newest.id
    watched = draw("run", run=newest.id)
    assert "Back to the example" not in [link.proto.label for link in watched.get("page_link")]
    watched.session_state[ui.GUIDED_RUN_KEY] = newest.id
    assert "Back to the example" in [link.proto.label for link in watched.run().get("page_link")]
