"""Models taken off: what runs refer to stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from qaf_core.data.workspace.registry import add_model
from qaf_core.runs.store.removal import remove_registered
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store


@pytest.mark.parametrize("field", [None, "data", "calibration"])
def test_images_go_unless_a_run_refers_to_them(store: Store, workspace: Path, field: str | None) -> None:
    images = workspace / "data" / "parts-1234"
    images.mkdir(parents=True)
    add_model(workspace, model_id="own", base="digits/cnn", data=str(images))
    if field is not None:
        store.create_run(RunRequest(model="digits/cnn", **{field: str(images)}))
    assert remove_registered(workspace, "own") == (() if field else (images,))
    assert images.exists() == (field is not None)
