"""The models that are compared: BatchNorm folded, quantized by the runtime, our codes kept one for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.onnx_export.ort_quantizer import (
    OnnxNetwork,
    write_dense_int8,
    write_factorized_int8,
    write_original,
)
from qaf_core.errors import ModelError
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.modules.quantized import FactorizedLayer

INPUT_SHAPE = (3, 16, 16)
ROWS = {
    "stem": ("dense", None, 8),
    "conv1": ("cp", 10, 4),
    "conv2": ("svd", 12, 8),
    "wide": ("svd", 6, 6),
    "twice": ("tucker2", (8, 8), 8),
    "hidden": ("svd", 8, 8),
    "head": ("dense", None, 8),
}


def outputs(network: nn.Module, images: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = torch.cat([network(batch) for batch in images])
    return found


def distance(first: Tensor, second: Tensor) -> float:
    """Relative to the spread of the second."""
    return float((first - second).norm() / (second - second.mean()).norm())


def test_the_original_and_its_dense_form(branches: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    inventory = take_inventory(branches, INPUT_SHAPE)
    original, dense = tmp_path / "original.onnx", tmp_path / "dense.onnx"
    any_batch = write_original(branches, inventory, original, input_shape=INPUT_SHAPE)
    assert any_batch
    wanted = outputs(branches, images)
    assert distance(outputs(OnnxNetwork(original), images), wanted) < 1e-4
    one_by_one = OnnxNetwork(original, any_batch=False)
    assert distance(outputs(one_by_one, images), wanted) < 1e-4
    nodes = [node.name for node in onnx.load(original).graph.node if node.op_type in ("Conv", "Gemm")]
    assert {name.split("/")[0] for name in nodes} == {f"{info.name}.0" for info in inventory if info.planned}
    write_dense_int8(original, dense, images)
    assert distance(outputs(OnnxNetwork(dense), images), wanted) < 0.1
    kinds = {
        row.data_type for row in onnx.load(dense).graph.initializer if row.name.endswith("weight_quantized")
    }
    assert kinds == {onnx.TensorProto.INT8}


def test_the_factorized_network_keeps_its_codes(
    branches: nn.Module, images: list[Tensor], tmp_path: Path, pack: object
) -> None:
    assert callable(pack)
    network = pack(tmp_path / "model.safetensors", branches, ROWS)
    floating, integer = tmp_path / "floating.onnx", tmp_path / "integer.onnx"
    export_onnx(network, floating, input_shape=INPUT_SHAPE, integer=False)
    write_factorized_int8(network, floating, integer, images)
    held = {row.name: numpy_helper.to_array(row) for row in onnx.load(integer).graph.initializer}
    compared = 0
    for name, chain in network.named_modules():
        if isinstance(chain, FactorizedLayer):
            for index, link in enumerate(chain.chain):
                stored = held[f"{name}.{index}.weight_quantized"].astype(np.int16)
                zero = held[f"{name}.{index}.weight_zero_point"].astype(np.int16)  # 128 where stored unsigned
                assert np.array_equal(stored - zero.flat[0], link.codes.numpy())
                scales = link.scales.reshape(-1).expand(len(link.codes)).numpy()
                assert np.allclose(held[f"{name}.{index}.weight_scale"], scales, rtol=1e-6)
                compared += 1
    assert compared == 14
    wanted = outputs(network, images)
    assert distance(outputs(OnnxNetwork(integer), images), wanted) < 0.15


def test_a_file_that_cannot_be_quantized_is_told(tmp_path: Path, images: list[Tensor]) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match="ONNX Runtime cannot quantize"):
        write_dense_int8(broken, tmp_path / "dense.onnx", images)
    assert not (tmp_path / "dense.onnx").exists()
