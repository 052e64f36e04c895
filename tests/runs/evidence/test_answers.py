"""The right answers of many runs, kept in the store and compared image by image."""

from __future__ import annotations

import numpy as np
import pytest

from qaf_core.runs.evidence import answers as module
from qaf_core.runs.evidence.answers import forget_answers, read_answers
from qaf_core.runs.evidence.predictions import PairedPredictions, keep_predictions
from qaf_core.runs.store.store import Store
from tests.conftest import seed_finished_run

MODEL = "inspection/resnet20"
LABELS = np.arange(1003) % 6


def keep_answers(store: Store, run_id: str, wrong: int, data: str = "same") -> None:
    """Predictions of a run that answers the first ``wrong`` images wrong."""
    ranked = LABELS.copy()
    ranked[:wrong] = (ranked[:wrong] + 1) % 6
    paired = PairedPredictions(
        task="classification", classes=tuple("abcdef"), images="test", data_sha256=data,
        original={"ranked": LABELS[:, None]}, compressed={"ranked": ranked[:, None]},
        targets={"labels": LABELS},
    )  # fmt: skip
    store.run_folder(run_id).mkdir(parents=True, exist_ok=True)
    keep_predictions(store.run_folder(run_id), paired)


def test_answers_are_read_from_files_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, other, bare = (seed_finished_run(store, value=value) for value in (0.98, 0.95, 0.9, 0.91))
    for run_id, wrong, data in ((good, 20, "same"), (bad, 50, "same"), (other, 90, "others")):
        keep_answers(store, run_id, wrong, data)
    ids = [good, bad, other, bare]
    for _time in range(2):  # read from files, then from the table
        found = read_answers(store, MODEL, ids)
        assert set(found) == {good, bad, other}
        assert [int(np.bitwise_count(found[each].right).sum()) for each in (good, bad)] == [983, 953]
        monkeypatch.setattr(module, "read_predictions", None)
    forget_answers(store, good)
    assert store.rows("SELECT COUNT(*) FROM answers") == [(3,)]
