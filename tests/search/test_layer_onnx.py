"""The small models that are timed: integer operations only, and the right numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

from qaf_core.search.geometry import LayerGeometry, LinkShape
from qaf_core.search.layer_onnx import STEP, build_layer_model

CONVOLUTION = LinkShape(outputs=32, inputs=16, kernel=(3, 3), stride=(2, 1), padding=(1, 1))


def operators_run(model: bytes, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize(
    ("structure", "rank", "links"), [("dense", None, 1), ("cp", 16, 3), ("tucker2", (16, 8), 3)]
)
def test_a_chain_runs_as_integer_convolutions_and_nothing_else(
    tmp_path: Path, structure: str, rank: int | tuple[int, int] | None, links: int
) -> None:
    geometry = LayerGeometry(link=CONVOLUTION, linear=False, input_hw=(8, 8))
    model = build_layer_model(geometry.chain(structure, rank), linear=False, input_hw=(8, 8), batch=1)
    assert operators_run(model, tmp_path) == ["QLinearConv"] * links


def test_a_linear_chain_runs_as_integer_products(tmp_path: Path) -> None:
    geometry = LayerGeometry(link=LinkShape(outputs=24, inputs=40), linear=True, input_hw=(2, 1))
    model = build_layer_model(geometry.chain("svd", 8), linear=True, input_hw=(2, 1), batch=3)
    assert operators_run(model, tmp_path) == ["QGemm", "QGemm"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((6, 40), np.uint8)})[0].shape == (6, 24)


def test_a_model_computes_the_convolution_it_stands_for() -> None:
    model = build_layer_model([CONVOLUTION], linear=False, input_hw=(8, 10), batch=2)
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 10, 16)).astype(np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": images})[0]
    held = {row.name: numpy_helper.to_array(row) for row in onnx.load_from_string(model).graph.initializer}
    zero = float(held["zeros0"].flat[0])  # 128 where products of signed weights would be cut off
    weight = torch.from_numpy((held["weight0"].astype(np.float64) - zero) * 0.01)
    bias = torch.from_numpy(held["bias0"].astype(np.float64) * STEP * 0.01)
    values = torch.from_numpy((images.astype(np.float64) - 128) * STEP).movedim(3, 1)
    wanted = functional.conv2d(values, weight, bias, stride=(2, 1), padding=1)
    codes = (wanted / STEP).round().add(128).clamp(0, 255).movedim(1, 3).numpy()
    assert np.abs(found.astype(int) - codes).max() <= 1
    assert len(np.unique(found)) > 50
