"""What a decision rests on, of a finished run: answers kept or made anew, robustness, stability, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import RunCancelled, WorkspaceError
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.runs.evidence import networks
from qaf_core.runs.evidence.gallery import picture_addresses
from qaf_core.runs.evidence.networks import load_predictions
from qaf_core.runs.evidence.predictions import read_predictions
from qaf_core.runs.evidence.robustness import check_run_robustness
from qaf_core.runs.evidence.stability import check_run_stability
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

Run = tuple[Path, str]


@pytest.fixture
def own_run(finished_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may change."""
    workspace, run_id = finished_run
    shutil.copytree(workspace, tmp_path / "own")
    return tmp_path / "own", run_id


def test_answers_are_kept_with_the_run_and_the_same_when_made_anew(
    own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run_id = own_run
    with Store(workspace) as store:
        folder, record = store.run_folder(run_id), store.run(run_id)
        kept = read_predictions(folder)
        assert kept is not None
        right = (kept.compressed["ranked"][:, 0] == kept.targets["labels"]).mean()
        assert record.compressed is not None
        assert float(right) == record.compressed.value
        (folder / "predictions.npz").unlink()
        events: list[RunEvent] = []
        built: list[ModelSource] = []
        monkeypatch.setattr(
            networks, "build_model", lambda source: built.append(source) or build_model(source)
        )
        anew = load_predictions(store, run_id, Progress(events.append))
        assert read_predictions(folder) is not None  # and kept again
    assert (anew.task, anew.classes, anew.data_sha256) == (kept.task, kept.classes, kept.data_sha256)
    for part in ("original", "compressed", "targets"):
        for key, values in getattr(kept, part).items():
            np.testing.assert_allclose(getattr(anew, part)[key], values, rtol=1e-5)
    assert {event.data["stage"] for event in events} == {"evaluating"}
    assert len(built) == 1  # for both networks


def test_checks_are_kept_with_the_run(own_run: Run) -> None:
    workspace, run_id = own_run
    with Store(workspace) as store:
        folder = store.run_folder(run_id)
        found = check_run_robustness(store, run_id, images=20)
        assert json.loads((folder / "robustness.json").read_text()) == json.loads(json.dumps(found))
        assert (found["n"], set(found["disturbances"])) == (
            20, {"noise", "blur", "brightness", "jpeg", "shift"}
        )  # fmt: skip
        told = check_run_stability(store, run_id, minutes=0.005)
        assert json.loads((folder / "stability.json").read_text()) == json.loads(json.dumps(told))
        assert all(row["passed"] for row in told["checks"] if not row["check"].startswith("soak"))
        with pytest.raises(RunCancelled):
            check_run_robustness(store, run_id, images=20, progress=Progress(should_stop=lambda: True))


def test_what_cannot_be_checked_is_said(own_run: Run) -> None:
    workspace, run_id = own_run
    with Store(workspace) as store:
        queued = store.create_run(RunRequest(model="digits/cnn"))
        with pytest.raises(WorkspaceError, match="no compressed network"):
            load_predictions(store, queued)
        with pytest.raises(WorkspaceError, match="minutes out of range"):
            check_run_stability(store, run_id, minutes=0)
        with pytest.raises(WorkspaceError, match="number of images"):
            check_run_robustness(store, run_id, images=0)


def test_pictures_come_by_their_place(own_run: Run) -> None:
    workspace, run_id = own_run
    with Store(workspace) as store:
        found = picture_addresses(store, run_id, [3, 0, 10**6])
    assert set(found) == {3, 0}
    assert all(address.startswith("data:image/") for address in found.values())
