"""What the version before networks were graphs has left behind: its files open, and mean what they meant.

The files in ``stored`` were written by that version, with ``make.py.txt`` beside them (packed format 2).
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qaf_core.cli.entry import main
from qaf_core.data.load import to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.packed.read import load_packed, read_index, verify_packed
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in
from qaf_core.network.plan.types import Plan
from qaf_core.network.plan.validation import validate_plan
from qaf_core.pipeline.tasks import find_task, predict
from qaf_core.runs.jobs.images import load_evaluation_images
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

STORED = Path(__file__).parent / "stored"
RUN = "20261127-031600-e68508"


class Attending(nn.Module):
    """An attention over the pixels of an image, with a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, stride=2)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.embed(images).flatten(2).mT)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        found: Tensor = self.head(tokens.mean(1))
        return found


def assert_puts_out_what_it_did(model: nn.Module, name: str) -> None:
    with np.load(STORED / f"{name}.npz") as kept:
        images, outputs = torch.from_numpy(kept["images"]), torch.from_numpy(kept["outputs"])
    with torch.inference_mode():
        found = model(images)
    torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-4)


def test_a_packed_file_of_the_version_before_puts_out_the_same() -> None:
    path = STORED / "digits.safetensors"
    assert verify_packed(path)["format"] == 2
    model = load_packed(path, build_model(find_model("digits/cnn"), with_weights=False))
    assert_puts_out_what_it_did(model, "digits")


@pytest.mark.parametrize("name", ["attention_opened", "attention_whole"])
def test_a_packed_attention_puts_out_the_same(name: str) -> None:
    """Its projections were layers of their own, or one tensor that was kept."""
    path = STORED / f"{name}.safetensors"
    index = read_index(path)
    assert index["format"] == 2
    kept = {key for key, _ in index["kept"]}
    assert ("attention.in_proj_weight" in kept) == (name == "attention_whole")
    torch.manual_seed(5)
    model = load_packed(path, Attending())
    assert_puts_out_what_it_did(model, name)
    assert [row[0] for row in index["layers"]] == list(chains_in(model))


def test_a_plan_of_the_version_before_holds() -> None:
    source = find_model("digits/cnn")
    plan = Plan.from_dict(json.loads((STORED / "digits_plan.json").read_text()))
    inventory = take_inventory(build_model(source), source.input_shape)
    validate_plan(plan, inventory)
    assert {row.name for row in plan.layers} == {info.name for info in inventory if info.planned}


@pytest.fixture
def left_workspace(workspace: Path) -> Path:
    """A workspace as the version before left it, with one finished run."""
    folder = workspace / "runs" / RUN
    folder.mkdir(parents=True)
    (workspace / "runs.sqlite").write_bytes(gzip.decompress((STORED / "runs.sqlite.gz").read_bytes()))
    shutil.copy(STORED / "digits.safetensors", folder / PACKED_NAME)
    shutil.copy(STORED / "digits_preview.json", folder / "preview.json")
    return workspace


def test_a_run_of_the_version_before_is_shown(
    left_workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", RUN, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with Store(left_workspace) as store:
        record = store.run(RUN)
        assert record.result is not None
        assert (record.status, record.model, record.request.name) == ("completed", "digits/cnn", "stored")
        assert len(record.result["layers"]) == 5
        for row in record.result["layers"]:
            assert "weight" in store.layer_details(RUN, row["name"])["histograms"]
        assert store.events_since(RUN)
        path = left_workspace / record.result["file"]["path"]
    assert told["compressed"] == record.result["compressed"]
    assert path.stat().st_size == record.result["file"]["size_bytes"]
    assert main(["show", RUN]) == 0
    assert RUN in capsys.readouterr().out
    assert main(["runs"]) == 0
    assert "digits/cnn" in capsys.readouterr().out


def test_the_accuracy_it_told_is_what_its_file_has_today(left_workspace: Path) -> None:
    with Store(left_workspace) as store:
        record = store.run(RUN)
    assert record.result is not None
    source = source_of(record.request, left_workspace)
    images, task = load_evaluation_images(record.request, source, left_workspace), find_task(source.task)
    model = load_packed(left_workspace / "runs" / RUN / PACKED_NAME, build_model(source))
    predictions = predict(task, model, to_batches(images, source, 128))
    found = task.metric(predictions, task.collate(images), images.classes)
    assert (found.n, found.value) == (record.result["compressed"]["n"], record.result["compressed"]["value"])
