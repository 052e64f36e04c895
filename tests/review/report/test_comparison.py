"""The cells of runs beside each other; the page is tested in tests/dashboard."""

from __future__ import annotations

import pytest

from qaf_core.network.plan.types import LayerPlan
from qaf_core.review.decision.evidence import collect_evidence
from qaf_core.review.report import comparison
from qaf_core.review.report.comparison import compare_runs, layer_table, overview, plan_cell
from qaf_core.runs.store.store import Store
from qaf_core.text.said import untranslated as _
from tests.conftest import SEEDED_LAYERS, seed_finished_run


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (None, "–"),
        (LayerPlan(name="a", structure="keep"), "Keep"),
        (LayerPlan(name="a", structure="dense", bits=8), "Dense · W8"),
        (LayerPlan(name="a", structure="tucker2", rank=(24, 32), bits=(4, 4, 8)), "tucker2 24 × 32 · W4/4/8"),
    ],
)
def test_a_layer_in_a_cell(row: LayerPlan | None, told: str) -> None:
    assert plan_cell(row, {"dense": "Dense", "keep": "Keep"}) == told


def test_layers_are_sorted_by_the_worst_of_all_runs(store: Store) -> None:
    first = seed_finished_run(store, ratio=2.0)
    second = seed_finished_run(store, ratio=4.0, status="cancelled", done=2)
    runs = [collect_evidence(store, run_id) for run_id in (first, second)]
    found = compare_runs(runs, [{SEEDED_LAYERS[1]: 0.7}, {}])
    table = layer_table(found, comparison.ERRORS, comparison.BY_WEIGHTS, {}, only_different=False, _=_)
    assert table.rows[0] == [SEEDED_LAYERS[1], "14.8 %", "22.0 %", "14.8 %", "44.0 %"]
    shares = layer_table(found, comparison.DIVERGENCE, comparison.BY_SHARE, {}, only_different=False, _=_)
    assert shares.rows[0] == [SEEDED_LAYERS[1], "70.0 %", "–"]
    plans = layer_table(found, comparison.PLAN, comparison.IN_ORDER, {}, only_different=True, _=_)
    assert plans.rows[-1] == [SEEDED_LAYERS[-1], "cp 20 · W4", "keep"]
    assert (len(plans.rows) - 1, 2) in plans.changed


def test_what_differs_from_the_first_run_is_marked(store: Store) -> None:
    ids = [seed_finished_run(store), seed_finished_run(store, method="dense")]
    table = overview([collect_evidence(store, run_id) for run_id in ids], _)
    marked = {table.rows[line][0] for line, column in table.changed}
    assert "Method" in marked
    assert "Seed" not in marked
    assert table.header[2:] == ["joint 2", "dense 2"]
