"""Captured networks put out what their originals do, for any number of images, however they are written.

Every network is small; each stands for a way of writing networks. All their layers are then exchanged for
chains that hold the same weights exactly.
"""

from __future__ import annotations

import copy
import math
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import SHAPE, Forward, Net, assert_captured, conv, outputs, parameter, settle
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import GraphNetwork, layers_in
from qaf_core.network.graph.proof import largest_difference


def test_a_plain_network() -> None:
    parts = [
        conv(3, 4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        conv(4, 6, bias=False),
        nn.Flatten(),
        nn.Linear(384, 5),
    ]
    network = assert_captured(nn.Sequential(*parts))
    assert isinstance(network, GraphNetwork)
    assert set(layers_in(network)) == {"0", "3", "5"}
    assert network.main_program.any_batch
    assert layers_in(network)["0"].weight is parts[0].weight  # shared, not copied
    assert capture(network, SHAPE) is network


def test_the_original_is_left_as_it_was() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    capture(model, SHAPE)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


# Ways of writing layers


class DoesMore(nn.BatchNorm2d):
    """BatchNorm and activation in one module."""

    def forward(self, values: Tensor) -> Tensor:
        return functional.silu(super().forward(values))


class Standardised(nn.Conv2d):
    """A weight that is standardised in each pass."""

    def forward(self, values: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(values, weight, self.bias, padding=1)


class OwnForward(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * 2


class LowRank(nn.Module):
    """A weight that is the product of two matrices, and a bias that is added by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.bias = parameter(6, 2), parameter(2, 8), parameter(6)

    def forward(self, values: Tensor) -> Tensor:
        return functional.linear(values, self.left @ self.right) + self.bias


def hooked() -> nn.Module:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), conv(4, 4))
    model[2].register_forward_hook(lambda _layer, _inputs, output: functional.relu(output) * 2)
    model[3].register_forward_pre_hook(lambda _layer, inputs: (inputs[0] - 1,))
    return model


def patched() -> nn.Module:
    def circular(_self: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(functional.pad(values, (1, 1, 1, 1), mode="circular"), weight, bias)

    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4))
    for layer in (model[0], model[2]):
        layer._conv_forward = types.MethodType(circular, layer)
    return model


def by_type() -> nn.Module:
    def forward(net: Net, values: Tensor) -> Tensor:
        for layer in net.layers:
            values = functional.relu(layer(values)) if isinstance(layer, nn.BatchNorm2d) else layer(values)
        return values

    layers = nn.ModuleList([conv(3, 4), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)])
    return Net(forward, layers=layers)


def computed_weights() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old one is deprecated, it says
        old = weight_norm(conv(4, 4))
    return nn.Sequential(
        parametrizations.weight_norm(conv(3, 4)), nn.ReLU(), old, nn.ReLU(),
        spectral_norm(conv(4, 4)), nn.ReLU(), parametrizations.spectral_norm(conv(4, 4)),
        parametrizations.orthogonal(nn.Linear(8, 8)), Standardised(4, 4, 3), LowRank(),
    )  # fmt: skip


def left_on_a_module() -> nn.Module:
    def encode(net: Net, images: Tensor) -> Tensor:
        net.kept = functional.relu(net.first(images))
        return functional.relu(net.second(net.kept))

    def forward(net: Net, images: Tensor) -> Tensor:
        encoded = net.encoder(images)
        return net.last(torch.cat([encoded, net.encoder.kept], 1))

    model = Net(forward, encoder=Net(encode, first=conv(3, 4), second=conv(4, 4)), last=conv(8, 4))
    model(torch.randn(2, *SHAPE))  # so that something with a history is there already
    return model


def shared_weight() -> nn.Module:
    near, far = conv(3, 4), nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    far.weight = near.weight
    return Net(lambda net, x: torch.cat([net.near(x), net.far(x)], 1), near=near, far=far)


def tied() -> nn.Module:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    return Net(lambda net, x: net.second(net.first(x)), first=first, second=second)


def called_twice() -> nn.Module:
    return Net(
        lambda net, x: net.norm(net.layer(x)) + net.norm(net.layer(x.flip(-1).relu()))[..., ::2, ::2].mean(),
        layer=conv(3, 3), norm=nn.BatchNorm2d(3),
    )  # fmt: skip


def products() -> nn.Module:
    """Multiplications by a constant matrix, in all ways of writing them."""

    def forward(net: Net, images: Tensor) -> Tensor:
        x = images.flatten(2)[..., :8] @ net.right  # (B, 3, 8) -> (B, 3, 6)
        x = net.left @ x  # (5, 3) from the left -> (B, 5, 6)
        x = torch.einsum("btc,dc->btd", x, net.rows)  # -> (B, 5, 4)
        x = torch.einsum("oc,bct->bot", net.mixing, x)  # over the middle axis -> (B, 7, 4)
        x = torch.tensordot(x, net.whole, dims=([1, 2], [1, 0]))  # -> (B, 6, 2)
        x = torch.einsum("bij,kij->bk", x, net.flat)  # -> (B, 5)
        x = torch.addmm(net.shift, x, net.last)  # -> (B, 4)
        return functional.linear(x, net.tail.T)

    return Net(
        forward, right=parameter(8, 6), left=parameter(5, 3), rows=parameter(4, 6), mixing=parameter(7, 5),
        whole=parameter(4, 7, 6, 2), flat=parameter(5, 6, 2), shift=parameter(4), last=parameter(5, 4),
        tail=parameter(4, 3),
    )  # fmt: skip


def in_place() -> nn.Module:
    def forward(net: Net, images: Tensor) -> Tensor:
        x = net.first(images)
        x[:, :2].mul_(0.5).add_(1)
        x[..., 0] = 3
        y = x.view(x.shape[0], -1)
        y.clamp_(min=-1)
        x += net.second(x).relu_()
        kept = torch.zeros_like(x)
        kept[:, 1:] = x[:, :-1]
        return kept.sigmoid_() + y.view_as(x)

    return Net(forward, first=conv(3, 4), second=conv(4, 4))


def functional_calls() -> nn.Module:
    """Layers that are used without being called, one of them in part."""

    def forward(net: Net, images: Tensor) -> Tensor:
        x = functional.conv2d(images, net.layer.weight, net.layer.bias, padding=1)
        return functional.linear(x, net.line.weight[:4], net.line.bias[:4]) * net.scale.weight.mean()

    return Net(forward, layer=conv(3, 4), line=nn.Linear(8, 6), scale=nn.Linear(2, 2))


def spare_parts() -> nn.Module:
    """A head for training only, and a Fourier filter with complex parameters."""

    def forward(net: Net, images: Tensor) -> Tensor:
        x = torch.fft.irfft2(torch.fft.rfft2(net.layer(images)) * net.filter, s=(8, 8))
        return net.spare(x) if net.training else x

    filters = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.cfloat))
    return Net(forward, layer=conv(3, 4), spare=conv(4, 4), filter=filters)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: nn.Sequential(conv(3, 4), DoesMore(4), OwnForward(4, 4, 3), nn.PReLU(4)),
    "hooks": hooked,
    "patched instance": patched,
    "asks for types": by_type,
    "computed weights": computed_weights,
    "left on a module": left_on_a_module,
    "shared weight": shared_weight,
    "tied": tied,
    "called twice": called_twice,
    "products": products,
    "in place": in_place,
    "functional": functional_calls,
    "spare parts": spare_parts,
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=2), conv(4, 8, groups=4),
    ),
    "same": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 4, padding="same"), nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(3, 2)),
        nn.Conv2d(4, 4, 3, padding="valid"),
    ),
    "other paddings": lambda: nn.Sequential(
        conv(3, 4, padding_mode="reflect"), conv(4, 4, padding_mode="circular", padding=(2, 1)),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="replicate"),
    ),
    "norms": lambda: nn.Sequential(
        conv(3, 4), nn.GroupNorm(2, 4), conv(4, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(8),
        nn.BatchNorm2d(4, affine=False), conv(4, 4), nn.BatchNorm2d(4, track_running_stats=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "norms"])
def test_however_a_network_is_written_it_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = assert_captured(NETWORKS[name]())
    assert isinstance(network, GraphNetwork)
    assert network.main_program.any_batch


def test_every_normalisation_stays() -> None:
    torch.manual_seed(0)
    rows = take_inventory(assert_captured(NETWORKS["norms"]()), SHAPE)
    kinds = [row.kind for row in rows if row.kind != "conv2d"]
    assert kinds == ["groupnorm", "instancenorm", "layernorm", "batchnorm", "batchnorm"]
    assert not any(row.folded_into for row in rows)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            nn.Sequential(nn.Conv1d(4, 6, 5, stride=2), nn.BatchNorm1d(6), nn.ConvTranspose1d(6, 3, 3)),
            (4, 16),
        ),
        (
            nn.Sequential(nn.Conv3d(2, 4, (3, 1, 2)), nn.BatchNorm3d(4), nn.ConvTranspose3d(4, 2, 2)),
            (2, 4, 4, 4),
        ),
        (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), (6,)),
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(5), nn.Linear(8, 3)), (5, 6)),
    ],
)
def test_inputs_of_any_number_of_dimensions(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert_captured(model, shape)


def test_a_recurrent_network_keeps_its_core() -> None:
    torch.manual_seed(0)

    def forward(net: Net, images: Tensor) -> Tensor:
        tokens = net.before(images.flatten(2).mT)
        found: Tensor = net.after(net.core(tokens)[0][:, -1])
        return found

    core = nn.LSTM(4, 5, batch_first=True)
    model = Net(forward, before=nn.Linear(3, 4), core=core, after=nn.Linear(5, 2))
    rows = {row.name: row for row in take_inventory(assert_captured(model, (3, 2, 2)), (3, 2, 2))}
    assert rows["core"].kind == "recurrent"
    assert rows["core"].params == sum(tensor.numel() for tensor in core.parameters())


# Results


@pytest.mark.parametrize(
    "shaped",
    [
        lambda x: {"logits": x.mean((2, 3)), "features": [x, x.relu()]},
        lambda x: (x, {"two": x * 2}),
        lambda x: [x[:, 0], x[:, 1]],
    ],
)
def test_results_are_nested_as_the_network_nests_them(shaped: Forward) -> None:
    model = Net(lambda net, images: shaped(net.layer(images)), layer=conv(3, 4))
    assert_captured(model)


def test_a_result_that_is_no_tensor_is_kept() -> None:
    model = Net(
        lambda net, images: {"scores": net.layer(images), "stride": 8, "extra": None}, layer=conv(3, 4)
    )
    found = outputs(assert_captured(model), 2)
    assert (found["stride"], found["extra"]) == (8, None)


# Numbers of images


@pytest.mark.parametrize("kind", ["view", "loop", "number"])
def test_networks_that_fix_the_number_of_images_are_captured_for_each(kind: str) -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        x = net.layer(images)
        if kind == "loop":
            return torch.stack([row * (index + 1) for index, row in enumerate(x)])
        if kind == "number":
            return x + (1.0 if len(x) == 1 else math.sqrt(len(x)))
        return x.view(len(x), 4 * 64)

    network = assert_captured(Net(forward, layer=conv(3, 4)))
    assert isinstance(network, GraphNetwork)
    assert outputs(network, 5).shape[0] == 5
    assert set(layers_in(network)) == {"layer"}


def test_images_of_another_size_are_captured_when_they_come() -> None:
    model = settle(nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))
    network = capture(model, SHAPE)
    wanted = outputs(model, 2, (3, 12, 10))
    torch.testing.assert_close(outputs(network, 2, (3, 12, 10)), wanted, rtol=1e-4, atol=1e-5)
    assert len(network.graph_programs) == 2
    outputs(network, 3, (3, 12, 10))
    assert len(network.graph_programs) == 2
    with pytest.raises(ModelError, match="cannot be captured for inputs of this size"):
        network(torch.zeros(2, 5, 8, 8))


def test_tables_for_one_size_are_not_used_for_another() -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        rows, columns = images.shape[2:]
        table = torch.arange(rows * columns, dtype=torch.float32).reshape(1, 1, rows, columns)
        return net.layer(images) * table.sin() + torch.linspace(0, float(rows), 4).reshape(-1, 1, 1)

    model = settle(Net(forward, layer=conv(3, 4)))
    network = capture(model, SHAPE)
    for shape in ((3, 6, 9), SHAPE, (3, 9, 6), (3, 6, 9)):
        torch.testing.assert_close(outputs(network, 2, shape), outputs(model, 2, shape), rtol=1e-4, atol=1e-5)


def test_a_copy_goes_its_own_way() -> None:
    network = capture(nn.Sequential(conv(3, 4), nn.ReLU()), SHAPE)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        layers_in(twin)["0"].weight.zero_()
    assert largest_difference(outputs(network, 2), outputs(twin, 2)) > 0.1
    assert outputs(twin, 4).shape == (4, 4, 8, 8)
