"""The inventory against counts made apart from it, and against networks with peculiarities."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from small_networks import densenet, second_swin, segmentation, swin, vision_transformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from qaf_core.errors import ModelError
from qaf_core.network.graph.inventory import NOT_RUN, READ_ELSEWHERE, ROOT_NAME, take_inventory
from qaf_core.network.plan.layer_info import (
    LayerInfo,
    classifier,
    first_convolution,
    inventory_from_rows,
    output_layers,
)

Listed = Callable[..., tuple[nn.Module, nn.Module, tuple[LayerInfo, ...]]]
RowOf = Callable[[nn.Module, tuple[int, ...]], LayerInfo]


class Branching(nn.Module):
    """One layer's output goes to its BatchNorm and past it; another's only to its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Conv2d(3, 4, 3, padding=1)
        self.split_norm = nn.BatchNorm2d(4)
        self.plain = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.plain_norm = nn.BatchNorm2d(4)
        self.last_norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.split(x)
        y = torch.relu(self.split_norm(y)) + y
        return self.last_norm(torch.relu(self.plain_norm(self.plain(y))))


class Recurring(nn.Module):
    """The same layers at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(self.shared(x[..., ::2, ::2]))
        return self.norm(self.shared(x)).sum() + small.sum()


class Deciding(nn.Module):
    """Looks at values, of which the meta device has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).mean(dim=(2, 3))
        return self.head(y if float(y.sum()) < 1e9 else -y)


class Tied(nn.Module):
    """Two layers hold one weight; a third never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6, bias=False)
        self.two.weight = self.one.weight
        self.idle = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class OwnForward(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def counted_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of convolutions and linear layers in a real pass, element by element."""
    total = 0

    def count(module: Any, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return total


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_macs_agree_with_a_count_on_a_real_pass(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    inventory = take_inventory(model, (3, 64, 64))
    planned = sum(info.macs for info in inventory if info.planned)
    assert planned == counted_macs(model, (3, 64, 64))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("squeezenet1_1", {}),
        ("googlenet", {"init_weights": False}),
        *((build, {}) for build in (vision_transformer, densenet, swin, second_swin)),
    ],
)
def test_every_parameter_of_a_network_is_in_one_row(
    name: Any, arguments: dict[str, Any], listed: Listed
) -> None:
    model, captured, inventory = listed(name, **arguments)
    assert sum(info.params for info in inventory) == sum(p.numel() for p in model.parameters())
    assert len({info.name for info in inventory}) == len(inventory)
    modules = {**dict(model.named_modules()), **dict(captured.named_modules())}
    assert all(info.name in modules for info in inventory if info.name != ROOT_NAME)
    assert all(info.skip_reason for info in inventory if info.planned and not info.eligible)


def test_published_counts_of_resnet18(resnet18: tuple[LayerInfo, ...]) -> None:
    assert sum(info.macs for info in resnet18) == 1_819_040_768
    assert sum(info.params for info in resnet18) == 11_689_512
    assert all(info.folded_into for info in resnet18 if info.kind == "batchnorm")
    first, last = first_convolution(resnet18), classifier(resnet18)
    assert (first and first.name, last and last.name) == ("conv1", "fc")
    down = next(info for info in resnet18 if info.name == "layer2.0.downsample.0")
    assert (down.structures, down.stride) == (("svd", "dense", "keep"), (2, 2))
    assert (down.input_hw, down.output_hw) == ((56, 56), (28, 28))


def test_resnet50_takes_at_most_a_second_once_it_is_captured(listed: Listed) -> None:
    _, model, _ = listed("resnet50")
    began = time.process_time()
    take_inventory(model, (3, 224, 224))
    assert time.process_time() - began < 1.0


def test_attention_shows_its_layers_and_counts_its_products(listed: Listed) -> None:
    inventory = listed(vision_transformer)[2]
    (first, *others) = [info for info in inventory if info.kind == "attention"]
    assert len(others) == 1
    assert first.params == 0
    assert first.macs == 2 * 17 * 17 * 16
    assert first.structures == ("keep",)
    assert "attention" in (first.skip_reason or "")
    inside = [info for info in inventory if info.name.startswith(f"{first.name}.")]
    assert [info.name.rpartition(".")[2] for info in inside] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert {info.macs for info in inside} == {17 * 16 * 16}
    assert {info.params for info in inside} == {16 * 16 + 16}
    assert all(info.structures == ("svd", "dense", "keep") for info in inside)


@pytest.mark.parametrize(("build", "blocks", "layers"), [(swin, 3, 2), (second_swin, 2, 2)])
def test_windowed_attention_shows_its_layers(
    build: Callable[[], nn.Module], blocks: int, layers: int, listed: Listed
) -> None:
    """Those of the second version compute their biases from positions by layers of their own."""
    inventory = listed(build)[2]
    attention = [info for info in inventory if info.kind == "attention"]
    assert len(attention) == blocks
    windows, positions = 3 * 3, 3 * 3  # 8 × 8 patches, made up to 9 × 9
    assert attention[0].macs == windows * 2 * positions**2 * 12
    rows = {info.name: info for info in inventory if info.name.startswith("features.1.0.attn.")}
    assert sum(info.kind == "linear" for info in rows.values()) == layers
    qkv, last = rows["features.1.0.attn.qkv"], classifier(inventory)
    assert (qkv.calls, qkv.macs) == (1, windows * positions * 12 * 3 * 12)
    assert qkv.structures == ("svd", "dense", "keep")
    assert not [info for info in inventory if info.kind == "linear" and not info.calls]
    assert last is not None
    assert last.name == "head"


class Reading(nn.Module):
    """Reads of its layers what only they should: a type, a bias, a weight for a second product."""

    def __init__(self) -> None:
        super().__init__()
        self.typed = nn.Conv2d(3, 4, 3)
        self.biased = nn.Conv2d(4, 4, 1)
        self.product = nn.Linear(4, 4)
        self.convolved = nn.Conv2d(4, 2, 1)
        self.plain = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.typed(x.to(self.typed.weight.dtype))
        y = self.biased(y) - self.biased.bias[:, None, None]
        z = torch.nn.functional.conv2d(y, self.convolved.weight).mean((2, 3))
        y = self.product(y.mean((2, 3)))
        return self.plain(y @ self.product.weight) + z


def test_layers_whose_weights_are_read_past_them_stay() -> None:
    rows = {row.name: row for row in take_inventory(Reading(), (3, 8, 8))}
    biased = rows["biased"]
    assert (biased.structures, biased.skip_reason) == (("keep",), READ_ELSEWHERE)
    assert (biased.calls, biased.macs, biased.params) == (1, 6 * 6 * 4 * 4, 20)
    # Of the others only a type is read, or they are used without being called, or in another product too.
    assert rows["plain"].structures == rows["product"].structures == ("svd", "dense", "keep")
    assert rows["convolved"].structures == ("svd", "dense", "keep")
    assert rows["typed"].structures == ("cp", "tucker2", "svd", "spatial", "dense", "keep")
    assert (rows["convolved"].calls, rows["convolved"].macs) == (1, 6 * 6 * 2 * 4)
    assert (rows["typed"].calls, rows["typed"].macs) == (1, 6 * 6 * 4 * 27)
    unused = rows["convolved.bias"]
    assert (unused.kind, unused.params, unused.skip_reason) == ("parameter", 2, NOT_RUN)


@pytest.mark.parametrize(
    ("name", "arguments", "last"),
    [
        ("resnet18", {}, ["fc"]),
        ("squeezenet1_1", {}, ["classifier.1"]),
        ("googlenet", {"init_weights": False}, ["fc"]),
        (vision_transformer, {}, ["heads.head"]),
        (segmentation, {}, ["classifier.4", "aux_classifier.4"]),
    ],
)
def test_the_last_layers_of_all_heads(
    name: Any, arguments: dict[str, Any], last: list[str], listed: Listed
) -> None:
    inventory = listed(name, **arguments)[2]
    assert [info.name for info in inventory if info.final] == last
    assert [info.name for info in output_layers(inventory)] == last


def test_an_older_inventory_has_its_last_layer_for_a_classifier(resnet18: tuple[LayerInfo, ...]) -> None:
    older = [replace(info, final=False) for info in resnet18]
    assert [info.name for info in output_layers(older)] == ["fc"]
    assert output_layers([]) == ()


def test_layers_that_never_run_come_last_and_stay(listed: Listed) -> None:
    inventory = listed("googlenet", init_weights=False)[2]
    idle = [info for info in inventory if not info.calls]
    assert inventory[-len(idle) :] == tuple(idle)
    assert all(info.name.startswith("aux") for info in idle)
    assert all(info.structures in ((), ("keep",)) for info in idle)
    last = classifier(inventory)
    assert last is not None
    assert last.name == "fc"


@pytest.mark.parametrize(
    ("layer", "structures"),
    [
        (nn.Conv2d(4, 6, 3), ("cp", "tucker2", "svd", "spatial", "dense", "keep")),
        (nn.Conv2d(4, 6, (1, 7), padding=(0, 3)), ("cp", "tucker2", "svd", "dense", "keep")),
        (nn.Conv2d(4, 6, 1, stride=2), ("svd", "dense", "keep")),
        (nn.Conv2d(4, 4, 3, groups=4), ("dense", "keep")),
        (nn.Conv2d(4, 8, 3, groups=2), ("dense", "keep")),
        (nn.Conv2d(4, 8, 1, groups=2), ("dense", "keep")),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), ("cp", "tucker2", "svd", "spatial", "dense", "keep")),
        (nn.ConvTranspose2d(4, 4, 2, groups=4), ("dense", "keep")),
        (nn.ConvTranspose2d(4, 6, 1, stride=2), ("svd", "dense", "keep")),
        (OwnForward(4, 6, 3), ("cp", "tucker2", "svd", "spatial", "dense", "keep")),
        (nn.GroupNorm(2, 4), ("keep",)),
        (nn.PReLU(4), ("keep",)),
        (
            parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
            ("cp", "tucker2", "svd", "spatial", "dense", "keep"),
        ),
    ],
)
def test_what_may_become_of_a_layer(layer: nn.Module, structures: tuple[str, ...]) -> None:
    row = take_inventory(nn.Sequential(layer), (4, 12, 12))[0]
    assert row.structures == structures
    assert row.eligible == (structures[0] in ("cp", "svd"))
    assert bool(row.skip_reason) == (not row.eligible)


def test_depthwise_and_grouped_are_told_apart(row_of: RowOf) -> None:
    assert "depthwise" in (row_of(nn.Conv2d(4, 8, 3, groups=4), (4, 9, 9)).skip_reason or "")
    assert "grouped" in (row_of(nn.Conv2d(4, 8, 3, groups=2), (4, 9, 9)).skip_reason or "")


@pytest.mark.parametrize(
    ("layer", "padding"),
    [
        (nn.Conv2d(2, 3, 5, padding="same"), (2, 2)),
        (nn.Conv2d(2, 3, (3, 7), padding="same", dilation=2), (2, 6)),
        (nn.Conv2d(2, 3, 3, padding="valid"), (0, 0)),
        (nn.Conv2d(2, 3, 3, padding=(2, 1)), (2, 1)),
    ],
)
def test_padding_is_told_in_pixels(layer: nn.Conv2d, padding: tuple[int, int], row_of: RowOf) -> None:
    row = row_of(layer, (2, 16, 16))
    assert row.padding == padding
    for size, kernel, dilation, pad, out in zip(
        (16, 16), row.kernel, row.dilation, row.padding, row.output_hw or (), strict=True
    ):
        assert out == size + 2 * pad - dilation * (kernel - 1)


def test_a_row_copies_what_the_layer_says(row_of: RowOf) -> None:
    layer = nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect")
    row = row_of(layer, (4, 20, 20))
    assert (row.name, row.kind, row.weight_shape) == ("0", "conv2d", (8, 4, 3, 5))
    # Another padding than zeros is an operation of its own, and the layer takes in what it has padded.
    assert (row.kernel, row.stride, row.padding, row.dilation) == ((3, 5), (2, 1), (0, 0), (1, 2))
    assert (row.groups, row.bias, row.padding_mode) == (1, True, "zeros")
    assert (row.out_channels, row.in_channels, row.kernel_elements, row.weight_numel) == (8, 4, 15, 480)
    assert row.input_hw == (22, 24)
    assert row.output_elements == 8 * (row.output_hw or (0, 0))[0] * (row.output_hw or (0, 0))[1]
    assert row.input_elements == 4 * 22 * 24


def test_linear_layers_count_every_position(row_of: RowOf) -> None:
    row = row_of(nn.Linear(8, 5, bias=False), (7, 8))
    assert (row.macs, row.output_elements, row.input_elements) == (7 * 8 * 5, 7 * 5, 7 * 8)
    assert (row.input_hw, row.output_hw, row.bias) == (None, None, False)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(3, 4, 5), (3, 20), 4 * 16 * 3 * 5),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 3 * 27 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 25 * 6 * 4),
        (nn.LayerNorm(8), (7, 8), 2 * 56),
        (nn.BatchNorm2d(3), (3, 4, 4), 2 * 48),
        (nn.BatchNorm2d(3, affine=False), (3, 4, 4), 2 * 48),
        (nn.PReLU(), (3, 4, 4), 0),
        (nn.LSTM(8, 4), (7, 8), 7 * (16 * 8 + 16 * 4)),
    ],
)
def test_operations_of_other_layers(
    layer: nn.Module, shape: tuple[int, ...], macs: int, row_of: RowOf
) -> None:
    row = row_of(layer, shape)
    assert row.macs == macs
    assert row.params == sum(p.numel() for p in layer.parameters())


def test_a_batchnorm_is_folded_only_where_nothing_else_reads_the_layer() -> None:
    rows = {info.name: info for info in take_inventory(Branching(), (3, 8, 8))}
    assert rows["split_norm"].folded_into is None
    assert "folded" in (rows["split_norm"].skip_reason or "")
    assert not rows["split"].folds_batchnorm
    assert rows["plain_norm"].folded_into == "plain"
    assert rows["plain"].folds_batchnorm
    assert rows["last_norm"].folded_into is None


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_a_batchnorm_that_cannot_be_folded(layers: tuple[nn.Module, ...]) -> None:
    rows = take_inventory(nn.Sequential(*layers), (3, 8, 8))
    assert rows[-1].kind == "batchnorm"
    assert rows[-1].folded_into is None


def test_densenet_keeps_the_batchnorms_before_its_activations(listed: Listed) -> None:
    rows = {info.name: info for info in listed(densenet)[2]}
    assert (
        rows["features.denseblock1.denselayer1.norm2"].folded_into == "features.denseblock1.denselayer1.conv1"
    )
    assert rows["features.denseblock1.denselayer2.norm1"].folded_into is None


def test_a_layer_that_runs_twice_sums_its_operations() -> None:
    rows = {info.name: info for info in take_inventory(Recurring(), (3, 16, 16))}
    shared = rows["shared"]
    assert (shared.calls, shared.input_hw, shared.output_hw) == (2, (16, 16), (16, 16))
    assert shared.macs == (256 + 64) * 3 * 3 * 9
    assert shared.output_elements == shared.input_elements == 3 * (256 + 64)
    assert rows["norm"].folded_into is None
    assert rows["norm"].calls == 2


def test_a_network_that_looks_at_values_runs_for_real() -> None:
    """Its layers are parts that are captured apart, so that nothing is folded."""
    rows = {info.name: info for info in take_inventory(Deciding(), (3, 10, 10))}
    assert rows["first.weight"].macs == 4 * 64 * 27
    assert rows["norm.norm"].folded_into is None
    assert rows["head.weight"].macs == 8


def test_a_shared_weight_is_one_layer() -> None:
    rows = {info.name: info for info in take_inventory(Tied(), (6,))}
    shared, bias = rows["one.weight"], rows["one"]
    assert (shared.params, shared.calls, shared.macs) == (36, 2, 72)
    assert shared.structures == ("svd", "dense", "keep")
    assert (bias.kind, bias.params, bias.structures) == ("parameter", 6, ("keep",))
    assert "two" not in rows
    assert rows["idle"].structures == ("keep",)
    assert (rows["idle"].skip_reason, rows["idle"].params) == (NOT_RUN, 14)


@pytest.mark.parametrize("model", [Deciding(), Branching()])
def test_the_network_is_left_as_it_was(model: nn.Module) -> None:
    model.train()
    next(iter(model.children())).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    take_inventory(model, (3, 10, 10))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_network_may_warn_while_it_is_listed(row_of: RowOf) -> None:
    row = row_of(nn.Conv2d(3, 4, 4, padding="same"), (3, 8, 8))  # torch warns of uneven padding
    assert (row.padding, row.output_hw) == ((1, 1), (8, 8))


def test_half_precision_networks_are_listed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).half()
    assert [info.kind for info in take_inventory(model, (3, 8, 8))] == ["conv2d", "linear"]


def test_a_network_of_one_layer_is_a_layer() -> None:
    (row,) = take_inventory(nn.Conv2d(3, 4, 3), (3, 8, 8))
    assert (row.name, row.kind, row.params) == ("weight", "conv2d", 112)
    assert row.structures == ("cp", "tucker2", "svd", "spatial", "dense", "keep")


def test_a_network_without_weights_has_no_rows() -> None:
    assert take_inventory(nn.Sequential(nn.ReLU()), (3, 8, 8)) == ()
    assert first_convolution(()) is None
    assert classifier(()) is None


def test_the_last_convolution_classifies_where_no_linear_layer_does(listed: Listed) -> None:
    last = classifier(listed("squeezenet1_1")[2])
    assert last is not None
    assert last.name == "classifier.1"


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 8, 8), ("(1, 1, 8, 8)", "RuntimeError", "input shape")),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 0, 8), ("(3, 0, 8)", "at least 1")),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (), ("input shape", "expected")),
        (nn.Sequential(nn.LazyConv2d(4, 3)), (3, 8, 8), ("lazy", "run it once")),
    ],
)
def test_networks_that_cannot_be_listed(
    model: nn.Module, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as caught:
        take_inventory(model, shape)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_rows_survive_json(resnet18: tuple[LayerInfo, ...]) -> None:
    assert inventory_from_rows(json.loads(json.dumps([info.to_dict() for info in resnet18]))) == resnet18


def test_damaged_rows_are_refused(resnet18: tuple[LayerInfo, ...]) -> None:
    row = resnet18[0].to_dict()
    with pytest.raises(ModelError, match="unknown fields.*colour"):
        LayerInfo.from_dict({**row, "colour": 1})
    del row["weight_shape"]
    with pytest.raises(ModelError, match="missing fields.*weight_shape"):
        LayerInfo.from_dict(row)


def test_rows_made_by_hand_know_their_input() -> None:
    row = LayerInfo(
        name="a", kind="conv2d", weight_shape=(8, 2, 3, 3), kernel=(3, 3), groups=2, input_hw=(5, 6), calls=2
    )
    assert row.input_elements == 2 * 4 * 30
    assert LayerInfo(name="a", kind="linear", weight_shape=(8, 3), output_elements=16).input_elements == 6
