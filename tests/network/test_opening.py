"""Networks compute the same after their packed modules are opened, and show more layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from qaf_core.network.attention import OpenAttention
from qaf_core.network.inventory import take_inventory
from qaf_core.network.opening import open_network

Weightless = Callable[..., nn.Module]


class OwnAttention(nn.MultiheadAttention):
    """Computes something else."""

    def forward(self, *arguments: Tensor, **named: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        output, weights = super().forward(*arguments, **named)
        return 2 * output, weights


class Encoder(nn.Module):
    """PyTorch's own encoder over the pixels of an image, with or without padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.encoder(images.flatten(2).mT, src_key_padding_mask=padding)
        return self.head(tokens[:, 0])


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


def assert_same_after_opening(model: nn.Module, *inputs: Tensor) -> tuple[str, ...]:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's nested tensors are a prototype, it says
        expected = model(*inputs)
    opened = open_network(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(*inputs), expected, rtol=1e-5, atol=1e-5)
    return opened


def test_pytorchs_encoder_runs_its_layers() -> None:
    model = encoder()
    images = torch.randn(3, 8, 2, 3)
    assert assert_same_after_opening(model, images) == tuple(f"encoder.layers.{i}.self_attn" for i in (0, 1))
    called: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.inference_mode():  # without gradients torch would take its fused path, past the layers
        model(images)
    assert len(called) == len(set(called)) == 2 * 6 + 1


def test_padding_still_counts() -> None:
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    assert_same_after_opening(encoder(), torch.randn(3, 8, 2, 3), padding)


def test_a_second_call_finds_nothing_to_do() -> None:
    model = encoder()
    assert len(open_network(model)) == 2
    assert open_network(model) == ()


def test_opened_attention_shows_its_layers_and_counts_as_before(weightless: Weightless) -> None:
    for name, layers in (("vit_b_16", 4), ("swin_t", 2), ("swin_v2_t", 4)):
        model = weightless(name)
        before = take_inventory(model, (3, 224, 224))
        assert len(open_network(model)) == 12
        after = take_inventory(model, (3, 224, 224))
        assert sum(row.params for row in after) == sum(row.params for row in before)
        attention = [row for row in after if row.kind == "attention"]
        assert len(attention) == 12
        assert all("rows of their own" in (row.skip_reason or "") for row in attention)
        inside = [row for row in after if row.kind == "linear" and f"{attention[0].name}." in row.name]
        assert len(inside) == layers
        assert all(row.structures == ("svd", "dense", "keep") for row in inside)
        if name == "vit_b_16":  # a packed attention counts its products too
            assert sum(row.macs for row in after) == sum(row.macs for row in before)


@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_frozen_batchnorm_becomes_one_that_can_be_folded(epsilon: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4, eps=epsilon), nn.ReLU()).eval()
    for buffer in model[1].buffers():
        nn.init.uniform_(buffer, 0.5, 1.5)
    assert assert_same_after_opening(model, torch.randn(2, 3, 8, 8)) == ("1",)
    rows = {row.name: row for row in take_inventory(model, (3, 8, 8))}
    assert rows["1"].folded_into == "0"
    assert not any(parameter.requires_grad for parameter in model[1].parameters())
    model.train()(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    "module",
    [
        OwnAttention(8, 2, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True),
    ],
)
def test_attention_of_its_own_kind_stays_and_says_why(module: nn.MultiheadAttention) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            self.head = nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.inner(tokens, tokens, tokens)[0])

    model = Attending().eval()
    assert open_network(model) == ()
    row = take_inventory(model, (5, 8))[0]
    assert (row.kind, row.structures) == ("attention", ("keep",))
    assert "keeps its projections in one tensor" in (row.skip_reason or "")


def test_one_module_in_two_places_is_opened_once() -> None:
    model = encoder()
    model.encoder.layers[1].self_attn = model.encoder.layers[0].self_attn
    images = torch.randn(2, 8, 2, 2)
    assert len(assert_same_after_opening(model, images)) == 1
    attention = model.encoder.layers[0].self_attn
    assert isinstance(attention, OpenAttention)
    assert model.encoder.layers[1].self_attn is attention
    rows = {row.name: row for row in take_inventory(model, (8, 2, 2))}
    assert rows["encoder.layers.0.self_attn.q_proj"].calls == 2


def test_an_opened_network_is_copied_whole() -> None:
    model = encoder()
    open_network(model)
    images = torch.randn(2, 8, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(model)(images), model(images))
