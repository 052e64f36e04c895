"""A packed file is enough: no weights file, no run, no object that was in memory when it was written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.packed.open import describe_packed, load
from qaf_core.errors import WeightsError

INPUT_SHAPE = (3, 16, 16)

CONVOLUTION = {"conv": ("cp", 4, 4)}


def card_of(model_id: str) -> dict[str, Any]:
    source = find_model(model_id)
    return {
        "model": source.id, "architecture": source.architecture, "input_shape": source.input_shape,
        "mean": source.preprocessing.mean, "std": source.preprocessing.std,
        "classes": source.classes, "task": source.task,
    }  # fmt: skip


@pytest.mark.parametrize("model_id", ["digits/cnn", "inspection/resnet20"])
def test_the_file_alone_gives_the_network(tmp_path: Path, model_id: str, pack: Any) -> None:
    source = find_model(model_id)
    path = tmp_path / "model.safetensors"
    rows = {"features.3": ("cp", 9, 4)} if model_id == "digits/cnn" else {"layer2.0.conv1": ("cp", 9, 4)}
    model = pack(path, build_model(source), rows, input_shape=source.input_shape, card=card_of(model_id))
    told = describe_packed(path)
    assert (told.id, told.classes, told.input_shape) == (source.id, source.classes, source.input_shape)
    opened = load(path)
    images = torch.randn(3, *source.input_shape)
    with torch.inference_mode():
        assert torch.equal(opened(images), model(images))
    assert not opened.training


def test_a_users_own_network_is_given_and_never_imported(
    tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network_of_a_test.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    card = {**card_of("inspection/resnet20"), "architecture": "own_network_of_a_test:make", "classes": 5}
    path = tmp_path / "model.safetensors"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.conv(images).mean((2, 3))
            return scores

    card["input_shape"] = list(INPUT_SHAPE)
    model = pack(path, Net(), CONVOLUTION, card=card)
    with pytest.raises(WeightsError, match="not imported.*own_network_of_a_test:make.*load.path, model"):
        load(path)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(load(path, Net())(images), model(images))


def test_a_file_that_does_not_tell_its_network_is_refused(tmp_path: Path, pack: Any) -> None:
    network = nn.Sequential()
    network.conv = nn.Conv2d(3, 5, 3)
    path = tmp_path / "model.safetensors"
    pack(path, network, CONVOLUTION)
    with pytest.raises(WeightsError, match="does not tell which network.*classes"):
        load(path)
    card = {**card_of("inspection/resnet20"), "architecture": "resnet9000", "input_shape": list(INPUT_SHAPE)}
    pack(path, network, CONVOLUTION, card=card)
    with pytest.raises(WeightsError, match="cannot be built here.*resnet9000.*update qaf"):
        load(path)
    steps = {**find_model("digits/cnn").preprocessing.to_dict(), "crop": [8, 8]}
    pack(path, network, CONVOLUTION, card={**card, "preprocessing": steps})
    with pytest.raises(WeightsError, match="preprocessing for .8, 8, 1., input_shape .3, 16, 16."):
        load(path)


def test_an_altered_file_is_refused(tmp_path: Path, pack: Any) -> None:
    source = find_model("digits/cnn")
    path = tmp_path / "model.safetensors"
    pack(path, build_model(source), {"features.3": ("cp", 9, 4)}, input_shape=source.input_shape,
         card=card_of("digits/cnn"))  # fmt: skip
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="altered or damaged.*checksum"):
        load(path)
    path.write_bytes(content[:-100])
    with pytest.raises(WeightsError, match="no complete packed model"):
        load(path)


def test_chains_compute_on_codes_close_to_the_floating_point_way(
    tmp_path: Path, branches: nn.Module, images: list[Tensor], pack: Any
) -> None:
    model = pack(
        tmp_path / "model.safetensors", branches, {"conv1": ("cp", 7, 4), "head": ("dense", None, 8)}
    )
    chain: Any = model.get_submodule("conv1")
    assert chain.runs_on_codes
    floating = copy.deepcopy(chain)
    floating._on_codes = False
    values = torch.randn(2, 8, 8, 8)
    with torch.inference_mode():
        exact, near = chain(values), floating(values)
    assert float((exact - near).abs().max()) < 0.02 * float(near.abs().max())
