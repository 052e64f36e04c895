"""Captured attention shows its projections, and computes what it did: packed, PyTorch's encoder, windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from capturing import Net, assert_captured, conv
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import GraphNetwork, layers_in, networks_in

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
@pytest.mark.parametrize(
    ("size", "shift", "bias"), [((8, 9), [2, 1], True), ((7, 10), [0, 1], False), ((3, 2), [2, 1], True)]
)
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
