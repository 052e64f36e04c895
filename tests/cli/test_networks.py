"""``qaf inspect`` and ``qaf cost`` on networks with peculiarities: what cannot be done is said in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli.entry import main

PECULIAR = """
import torch
from torch import nn


class Peculiar(nn.Module):
    input_shape, classes = (3, 16, 16), ("good", "bad")

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.odd = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.read = nn.Linear(8, 8)
        self.auxiliary = nn.Linear(8, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, images):
        values = self.twice(self.twice(self.grouped(self.stem(images)))).flatten(2).mT
        values = self.attention(values, values, values)[0]
        values = self.odd(values, values, values)[0]
        values = self.other(self.one(values)) @ self.read.weight
        return self.head(values.mean(1))


def make():
    return Peculiar()
"""


@pytest.fixture
def peculiar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one's own that has every peculiarity."""
    (tmp_path / "peculiar_network.py").write_text(PECULIAR)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "peculiar_network:make"


def test_every_layer_that_stays_says_why(capsys: pytest.CaptureFixture[str], peculiar: str) -> None:
    assert main(["inspect", peculiar]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line}
    # Attention with extra keys, a weight of two layers, a weight read as a matrix: all are multiplications.
    layers = ("twice", "attention.q_proj", "attention.out_proj", "odd.q_proj", "one.weight", "read", "head")
    for name in layers:
        assert rows[name].endswith(("cp, tucker2, svd, spatial, dense, keep", "svd, dense, keep"))
    for name, words in {
        "grouped": "dense, keep (grouped: every output reads the few channels of its group only",
        "attention": "what is left of an attention beside its projections",
        "odd": "what is left of an attention beside its projections",
        "auxiliary": "it does not run in a prediction: a head for training only",
    }.items():
        assert words in rows[name]
    assert "13 of 15 convolution and linear layers can be factorized: " in printed


def test_a_peculiar_network_can_be_costed(capsys: pytest.CaptureFixture[str], peculiar: str) -> None:
    assert main(["cost", peculiar, "--ratio", "2", "--bits", "4", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["size_fraction"] < 1.0


@pytest.mark.parametrize("name", ["fcn_resnet50", "regnet_y_400mf"])
def test_torchvisions_networks_are_listed_and_costed(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["inspect", f"torchvision/{name}"]) == 0
    assert "convolution and linear layers can be factorized" in capsys.readouterr().out
    assert main(["cost", f"torchvision/{name}", "--ratio", "2", "--bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size_fraction"] < 0.12


def test_what_own_weights_make_of_a_model_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    """Screens without torch read classes, input and layers from here."""
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=10).state_dict(), tmp_path / "ten.pth")
    (tmp_path / "steps.json").write_text('{"crop": [64, 64], "channel_order": "bgr"}')
    options = ["--weights", str(tmp_path / "ten.pth"), "--preprocessing", str(tmp_path / "steps.json")]
    assert main(["inspect", "torchvision/resnet18", *options, "--workspace", str(workspace), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["weight_shape"] for row in told["layers"]}["fc"] == [10, 512]
    assert len(told["source"]["classes"]) == 10
    assert told["source"]["input_shape"] == [3, 64, 64]
    assert told["source"]["preprocessing"]["channel_order"] == "bgr"
