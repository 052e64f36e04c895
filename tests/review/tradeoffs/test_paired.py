"""Differences between runs, image by image."""

from __future__ import annotations

import pytest

from qaf_core.pipeline.intervals import paired_interval
from qaf_core.review.tradeoffs.paired import against_original, against_run
from qaf_core.runs.evidence.answers import read_answers
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from tests.conftest import seed_finished_run
from tests.runs.evidence.test_answers import MODEL, keep_answers


def test_runs_are_compared_image_by_image(store: Store) -> None:
    good, bad, other, bare = (seed_finished_run(store, value=value) for value in (0.98, 0.95, 0.9, 0.91))
    for run_id, wrong, data in ((good, 20, "same"), (bad, 50, "same"), (other, 90, "others")):
        keep_answers(store, run_id, wrong, data)
    rows = list_rows(store)
    reference = next(row for row in rows if row.id == good)
    told = against_run(rows, reference, read_answers(store, MODEL, [good, bad, other, bare]))
    low, high = paired_interval(0, 30, 1003)
    assert (told[bad].value, told[bad].low, told[bad].high) == (-30 / 1003, float(low), float(high))
    verdicts = [told[each].verdict for each in (good, bad, other, bare)]
    assert verdicts == ["same", "worse", "unknown", "unknown"]
    assert told[bare].value == pytest.approx(0.91 - 0.98)
    assert told[bad].text().startswith("−3.0 (−4.")


def test_against_the_original_the_interval_is_the_run_s_own(store: Store) -> None:
    run_id = seed_finished_run(store, value=0.9)
    told = against_original(list_rows(store))[run_id]
    assert (told.value, told.low, told.high) == pytest.approx((-0.042, -0.05, -0.034))
    assert told.sentence() == "worse: chance does not explain it"
