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
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from qaf_core.errors import ModelError
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.export import RefusedNetworkError
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import GraphNetwork, layers_in, networks_in
from qaf_core.network.graph.proof import largest_difference, prove_capture
from qaf_core.network.graph.wrappers import unwrapped
from qaf_core.network.plan.rules import LayerPlan
from qaf_core.pipeline.check.equivalence import layers_to_blame

SHAPE = (3, 8, 8)
Forward = Callable[..., Any]


class Net(nn.Module):
    """Layers by name, and what is done with them as a function of the network and its input."""

    def __init__(self, forward: Forward, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, images: Tensor) -> Any:
        return self._forward(self, images)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def conv(inputs: int, outputs: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **more})


def settle(model: nn.Module) -> nn.Module:
    """No BatchNorm leaves its input as it is, and no parameter is zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator).to(tensor))
    return model.eval()


def outputs(model: nn.Module, count: int, shape: tuple[int, ...] = SHAPE) -> Any:
    """What a network says of random images."""
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(images)


def assert_captured(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """Equal outputs for batches of any size; exact chains in all places change nothing; each number once."""
    settle(model)
    expected = {count: outputs(model, count, shape) for count in (3, 2, 1)}
    network = capture(model, shape)
    for count, wanted in expected.items():
        assert largest_difference(wanted, outputs(model, count, shape)) == 0.0  # it is left as it was
        torch.testing.assert_close(outputs(network, count, shape), wanted, rtol=1e-4, atol=1e-5)
    inventory = take_inventory(network, shape)
    assert len({row.name for row in inventory}) == len(inventory)
    assert sum(row.params for row in inventory if row.calls) == sum(p.numel() for p in network.parameters())
    for turn in range(3):
        plans = []
        for index, row in enumerate(row for row in inventory if row.planned and row.structures != ("keep",)):
            forms = [form for form in row.structures if form in FACTORIZED] or ["dense"]
            form = forms[(index + turn) % len(forms)]
            plans.append(LayerPlan(name=row.name, structure=form, rank=_some_rank(form), bits=32))
        assert plans or all(row.structures in ((), ("keep",)) for row in inventory)
        assert layers_to_blame(network, inventory, plans, None, shape) == {}
    return network


def _some_rank(form: str) -> Any:
    return {"tucker2": (1, 1), "dense": None}.get(form, 1)


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


# Attention


class Attending(nn.Module):
    """Attends to the pixels of an image, and puts out the weights too."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, **options)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = images.flatten(2).mT if self.inner.batch_first else images.flatten(2).permute(2, 0, 1)
        width = tokens.shape[-1]
        keys = tokens[..., : self.inner.kdim] if self.inner.kdim != width else tokens
        values = tokens[..., : self.inner.vdim] if self.inner.vdim != width else tokens
        found, weights = self.inner(tokens, keys, values)
        return self.head(found), weights


PROJECTIONS = {f"inner.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False, "batch_first": True},
        {"kdim": 6, "vdim": 5, "batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
    ids=str,
)
def test_packed_attention_shows_its_projections(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Attending(**options)
    network = assert_captured(model, (8, 2, 3))
    rows = {row.name: row for row in take_inventory(network, (8, 2, 3))}
    assert {name for name, row in rows.items() if row.planned} == PROJECTIONS | {"head"}
    assert all(rows[name].structures == ("svd", "dense", "keep") for name in PROJECTIONS)
    assert sum(row.params for row in rows.values()) == sum(p.numel() for p in model.parameters())


def test_keys_of_their_own_share_the_packed_projection() -> None:
    """Queries from one tensor, keys and values from another: two multiplications by slices of one weight."""
    torch.manual_seed(0)

    def forward(net: Net, images: Tensor) -> Tensor:
        tokens = images.flatten(2).mT
        found: Tensor = net.inner(tokens[:, :2], tokens.flip(1), tokens.flip(1), need_weights=False)[0]
        return found

    model = Net(forward, inner=nn.MultiheadAttention(8, 2, batch_first=True))
    network = assert_captured(model, (8, 2, 3))
    planned = {row.name for row in take_inventory(network, (8, 2, 3)) if row.planned}
    assert planned == PROJECTIONS


class Encoder(nn.Module):
    """PyTorch's own encoder over the pixels of an image; the last ones are padding."""

    def __init__(self, *, padded: bool = False, mask: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)
        self.padded, self.mask = padded, mask

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).mT
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        padding[:, 4:] = True
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1]) if self.mask else None
        tokens = self.encoder(tokens, mask=mask, src_key_padding_mask=padding if self.padded else None)
        result: Tensor = self.head(tokens[:, 0])
        return result


@pytest.mark.parametrize("options", [{}, {"padded": True}], ids=str)
def test_pytorchs_encoder_runs_its_layers(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    network = assert_captured(Encoder(**options), (8, 2, 3))
    assert isinstance(network, GraphNetwork)
    assert len(layers_in(network)) == 2 * 6 + 1


def test_an_encoder_that_looks_at_its_mask_and_into_its_parts_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be captured as a graph of operations"):
        capture(Encoder(mask=True), (8, 2, 3))


def test_parts_in_a_list_are_found() -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        for part in net.parts:
            images = part(images) if float(images.sum()) < 1e9 else images
        return images

    torch.manual_seed(0)
    parts = nn.ModuleList(nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2))
    network = assert_captured(Net(forward, parts=parts))
    assert set(networks_in(network)) == {"parts.0", "parts.1"}
    assert set(layers_in(network)) == {"parts.0.0", "parts.1.0"}


def test_one_attention_in_two_places_is_one() -> None:
    torch.manual_seed(0)
    model = Encoder()
    model.encoder.layers[1].self_attn = model.encoder.layers[0].self_attn
    network = assert_captured(model, (8, 2, 2))
    rows = {row.name: row for row in take_inventory(network, (8, 2, 2))}
    assert rows["encoder.layers.0.self_attn.q_proj"].calls == 2
    assert not [name for name in rows if name.startswith("encoder.layers.1.self_attn.")]


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
# Whole windows, some to be filled up, a side that one window covers; moved windows or not.
@pytest.mark.parametrize(("size", "shift"), [((8, 9), [2, 1]), ((7, 10), [0, 1]), ((3, 2), [2, 1])])
@pytest.mark.parametrize("bias", [True, False])
def test_windowed_attention_shows_its_layers(
    kind: type[ShiftedWindowAttention], size: tuple[int, int], shift: list[int], bias: bool
) -> None:
    torch.manual_seed(0)
    module = kind(12, [4, 3], shift, 3, qkv_bias=bias)
    for tensor in module.parameters():
        nn.init.normal_(tensor, std=0.4)
    model = Net(lambda net, images: net.attn(images.permute(0, 2, 3, 1)), attn=module)
    network = assert_captured(model, (12, *size))
    assert set(layers_in(network)) >= {"attn.qkv", "attn.proj"}


# Wrappers


def test_wrappers_that_change_nothing_are_taken_off() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU())
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert unwrapped(nn.DataParallel(nn.DataParallel(model)), SHAPE) is model
    assert unwrapped(averaged, SHAPE) is averaged.module
    assert unwrapped(model, SHAPE) is model
    assert set(layers_in(capture(nn.DataParallel(model), SHAPE))) == {"0"}


# Networks that choose by value


class Choosing(nn.Module):
    """Goes one way or the other as its numbers say, between parts that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images)
        scores: Tensor = self.head(found if float(found.sum()) < 1e9 else -found)
        return scores


def test_a_network_that_chooses_is_captured_in_parts() -> None:
    torch.manual_seed(0)
    network = assert_captured(Choosing())
    assert isinstance(network, Choosing)
    assert set(networks_in(network)) == {"body", "head"}
    assert set(layers_in(network)) == {"body.0", "head.1"}


# Refusals


def test_a_network_that_does_not_answer_alike_twice_is_refused() -> None:
    model = Net(lambda net, images: functional.dropout(net.layer(images), 0.5), layer=conv(3, 4))
    with pytest.raises(ModelError, match="does not give the same answer twice.*dropout"):
        capture(model, SHAPE)


def test_a_network_that_changes_its_state_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = conv(3, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.seen += 1
            result: Tensor = self.layer(images)
            return result

    with pytest.raises(ModelError, match="changes its own state while it runs.*seen"):
        capture(Counting(), SHAPE)


def test_a_network_of_which_nothing_can_be_captured_is_refused() -> None:
    class Wavering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = parameter(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            found = images.flatten(2).mT @ self.weight
            return found * 2 if float(found.sum()) > 0 else found

    with pytest.raises(ModelError, match="cannot be captured as a graph.*shapes of its inputs only"):
        capture(Wavering(), SHAPE)


def test_a_captured_network_that_computes_something_else_is_refused() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU()).eval()
    network = copy.deepcopy(capture(model, SHAPE))
    prove_capture(model, network, SHAPE)
    with torch.no_grad():
        layers_in(network)["0"].weight.mul_(1.01)
    with pytest.raises(ModelError, match="computes something else.*a relative difference of 0.0"):
        prove_capture(model, network, SHAPE)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (torch.jit.trace, SHAPE, "TorchScript networks cannot be taken apart"),
        (lambda *_: nn.Sequential(nn.LazyConv2d(4, 3)), SHAPE, "lazy layers"),
        (lambda *_: nn.Sequential(conv(3, 4)), (3, 0, 8), "input shape out of range"),
        (lambda *_: nn.Sequential(conv(3, 4)), (3, True, 8), "input shape out of range"),
        (lambda *_: nn.Sequential(conv(3, 4)), (1, 8, 8), "does not run on an input of shape (1, 1, 8, 8)"),
    ],
)
def test_what_cannot_be_captured_at_all_is_told(
    model: Callable[..., nn.Module], shape: tuple[int, ...], words: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, it says
        made = model(nn.Sequential(conv(3, 4)), torch.zeros(1, *SHAPE))
        with pytest.raises(ModelError) as caught:
            capture(made, shape)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Differences


@pytest.mark.parametrize(
    ("one", "two", "difference"),
    [
        (torch.ones(4), torch.ones(4), 0.0),
        ([torch.ones(4), {"a": torch.ones(1)}], [torch.ones(4), {"a": torch.ones(1) * 1.5}], 0.5),
        (torch.ones(4), torch.ones(5), math.inf),
        ([torch.ones(4)], [torch.ones(4), torch.ones(4)], math.inf),
        ([1, torch.ones(2)], [torch.ones(2), 1], math.inf),
        (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]), 0.0),
        (torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), math.sqrt(2)),
    ],
)
def test_the_difference_of_nested_outputs(one: Any, two: Any, difference: float) -> None:
    assert largest_difference(one, two) == pytest.approx(difference)


class _Split(nn.Module):
    """Takes some numbers of images in another way than others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm, self.unused = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "inputs":
            images = images.clamp_(-2, 2)
        if self.kind == "views":  # only PyTorch's own functionalization can rewrite this
            values = self.norm(self.first(images)).relu()
            values[..., 0] = 3.0
            return self.second(values).mean((2, 3))
        values = self.first(images) * self.gain
        if self.kind == "few" and len(images) >= 8:
            return values.mean((2, 3))
        if self.kind == "pieces":
            return torch.cat([self.second(part) for part in values.split(4)]).mean((2, 3))
        if self.kind == "tied":
            values = nn.functional.conv_transpose2d(values, self.second.weight)
        return self.second(values).mean((2, 3))


@pytest.mark.parametrize("kind", ["few", "pieces", "inputs", "views", "tied"])
@torch.no_grad()
def test_what_depends_on_the_number_of_images_or_writes_into_them_is_captured_right(kind: str) -> None:
    torch.manual_seed(0)
    network = _Split(kind).eval()
    captured = capture(network, (3, 8, 8))
    for count in (2, 3, 8, 16):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(captured(images.clone()), network(images.clone()))


class _Block(nn.Module):
    """Convolution, BatchNorm and a linear layer, some of it in a ``with`` block or under a condition."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "grad":
            with torch.enable_grad():
                features = self.norm(self.conv(images))
        elif self.kind == "nested":
            with torch.autocast("cpu", enabled=False):
                features = self.conv(images)
                with torch.enable_grad():
                    first, second = self.norm(features).relu_(), features.sigmoid()
                features = first * second
        elif self.kind == "condition":
            features = torch.cond(images.sum() > 0, torch.sin, torch.cos, (self.conv(images),))
        else:
            device, dtype, enabled = {
                "off": ("cpu", torch.bfloat16, False),
                "elsewhere": ("cuda", torch.float16, False),
                "mixed": ("cpu", torch.bfloat16, True),
            }[self.kind]
            with torch.autocast(device, dtype=dtype, enabled=enabled):
                features = self.norm(self.conv(images))
        return self.head(features.float().mean((2, 3)))


@pytest.mark.parametrize("kind", ["grad", "nested", "off", "elsewhere"])
@torch.no_grad()
def test_blocks_that_change_nothing_are_part_of_the_graph(kind: str) -> None:
    network = _Block(kind).eval()
    captured = capture(network, (3, 8, 8))
    assert set(layers_in(captured)) == {"conv", "head"}
    for count in (1, 3):
        images = torch.randn(count, 3, 8, 8)
        assert torch.equal(captured(images), network(images))


@pytest.mark.parametrize(("kind", "reason"), [("mixed", "mixed precision"), ("condition", "not supported")])
def test_what_no_graph_holds_is_refused_in_words(kind: str, reason: str) -> None:
    with pytest.raises(RefusedNetworkError, match=reason):
        capture(_Block(kind).eval(), (3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_captured_in_single_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to(dtype).eval()
    weight = model[0].weight.clone()
    captured, images = capture(model, (3, 8, 8)), torch.rand(2, 3, 8, 8)
    assert model[0].weight.dtype is dtype
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(captured(images), copy.deepcopy(model).float()(images))
