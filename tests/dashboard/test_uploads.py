"""Uploaded files are listed with what uses them; only what no model uses is deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dashboard.views.models import uploads
from qaf_core.data.formats.zip import DATA_FOLDER
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import MODELS_FOLDER, add_model
from qaf_core.errors import QafError
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

from .conftest import Draw, shown


@pytest.fixture
def uploaded(workspace: Path) -> tuple[Path, Path]:
    """Weights and a folder of images, as an upload leaves them."""
    (workspace / MODELS_FOLDER).mkdir(parents=True)
    shipped = find_model("digits/cnn").weights
    assert shipped is not None
    weights = Path(shutil.copy(shipped, workspace / MODELS_FOLDER / "mine.safetensors"))
    images = workspace / DATA_FOLDER / "parts-1234abcd"
    (images / "good").mkdir(parents=True)
    (images / "good" / "a.png").write_bytes(b"\0" * 5000)
    return weights, images


def test_nothing_uploaded_is_nothing_shown(draw: Draw) -> None:
    assert "Uploaded files" not in [expander.label for expander in draw("models").expander]


def test_uploads_are_listed_and_deleted(draw: Draw, store: Store, uploaded: tuple[Path, Path]) -> None:
    weights, images = uploaded
    store.create_run(RunRequest(model="digits/cnn", data=str(images)))
    add_model(store.workspace, model_id="my/digits", base="digits/cnn", weights=str(weights))
    test = draw("models")
    text = shown(test)
    assert any(expander.label.startswith("Uploaded files") for expander in test.expander)
    assert "used by my/digits" in text
    assert "in 1 run" in text
    assert "5 kB" in text
    test.button(key=f"delete-data-{images.name}").click().run()
    shown(test)
    assert not images.exists()
    assert weights.exists()


def test_only_uploads_are_deleted(workspace: Path, tmp_path: Path, uploaded: tuple[Path, Path]) -> None:
    other = tmp_path / "precious.safetensors"
    other.write_bytes(b"")
    with pytest.raises(QafError, match="only what was uploaded"):
        uploads.delete(workspace, other)
    assert other.exists()
