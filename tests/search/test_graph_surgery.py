"""Layers exchanged in the graph: the model runs with the links, and nothing is left of the layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8, write_original
from qaf_core.deploy.runtime.measure_kit import open_session
from qaf_core.factorization.structures import Rank
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.search.geometry import LayerGeometry
from qaf_core.search.graph_surgery import swap_layers, swappable_layers

SHAPE = (3, 12, 16)


class Network(nn.Module):
    """A strided, padded convolution, a 1×1 one with a stride, and linear maps of matrices and of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), dilation=1)
        self.point = nn.Conv2d(8, 12, 1, stride=2)
        self.tokens = nn.Linear(12, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.point(torch.relu(self.wide(values)))
        rows = self.tokens(values.flatten(2).mT)
        scores: torch.Tensor = self.head(torch.relu(rows).mean(dim=1))
        return scores


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, dict[str, LayerGeometry]]:
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("swaps")
    model = Network().eval()
    inventory = take_inventory(model, SHAPE)
    write_original(model, inventory, folder / "original.onnx", input_shape=SHAPE)
    write_dense_int8(folder / "original.onnx", folder / "dense.onnx", [torch.randn(4, *SHAPE)])
    rows = {info.name: LayerGeometry.of(info) for info in inventory}
    return onnx.load(str(folder / "dense.onnx")), {name: row for name, row in rows.items() if row is not None}


def run(model: bytes) -> np.ndarray:
    session = open_session(model, threads=1)
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def test_its_layers_are_found(written: tuple[onnx.ModelProto, dict[str, LayerGeometry]]) -> None:
    dense, geometries = written
    assert swappable_layers(dense) - {""} == set(geometries) == {"wide", "point", "tokens", "head"}
    assert swap_layers(dense, geometries, {}) == run_through(dense)


def run_through(model: onnx.ModelProto) -> bytes:
    """The model without what nothing reads."""
    read = {name for node in model.graph.node for name in node.input}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    kept = [row for row in copied.graph.initializer if row.name in read]
    del copied.graph.initializer[:]
    copied.graph.initializer.extend(kept)
    return bytes(copied.SerializeToString())


@pytest.mark.parametrize(
    ("layer", "structure", "rank", "links"),
    [
        ("wide", "cp", 6, [(6, 3, 1, 1), (6, 1, 3, 5), (8, 6, 1, 1)]),
        ("wide", "tucker2", (5, 2), [(2, 3, 1, 1), (5, 2, 3, 5), (8, 5, 1, 1)]),
        ("wide", "svd", 4, [(4, 3, 3, 5), (8, 4, 1, 1)]),
        ("point", "svd", 3, [(3, 8, 1, 1), (12, 3, 1, 1)]),
        ("tokens", "svd", 2, [(12, 2), (2, 10)]),
        ("head", "svd", 2, [(2, 10), (5, 2)]),
    ],
)
def test_a_chain_takes_a_layers_place(
    written: tuple[onnx.ModelProto, dict[str, LayerGeometry]],
    layer: str,
    structure: str,
    rank: Rank,
    links: list[tuple[int, ...]],
) -> None:
    dense, geometries = written
    content = swap_layers(dense, geometries, {layer: (structure, rank)})
    outputs = run(content)
    assert outputs.shape == (2, 5)
    assert bool(np.isfinite(outputs).all())
    model = onnx.load_from_string(content)
    shapes = {row.name: tuple(row.dims) for row in model.graph.initializer}
    assert [shape for name, shape in shapes.items() if name.startswith("weightswapped")] == links
    # What the layer held is gone: dequantizing it would take time that no chain takes.
    (node,) = [node for node in dense.graph.node if node.name.startswith(f"{layer}.0/")][:1]
    makers = {output: made for made in dense.graph.node for output in made.output}
    held = makers[node.input[1]].input[0]
    assert held in {row.name for row in dense.graph.initializer}
    assert held not in shapes


def test_where_products_are_cut_off_codes_are_unsigned_as_in_exported_files(
    written: tuple[onnx.ModelProto, dict[str, LayerGeometry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, geometries = written
    monkeypatch.setattr("qaf_core.search.layer_onnx.saturates_products", lambda: True)
    content = swap_layers(dense, geometries, {"wide": ("svd", 4)})
    kinds = {
        row.data_type
        for row in onnx.load_from_string(content).graph.initializer
        if row.name.startswith("weightswapped")
    }
    assert kinds == {onnx.TensorProto.UINT8}
    assert bool(np.isfinite(run(content)).all())


def test_exchanged_layers_run_as_integers(
    written: tuple[onnx.ModelProto, dict[str, LayerGeometry]], tmp_path: Path
) -> None:
    import onnxruntime

    dense, geometries = written
    content = swap_layers(dense, geometries, {"wide": ("svd", 4), "point": ("svd", 3)})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert operators.count("QLinearConv") == 4
    assert "Conv" not in operators
