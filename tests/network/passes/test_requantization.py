"""Chains round their outputs where the chains that take them do so anyway, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.factorization.factors import Factors
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, swap_layer
from qaf_core.network.passes.requantization import connect_chains

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """Convolutions ``a`` to ``c`` and a linear layer ``d``, between them what ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        x = self.a(images)
        if self.kind == "relu":
            x = self.b(nn.functional.relu(x, inplace=True))
        elif self.kind == "pool and drop":
            x = self.b(nn.functional.dropout(nn.functional.max_pool2d(x.relu(), 2), training=False))
        elif self.kind == "relu6":
            x = self.b(nn.functional.relu6(x))
        elif self.kind == "two takers":
            x = x.relu()
            x = self.b(x) + self.c(x)
        elif self.kind == "skip":
            x = x.relu()
            x = x + self.b(x)
        elif self.kind == "twice":
            x = self.b(self.b(x.relu()).relu())
        elif self.kind == "put out":
            x = x.relu()
            return self.b(x), x
        elif self.kind == "sigmoid":
            x = self.b(torch.sigmoid(x))
        elif self.kind == "views":
            x = self.b(x.relu().flatten(2).permute(0, 2, 1).transpose(1, 2).unflatten(2, (8, 8)))
        elif self.kind == "slice":
            x = x.relu()
            x = self.b(x) + x.flatten(2)[:, :, :1, None]
        else:
            x = self.b(x.relu())
        return self.d(x.mean((2, 3)))


def make(
    kind: str, first_range: tuple[float, float] = (-2.0, 2.0), inner: tuple[float, float] = (0.0, 3.0)
) -> nn.Module:
    """The captured network with 8-bit codes in place of its weights."""
    torch.manual_seed(0)
    model = capture(Net(kind), SHAPE)
    for name in "abcd":
        if name not in dict(model.named_children()):
            continue  # it does not run
        layer = layer_of(model, name)
        weight = layer.rows.detach()
        scales = weight.abs().flatten(1).amax(1, keepdim=True) / 127
        codes = (weight.flatten(1) / scales).round().to(torch.int8)
        factors = Factors(
            structure="dense", weight_shape=tuple(weight.shape), codes=(codes,), scales=(scales,), bits=(8,)
        )
        chain = build_chain(layer, factors)
        chain.chain[0].input_quantizer.set_range(*(first_range if name == "a" else inner))
        chain.use_codes()
        swap_layer(model, name, chain)
    return model


def on_grid(model: nn.Module) -> set[str]:
    return {
        name
        for name, part in model.named_modules()
        if isinstance(part, FactorizedLayer) and part.output_qparams is not None
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("relu", {"a"}),
        ("pool and drop", {"a"}),
        ("relu6", {"a"}),
        ("two takers", {"a"}),
        ("skip", set()),
        ("twice", {"a"}),
        ("put out", set()),
        ("sigmoid", set()),
        ("views", {"a"}),
        ("slice", set()),
    ],
)
def test_only_outputs_that_are_rounded_anyway_are_rounded(kind: str, expected: set[str]) -> None:
    model = make(kind)
    before = copy.deepcopy(model)
    assert connect_chains(model) == len(expected)
    assert on_grid(model) == expected
    images = torch.randn(16, *SHAPE)
    with torch.inference_mode():
        found, wanted = model(images), before(images)
    found, wanted = (found[0], wanted[0]) if kind == "put out" else (found, wanted)
    # The same but for a few values between two codes.
    assert float((found - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())


def test_a_grid_that_reaches_beyond_the_limits_is_not_used() -> None:
    below = make("relu", inner=(-1.0, 3.0))  # zero is not its lowest code: the ReLU is still needed
    above = make("relu6", inner=(0.0, 9.0))
    assert connect_chains(below) == connect_chains(above) == 0


def test_takers_with_different_grids_leave_the_output_as_it_is() -> None:
    model = make("two takers")
    taker: Any = model.c
    taker.chain[0].input_quantizer.set_range(0.0, 1.0)
    assert connect_chains(model) == 0


def test_networks_without_codes_have_nothing_to_connect() -> None:
    assert connect_chains(capture(Net("relu"), SHAPE)) == 0
