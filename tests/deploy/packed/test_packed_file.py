import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.packed.format import checksum_of
from qaf_core.deploy.packed.read import load_packed, read_index, verify_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.errors import WeightsError, WorkspaceError
from qaf_core.factorization.factors import Factors, as_stored_codes
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, swap_layer
from qaf_core.network.plan.chains import factor_shapes
from qaf_core.network.plan.cost import plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import LayerPlan, Plan

CARD = {
    "model": "tests/net", "architecture": "net", "method": "joint", "activation_bits": 8, "seed": 0,
    "input_shape": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "classes": ["ok", "scratch", "crack", "pit", "stain", "inclusion", "chipped_edge", "missing_hole"],
}  # fmt: skip


class Branches(nn.Module):
    """Every kind of place a layer can have: folded and free BatchNorm, groups, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 16, 1, bias=False)
        self.shared = nn.Conv2d(16, 16, 3, padding="same")
        self.bn4 = nn.BatchNorm2d(16, affine=False)
        self.gain = nn.Parameter(torch.randn(16, 1, 1))
        self.register_buffer("offset", torch.randn(16, 1, 1))
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.before(x))).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.conv3(self.bn3(self.depthwise(x)).relu())
        x = x + self.bn4(self.shared(x)) * self.gain + self.offset
        return self.head(self.hidden(x.mean((2, 3))).relu())


@functools.cache
def _branches(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Branches()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.3
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.5)
                nn.init.normal_(module.bias)
    return capture(model.eval(), (3, 16, 16))


def make_branches(seed: int) -> nn.Module:
    return copy.deepcopy(_branches(seed))


def random_factors(info: LayerInfo, row: LayerPlan, generator: torch.Generator) -> Factors:
    """Codes and scales at random: what the packed file must keep, without solving anything."""
    shapes = factor_shapes(info, row.structure, row.rank)
    if row.structure == "dense":
        shapes = ((info.out_channels, info.weight_numel // info.out_channels),)
    bits = row.bits if isinstance(row.bits, tuple) else (row.bits or 32,) * len(shapes)
    codes, scales = [], []
    for shape, width in zip(shapes, bits, strict=True):
        if width == 32:
            codes.append(torch.randn(shape, generator=generator) * 0.1)
            scales.append(torch.ones((1,) * len(shape)))
        else:
            low, high = -(2 ** (width - 1)), 2 ** (width - 1)
            codes.append(as_stored_codes(torch.randint(low, high, shape, generator=generator), width))
            columns = (1, shape[1]) if len(shape) == 2 else (shape[0], 1, 1)
            columns = (shape[0], 1) if row.structure == "dense" else columns
            scales.append(torch.rand(columns, generator=generator) * 1e-3 + 1e-4)
    return Factors(
        structure=row.structure, weight_shape=info.weight_shape, bits=bits, codes=tuple(codes),
        scales=tuple(scales),
    )  # fmt: skip


def compress_at_random(model: nn.Module, inventory: tuple[LayerInfo, ...], plan: Plan) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    compressed = copy.deepcopy(model)
    for info in inventory:
        row = plan.layer(info.name) if info.planned else None
        if row is None or row.structure == "keep":
            continue
        chain = build_chain(layer_of(model, info.name), random_factors(info, row, generator))
        if plan.activation_bits < 32:
            for link in chain.chain:
                link.input_quantizer.set_range(-0.3, 1.7)
        swap_layer(compressed, info.name, chain)
    return compressed.eval()


def save_and_load(
    path: Path, model: nn.Module, compressed: nn.Module, inventory: tuple[LayerInfo, ...]
) -> nn.Module:
    save_packed(path, compressed, inventory, CARD)
    return load_packed(path, copy.deepcopy(model))


PLANS: dict[str, dict[str, tuple[str, Any, Any]]] = {
    "everything": {
        "conv1": ("dense", None, 8), "conv2": ("cp", 7, (4, 3, 5)), "depthwise": ("dense", None, 2),
        "conv3": ("svd", 5, 6), "shared": ("tucker2", (4, 9), (8, 4, 2)), "hidden": ("svd", 6, (3, 4)),
        "head": ("dense", None, 8),
    },
    "kernels in two factors": {
        "conv1": ("svd", 3, 4), "conv2": ("svd", 7, (4, 6)), "shared": ("spatial", 5, (3, 5)),
    },
    "kept": {},
    "mixed with floating point": {
        "conv2": ("cp", 7, 32), "depthwise": ("dense", None, 32), "hidden": ("svd", 6, (32, 4)),
    },
}  # fmt: skip


def plan_of(inventory: tuple[LayerInfo, ...], name: str, activation_bits: int = 8) -> Plan:
    rows = []
    for info in (info for info in inventory if info.planned):
        structure, rank, bits = PLANS[name].get(info.name, ("keep", None, None))
        rows.append(LayerPlan(name=info.name, structure=structure, rank=rank, bits=bits))
    return Plan(model="tests/net", layers=tuple(rows), activation_bits=activation_bits)


@pytest.mark.parametrize("activation_bits", [8, 32])
@pytest.mark.parametrize("name", PLANS)
def test_the_file_holds_the_network_it_was_made_from(tmp_path: Path, name: str, activation_bits: int) -> None:
    model = make_branches(0)
    inventory = take_inventory(model, (3, 16, 16))
    compressed = compress_at_random(model, inventory, plan_of(inventory, name, activation_bits))
    # Restored into a network with other weights: nothing may come from there.
    other = make_branches(1)
    save_packed(tmp_path / "model.safetensors", compressed, inventory, CARD)
    loaded = load_packed(tmp_path / "model.safetensors", other)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected, got = compressed(images), loaded(images)
    # Half precision leaves some 1e-3; a value on the edge of an activation step may fall to the other side.
    assert torch.allclose(got, expected, rtol=5e-3, atol=5e-3 * float(expected.abs().max()))
    chains = {name: module for name, module in loaded.named_modules() if isinstance(module, FactorizedLayer)}
    for layer, chain in chains.items():
        before = compressed.get_submodule(layer)
        assert isinstance(before, FactorizedLayer)
        for link, link_before in zip(chain.chain, before.chain, strict=True):
            assert link.bits == link_before.bits
            if link.bits < 32:
                assert torch.equal(link.codes, link_before.codes)
            assert torch.equal(link.input_quantizer.enabled, link_before.input_quantizer.enabled)
            assert torch.equal(link.input_quantizer.scale, link_before.input_quantizer.scale)
            assert torch.equal(link.input_quantizer.zero_point, link_before.input_quantizer.zero_point)


def test_tiny_scales_and_large_kept_values_survive_half_precision(tmp_path: Path) -> None:
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)), (3, 8, 8))
    inventory = take_inventory(model, (3, 8, 8))
    compressed = copy.deepcopy(model)
    codes = torch.randint(-8, 8, (4, 27)).to(torch.int8)
    scales = torch.tensor([[1e-9], [3e-9], [2e-9], [1.5e-9]])
    factors = Factors(
        structure="dense", weight_shape=(4, 3, 3, 3), codes=(codes,), scales=(scales,), bits=(4,)
    )
    swap_layer(compressed, "0", build_chain(layer_of(model, "0"), factors))
    layer_of(compressed, "1").weight.data *= 1e6
    loaded = save_and_load(tmp_path / "model.safetensors", model, compressed, inventory)
    restored, kept = loaded.get_submodule("0"), loaded.get_submodule("1")
    assert isinstance(restored, FactorizedLayer)
    assert torch.allclose(restored.last.scales.reshape(-1, 1), scales, rtol=1e-3, atol=0)
    assert torch.allclose(kept.get_parameter("weight"), layer_of(compressed, "1").weight, rtol=1e-3, atol=600)


@pytest.mark.parametrize(
    "model_id", ["digits/cnn", "inspection/resnet20", "inspection/resnet18", "inspection/vgg"]
)
@pytest.mark.parametrize(
    ("ratio", "bits", "activation_bits", "method", "structure"),
    [(2.0, 4, 8, "joint", "spatial"), (3.0, 3, 8, "joint", "tucker2"), (1.5, 8, 32, "joint", "cp"),
     (1.0, 2, 8, "dense", "cp")],
)  # fmt: skip
def test_the_predicted_size_is_the_files_size(
    tmp_path: Path, model_id: str, ratio: float, bits: int, activation_bits: int, method: str, structure: str
) -> None:
    source = find_model(model_id)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    plan = plan_for_ratio(
        inventory, model=model_id, ratio=ratio, bits=bits, activation_bits=activation_bits, method=method,
        structure=structure,
    )  # fmt: skip
    path = tmp_path / "model.safetensors"
    size = save_packed(path, compress_at_random(model, inventory, plan), inventory, CARD)
    assert size == path.stat().st_size
    predicted = plan_cost(inventory, plan).size_bytes
    assert abs(size - predicted) <= 0.01 * size, f"file {size:,} bytes, predicted {predicted:,}"


def test_the_index_tells_what_the_file_is(tmp_path: Path) -> None:
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    path = tmp_path / "model.safetensors"
    save_packed(path, model, take_inventory(model, (3, 8, 8)), CARD)
    index = read_index(path)
    assert index["model"] == "tests/net"
    assert index["kept"] == [["0.weight", [4, 3, 3, 3]], ["0.bias", [4]]]


def saved_layer(folder: Path) -> Path:
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    save_packed(folder / "model.safetensors", model, take_inventory(model, (3, 8, 8)), CARD)
    return folder / "model.safetensors"


def test_foreign_files_are_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 6))
    path = tmp_path / "nothing.safetensors"
    with pytest.raises(WeightsError, match="no complete packed model.*nothing"):
        load_packed(path, model)
    path.write_bytes(b"no safetensors")
    with pytest.raises(WeightsError, match="no complete packed model"):
        load_packed(path, model)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(WeightsError, match="no complete packed model"):
        read_index(path)
    with pytest.raises(WeightsError, match="another network"):
        load_packed(saved_layer(tmp_path), nn.Sequential(nn.Linear(3, 3)))


def test_every_altered_byte_is_noticed(tmp_path: Path) -> None:
    path = saved_layer(tmp_path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(altered)
        with pytest.raises(WeightsError) as caught:
            verify_packed(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(content)
    assert verify_packed(path)["model"] == "tests/net"


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    path = saved_layer(tmp_path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="no complete packed model.*intact copy"):
            load_packed(path, nn.Sequential(nn.Conv2d(3, 4, 3)))
    path.write_bytes(content + b"more")
    with pytest.raises(WeightsError, match="no complete packed model"):
        load_packed(path, nn.Sequential(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize(("version", "line"), [(99, "newer version.*update qaf"), (1, "older.*again")])
def test_other_versions_are_told(tmp_path: Path, version: int, line: str) -> None:
    path = saved_layer(tmp_path)
    index = json.dumps({**read_index(path), "format": version})
    save_file(load_file(path), path, {"qaf": index, "sha256": "of another kind"})
    with pytest.raises(WeightsError, match=line):
        load_packed(path, nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_a_swapped_tensor_is_noticed(tmp_path: Path) -> None:
    path = saved_layer(tmp_path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "halves": tensors["halves"][::-1].copy()}, path, metadata)
    with pytest.raises(WeightsError, match="altered or damaged.*checksum"):
        load_packed(path, nn.Sequential(nn.Conv2d(3, 4, 3)))


def reindex(path: Path, change: Callable[[dict[str, Any]], object], *, halves: int = 0) -> None:
    """Change a file's index, take ``halves`` numbers off its end, and give it a checksum that holds."""
    index, tensors = read_index(path), load_file(path)
    change(index)
    if halves:
        tensors["halves"], tensors["gains"] = tensors["halves"][:-halves], tensors["gains"][:-1]
    text = json.dumps(index)
    save_file(tensors, path, {"qaf": text, "sha256": checksum_of(text, tensors)})


@pytest.mark.parametrize("rows", ["layers", "kept", "folded"])
def test_an_index_that_leaves_something_out_opens_nothing(tmp_path: Path, rows: str) -> None:
    """A network with some weights still at random must not pass for the one that was evaluated."""
    model, path = make_branches(0), tmp_path / "model"
    inventory = take_inventory(model, (3, 16, 16))
    compressed = compress_at_random(model, inventory, plan_of(inventory, "everything"))
    save_packed(path, compressed, inventory, CARD)
    content = path.read_bytes()
    for index in range(len(read_index(path)[rows])):
        path.write_bytes(content)
        reindex(path, lambda told, index=index: told[rows].pop(index))
        with pytest.raises(WeightsError, match="for another network"):
            load_packed(path, make_branches(1))


def test_a_parameter_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), (3, 8, 8))
    path = tmp_path / "model"
    save_packed(path, model, take_inventory(model, (3, 8, 8)), CARD)
    assert read_index(path)["kept"][-1] == ["1.bias", [2]]
    reindex(path, lambda told: told["kept"].pop(), halves=2)
    with pytest.raises(WeightsError, match="nothing in the file for 1.bias"):
        load_packed(path, copy.deepcopy(model))


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        save_packed(tmp_path / "file" / "model", model, take_inventory(model, (3, 8, 8)), CARD)


class Attending(nn.Module):
    """An attention over the pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


@pytest.mark.parametrize("captured", [True, False])
def test_a_network_with_attention_is_read_back_into_a_fresh_one(tmp_path: Path, captured: bool) -> None:
    torch.manual_seed(0)
    fresh = Attending().eval()
    model = capture(fresh, (8, 4, 4))
    inventory = take_inventory(model, (8, 4, 4))
    plan = plan_for_ratio(inventory, model="tests/net", ratio=2, bits=6, activation_bits=32)
    assert sum(row.structure != "keep" for row in plan.layers) == 4
    compressed = compress_at_random(model, inventory, plan)
    path = tmp_path / "model.safetensors"
    save_packed(path, compressed, inventory, {**CARD, "input_shape": [8, 4, 4]})
    x = torch.randn(2, 8, 4, 4)
    loaded = load_packed(path, copy.deepcopy(model) if captured else fresh)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), compressed(x), rtol=5e-3, atol=5e-3)


class Exact(nn.Module):
    """Holds an index, a mask and complex numbers beside what is compressed."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("order", (torch.arange(6) + shift) % 6)
        self.register_buffer("wide", torch.tensor([70_000 + shift, -3, 0, 1, 2, 3]))
        self.register_buffer("mask", torch.arange(6) % 2 == shift % 2)
        self.register_buffer("turn", torch.polar(torch.ones(6), torch.arange(6.0) + shift))

    def forward(self, x: Tensor) -> Tensor:
        values = torch.where(self.mask, self.layer(x)[..., self.order], 0.5)
        return (values * self.turn).abs() * (values * self.turn).real + self.wide


def test_integers_masks_and_complex_numbers_are_kept_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = capture(Exact(1), (6,))
    path = tmp_path / "model.safetensors"
    save_packed(path, model, take_inventory(model, (6,)), {**CARD, "input_shape": [6]})
    loaded = load_packed(path, Exact(2))
    before = dict(model.named_buffers())
    assert {"order", "wide", "mask", "turn"} <= set(before)
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, before[name]), name
    x = torch.randn(3, 6)
    torch.testing.assert_close(loaded(x), model(x), rtol=5e-3, atol=5e-3)


def test_every_exact_tensor_is_under_the_checksum(tmp_path: Path) -> None:
    model = capture(Exact(1), (6,))
    path = tmp_path / "model.safetensors"
    save_packed(path, model, take_inventory(model, (6,)), {**CARD, "input_shape": [6]})
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert {"exact.0", "exact.1", "exact.2", "exact.3"} <= set(tensors)
    save_file({**tensors, "exact.0": tensors["exact.0"][::-1].copy()}, path, metadata)
    with pytest.raises(WeightsError, match="altered or damaged.*checksum"):
        load_packed(path, Exact(1))
