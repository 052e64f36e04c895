"""The lines we print for users are run as printed, by a Python of their own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qaf_core.data.images.decode import read_picture
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.load import to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.deploy.onnx_export.code_examples import onnx_example, pytorch_example
from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.packed.open import describe_packed
from tests.model_sources import fed

ROWS = {"features.0": ("dense", None, 8), "features.3": ("cp", 40, 4), "classifier.2": ("dense", None, 8)}


def test_both_examples_name_what_the_network_sees(tmp_path: Path, pack: Any) -> None:
    source = find_model("digits/cnn")
    steps = source.preprocessing
    card = {"model": source.id, "architecture": source.architecture, "input_shape": source.input_shape,
            "mean": steps.mean, "std": steps.std, "classes": source.classes}  # fmt: skip
    packed, exported = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    model = pack(packed, build_model(source), ROWS, input_shape=source.input_shape, card=card)
    export_onnx(model, exported, input_shape=source.input_shape)
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    values = (torch.from_numpy(pixels / 255).float() - steps.mean[0]) / steps.std[0]
    with torch.inference_mode():
        expected = source.classes[int(model(values[None, None]).argmax())]
    for lines, file in ((pytorch_example, packed), (onnx_example, exported)):
        text = lines(describe_packed(packed), str(file), str(tmp_path / "picture.png"))
        assert len([line for line in text.splitlines() if line]) <= 17
        outcome = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.strip() == expected


@pytest.mark.parametrize("lines", [pytorch_example, onnx_example])
def test_a_networks_own_preprocessing_is_told(lines: Any) -> None:
    source = find_model("cifar/resnet20")
    own = Preprocessing(crop=(32, 32), mean=(1.0, 2.0, 3.0), std=(1.0,) * 3, channel_order="bgr", scale=1.0)
    text = lines(replace(source, preprocessing=own), "model")
    assert "[..., ::-1] / 1" in text
    assert "np.float32([1.0, 2.0, 3.0])" in text
    assert "scores.argmax(0)" in lines(find_model("torchvision/resnet18"), "model")


OWN = {
    "small": {},
    "large": {"crop": (224, 224)},
    "shorter side": {"crop": (224, 224), "resize": 256, "interpolation": "bicubic"},
    "both sides": {"crop": (48, 32), "resize": (48, 32)},
    "both sides, then cut": {"crop": (32, 32), "resize": (48, 56), "channel_order": "bgr"},
    "black around": {"crop": (64, 97), "resize": 33, "interpolation": "nearest"},
}


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (32, 32), (224, 224)])
@pytest.mark.parametrize("name", OWN)
def test_the_lines_prepare_a_picture_as_the_loader_does(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    source = find_model("cifar/resnet20")
    source = fed(source, **OWN[name])
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    wanted = read_picture(path, source.preprocessing)
    loaded = ImageSet(name="one", images=wanted[None], labels=np.zeros(1, np.int64), classes=source.classes)
    ((expected, _),) = to_batches(loaded, source)
    text = onnx_example(source, "model", str(path))
    lines = text[text.index("picture = ") : text.index("scores = ")]
    found: dict[str, Any] = {}
    exec(f"import numpy as np\nfrom PIL import Image, ImageOps\n{lines}", found)
    assert np.allclose(found["images"], expected.numpy(), rtol=1e-6, atol=1e-6)


def test_a_users_own_network_is_imported_by_the_lines_themselves() -> None:
    text = pytorch_example(replace(find_model("digits/cnn"), architecture="mine.parts:make"), "model")
    assert "from mine.parts import make\n" in text
    assert "load('model', make())" in text
