"""What a decision rests on, of a finished run: answers kept or made anew, robustness, stability, images."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import RunCancelled, WorkspaceError
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.marks import COLOURS, GAP_PX, MISSED, RIGHT
from qaf_core.runs.evidence import networks
from qaf_core.runs.evidence.gallery import picture_addresses
from qaf_core.runs.evidence.networks import load_predictions
from qaf_core.runs.evidence.predictions import PairedPredictions, read_predictions
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


def test_masks_are_drawn_on_both_pictures(own_run: Run) -> None:
    workspace, run_id = own_run
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[3, :4] = 1
    paired = PairedPredictions(
        task="segmentation", classes=("ground", "one"), images="x", data_sha256="0" * 64,
        original={"masks": masks}, compressed={"masks": np.zeros_like(masks)}, targets={"masks": masks},
    )  # fmt: skip
    with Store(workspace) as store:
        address = picture_addresses(store, run_id, [3], paired)[3]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))), np.int64)
    assert picture.shape == (192, 2 * 192 + GAP_PX, 3)
    frame = picture[:96].reshape(96, -1, 3)
    for left, name in ((0, RIGHT), (192 + GAP_PX, MISSED)):
        edge = frame[1:90, left].mean(axis=0)  # the area's own edge, in its colour
        colour = [int(COLOURS[name][place : place + 2], 16) for place in (1, 3, 5)]
        assert np.abs(edge - colour).max() < 40
