"""Exported files run in ONNX Runtime as in PyTorch: to the last bit where they are integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.onnx_export.export import ExportRejected, export_onnx, open_session, with_ranges
from qaf_core.deploy.runtime.target import saturates_products
from qaf_core.errors import ModelError, WorkspaceError
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.modules.quantized import FactorizedLayer

INPUT_SHAPE = (3, 16, 16)
EVERY_KIND: dict[str, tuple[str, Any, Any]] = {
    "stem": ("dense", None, 8),
    "conv1": ("cp", 7, (4, 3, 5)),
    "conv2": ("tucker2", (5, 6), (2, 4, 8)),
    "depthwise": ("dense", None, 4),
    "wide": ("svd", 6, 6),
    "twice": ("cp", 9, 4),
    "hidden": ("svd", 8, 4),
    "head": ("dense", None, 8),
}
TWO_FACTORS = {**EVERY_KIND, "stem": ("svd", 3, 8), "conv2": ("spatial", 6, (4, 8)), "twice": ("svd", 9, 4)}
SOME_KEPT = {name: EVERY_KIND[name] for name in ("conv1", "twice", "head")}
SOME_FLOATS: dict[str, tuple[str, Any, Any]] = {
    **SOME_KEPT,
    "conv2": ("cp", 5, 32),
    "hidden": ("svd", 6, (32, 4)),
}


CUTS_OFF = saturates_products()  # of the processor that runs the tests


def links_of(model: nn.Module) -> list[Any]:
    return [link for part in model.modules() if isinstance(part, FactorizedLayer) for link in part.chain]


@pytest.mark.parametrize(
    ("rows", "cut_off"),
    [(EVERY_KIND, False), (EVERY_KIND, True), (TWO_FACTORS, False), (SOME_KEPT, False)],
)
def test_integers_give_the_same_outputs_to_the_last_bit(
    tmp_path: Path,
    branches: nn.Module,
    images: list[Tensor],
    pack: Any,
    rows: Any,
    cut_off: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = pack(tmp_path / "model.safetensors", branches, rows)
    path = tmp_path / "model.onnx"
    # A file for another kind of processor than this one cannot be run here: signed weights would be cut off.
    monkeypatch.setattr("qaf_core.deploy.runtime.target.saturates_products", lambda: CUTS_OFF)
    target = "any" if cut_off else "this"
    report = export_onnx(model, path, input_shape=INPUT_SHAPE, images=images, target=target)
    assert report.target == target
    assert report.passed
    assert report.agreement is not None
    assert report.agreement.share == 1.0
    if rows is EVERY_KIND:
        assert report.agreement.identical == 1.0
        # "twice" is called twice: its three links stand in the graph twice.
        assert sum(report.integer_operators.values()) == len(links_of(model)) + 3
        assert not report.float_operators
        # Rounded by the layer itself, through a ReLU and a pooling: no sums leave it.
        assert isinstance(stem := model.get_submodule("stem"), FactorizedLayer)
        assert stem.output_qparams is not None
        stored = report.weights_stored_as
        assert stored["int4"] + stored.get("uint4", 0) == 10
        graph = onnx.load(path).graph
        signed = [
            numpy_helper.to_array(row).astype(int)
            for row in graph.initializer
            if row.data_type == onnx.TensorProto.INT8
        ]
        # Where sums are cut off, codes beyond ±64 are stored unsigned.
        assert any(abs(codes).max() > 64 for codes in signed) is not (cut_off or CUTS_OFF)
        # Signed weights of a ConvInteger run several times slower on x86: there are none.
        kinds = {row.name: row.data_type for row in graph.initializer}
        zeros = {kinds[node.input[3]] for node in graph.node if node.op_type == "ConvInteger"}
        assert zeros == {onnx.TensorProto.UINT8}
    assert report.any_batch
    assert path.stat().st_size == report.size_bytes
    json.dumps(report.to_dict())


def test_links_in_floating_point_stay_so(
    tmp_path: Path, branches: nn.Module, images: list[Tensor], pack: Any
) -> None:
    model = pack(tmp_path / "model.safetensors", branches, SOME_FLOATS)
    report = export_onnx(model, tmp_path / "model.onnx", input_shape=INPUT_SHAPE, images=images, force=True)
    kept = 3
    assert report.weights_stored_as["float32"] == 4 + kept
    assert report.agreement is not None
    assert report.agreement.largest_difference < 0.05 * report.agreement.output_range


def test_the_file_holds_our_codes_and_scales(tmp_path: Path, branches: nn.Module, pack: Any) -> None:
    model = pack(tmp_path / "model.safetensors", branches, EVERY_KIND)
    export_onnx(model, tmp_path / "model.onnx", input_shape=INPUT_SHAPE, card={"model": "tests/net"})
    graph = onnx.load(tmp_path / "model.onnx")
    constants = {row.name: numpy_helper.to_array(row) for row in graph.graph.initializer}
    chain = model.get_submodule("conv1")
    assert isinstance(chain, FactorizedLayer)
    for index, link in enumerate(chain.chain):
        codes = constants[f"conv1.{index}.codes"].astype(np.int8)
        expected = link.codes.numpy()
        if index == 2:  # a product of matrices: transposed
            expected = expected.reshape(len(expected), -1).T
        assert np.array_equal(codes, expected)
        assert np.array_equal(constants[f"conv1.{index}.scales"], link.scales.numpy().reshape(-1))
    told = {row.key: row.value for row in graph.metadata_props}
    assert json.loads(told["qaf"]) == {"model": "tests/net", "precision": "int8", "input_shape": [3, 16, 16]}
    text = str(graph)
    assert "stack_trace" not in text
    assert str(Path(__file__).parents[2]) not in text


def test_floating_point_is_plain_layers(
    tmp_path: Path, branches: nn.Module, images: list[Tensor], pack: Any
) -> None:
    model = pack(tmp_path / "model.safetensors", branches, EVERY_KIND)
    report = export_onnx(
        model, tmp_path / "model.onnx", input_shape=INPUT_SHAPE, integer=False, images=images
    )
    assert report.passed
    assert report.agreement is not None
    assert report.agreement.largest_difference < 1e-4 * report.agreement.output_range
    assert not report.integer_operators
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_ranges_are_fitted_where_the_run_had_none(
    tmp_path: Path, branches: nn.Module, images: list[Tensor], pack: Any
) -> None:
    model = pack(tmp_path / "model.safetensors", branches, EVERY_KIND, quantize_activations=False)
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="no 8-bit range.*--act-bits 32"):
        export_onnx(model, path, input_shape=INPUT_SHAPE)
    report = export_onnx(with_ranges(model, images[:1]), path, input_shape=INPUT_SHAPE, images=images)
    assert report.passed
    assert not report.float_operators
    assert all(link.input_quantizer.qparams is None for link in links_of(model))


class OddOutputs(nn.Module):
    """A network that puts out what ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        found = self.conv(images)
        if self.kind == "detector":
            return [{"boxes": found[0]}]
        if self.kind == "unknown operator":
            return torch.linalg.eigvals(found[:, 0].mean() * torch.eye(4)).real
        if self.kind == "fixed":
            return found.reshape(1, 5, -1).sum(2) if len(found) == 1 else found.mean((2, 3))
        return {"out": found, "aux": found * 2}


def test_masks_in_a_dict_are_exported_by_name(tmp_path: Path, images: list[Tensor], pack: Any) -> None:
    model = pack(tmp_path / "model.safetensors", OddOutputs("masks"), {"conv": ("cp", 4, 4)})
    report = export_onnx(model, tmp_path / "model.onnx", input_shape=INPUT_SHAPE, images=images)
    assert report.agreement is not None
    assert report.agreement.identical == 1.0
    session, _ = open_session(tmp_path / "model.onnx")
    assert [row.name for row in session.get_outputs()] == ["out", "aux"]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("detector", "outputs cannot be exported.*a list of dict"),
        ("unknown operator", "written as ONNX.*eig"),
    ],
)
def test_what_onnx_cannot_express_is_told_in_one_line(tmp_path: Path, kind: str, line: str) -> None:
    with pytest.raises(ModelError, match=line) as caught:
        export_onnx(OddOutputs(kind).eval(), tmp_path / "model.onnx", input_shape=INPUT_SHAPE)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_export_that_disagrees_is_not_written(
    tmp_path: Path, branches: nn.Module, images: list[Tensor], pack: Any
) -> None:
    model = pack(tmp_path / "packed", branches, SOME_KEPT)
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportRejected, match="failed a check.*--force"):
        export_onnx(_Fickle(model), path, input_shape=INPUT_SHAPE, images=images)
    assert not path.exists()
    report = export_onnx(_Fickle(model), path, input_shape=INPUT_SHAPE, images=images, force=True)
    assert path.exists()
    assert not report.passed


def test_detectors_are_exported_up_to_their_heads(tmp_path: Path, pack: Any) -> None:
    source = find_model("inspection/detector")
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    rows = {row.name: ("dense", None, 8) for row in inventory if "dense" in row.structures}
    packed = pack(tmp_path / "model.safetensors", model, rows, input_shape=source.input_shape)
    images = [torch.rand(3, *source.input_shape)]
    report = export_onnx(packed, tmp_path / "model.onnx", input_shape=source.input_shape, images=images)
    assert report.passed
    assert not report.any_batch
    session, _ = open_session(tmp_path / "model.onnx")
    assert {row.name for row in session.get_outputs()} == {"cls_logits", "bbox_regression", "bbox_ctrness"}


class _Fickle(nn.Module):
    """Computes something else while it is exported than afterwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores if torch.compiler.is_exporting() else scores.flip(1)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, branches: nn.Module, pack: Any) -> None:
    model = pack(tmp_path / "packed", branches, SOME_KEPT)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        export_onnx(model, tmp_path / "file" / "model.onnx", input_shape=INPUT_SHAPE)
