"""What stays beside the chains comes back from a file as it was, whatever it holds, however it is shared."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.deploy.packed.kept_tensors import fits_half
from qaf_core.deploy.packed.read import load_packed, without_numbers
from qaf_core.deploy.packed.write import save_packed
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.proof import largest_difference
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions

SHAPE = (3, 8, 8)
QUICK = CompressOptions(solver=SolverOptions(starts=1, iterations=2), output_fit=False)
CARD = {"model": "tests/kept", "input_shape": list(SHAPE)}
LARGEST_ERROR = 0.02  # of the file: half precision


class Kept(nn.Module):
    """A convolution, something of its own, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.norm = nn.BatchNorm2d(8)
        for value in (self.norm.running_mean, self.norm.bias, self.norm.weight):
            nn.init.uniform_(value, 0.5, 1.5)
        nn.init.uniform_(self.norm.running_var, 0.1, 4)
        self.own()

    def own(self) -> None:
        """What else it holds."""

    def inside(self, values: Tensor) -> Tensor:
        return values

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.inside(self.stem(images)).relu().mean((2, 3)))


class NamedFixed(Kept):
    def own(self) -> None:
        self.fixed = nn.Sequential(nn.GroupNorm(2, 8), nn.PReLU(8))
        nn.init.normal_(self.fixed[0].weight)

    def inside(self, values: Tensor) -> Tensor:
        return self.fixed(values)


class ReadsStatistics(Kept):
    def inside(self, values: Tensor) -> Tensor:
        return self.norm(values.relu()) * self.norm.running_var.sqrt()[:, None, None]


class SharesGamma(Kept):
    def own(self) -> None:
        self.a_gate = nn.ParameterDict({"gamma": self.norm.weight})

    def inside(self, values: Tensor) -> Tensor:
        return self.norm(values.relu()) * self.a_gate["gamma"][:, None, None]


class TiesWeights(Kept):
    def own(self) -> None:
        self.down, self.up = nn.Conv2d(8, 8, 3, bias=False), nn.ConvTranspose2d(8, 8, 3, bias=False)
        self.up.weight = self.down.weight

    def inside(self, values: Tensor) -> Tensor:
        return self.up(self.norm(self.down(values)).tanh())


class Masks(Kept):
    lowest = float("-inf")

    def own(self) -> None:
        order = torch.arange(8.0)
        bias = 3.0 - (order[:, None] - order).abs() / 2
        self.register_buffer("bias", bias.masked_fill(order > order[:, None], self.lowest))

    def inside(self, values: Tensor) -> Tensor:
        return ((values @ values.mT + self.bias).softmax(-1) @ values).tanh()


class MasksByLowest(Masks):
    lowest = torch.finfo(torch.float32).min


class CountsInFloats(Kept):
    def own(self) -> None:
        self.register_buffer("order", torch.arange(4607.0, -1.0, -1.0))

    def inside(self, values: Tensor) -> Tensor:
        return (
            values * values.repeat(1, 9, 1, 1).flatten(1)[:, self.order.long()].mean(1)[:, None, None, None]
        )


class PacksProjections(Kept):
    def own(self) -> None:
        self.in_proj_bias = nn.Parameter(torch.randn(24))

    def inside(self, values: Tensor) -> Tensor:
        return values + self.in_proj_bias.reshape(3, 8).prod(0)[:, None, None]


class Caches(Kept):
    """In evaluation it keeps what it computes from a parameter, as merged modules do."""

    def own(self) -> None:
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Caches:
        self.kept = None if mode else self.scale.detach().exp()
        return super().train(mode)

    def inside(self, values: Tensor) -> Tensor:
        return values * (self.scale.exp() if self.kept is None else self.kept)


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@functools.cache
def _captured(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return capture(build().eval(), SHAPE)


def captured(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    return copy.deepcopy(_captured(build, seed))


KINDS = (
    NamedFixed, ReadsStatistics, SharesGamma, TiesWeights, Masks, MasksByLowest, CountsInFloats,
    PacksProjections, Caches,
)  # fmt: skip


@pytest.mark.parametrize("keep", [(), ("down", "down_2", "up")], ids=["all", "some"])
@pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
def test_a_file_holds_all_that_the_network_needs(
    build: Callable[[], nn.Module], keep: tuple[str, ...], tmp_path: Path
) -> None:
    model = captured(build, 0)
    inventory = take_inventory(model, SHAPE)
    if keep and not {row.name for row in inventory} & set(keep):
        pytest.skip("has no such layers")
    plan = plan_for_ratio(inventory, model="tests/kept", ratio=1.0, bits=8, method="dense")
    rows = (
        replace(row, structure="keep", rank=None, bits=None) if row.name in keep else row
        for row in plan.layers
    )
    made = compress_network(
        model, replace(plan, layers=tuple(rows)), inventory, method="dense", calibration=images(24),
        options=QUICK,
    )  # fmt: skip
    anew, path = captured(build, 1), tmp_path / "model.safetensors"
    save_packed(path, made.model, inventory, CARD, anew)
    with torch.no_grad():
        expected, found = made.model(images(8)), load_packed(path, anew)(images(8))
        assert largest_difference(expected, found) < LARGEST_ERROR
        again = load_packed(path, without_numbers(captured(build, 0)))(images(8))
        assert largest_difference(expected, again) < LARGEST_ERROR


def test_a_copy_without_numbers_has_none_of_the_originals() -> None:
    model = captured(NamedFixed, 0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    copied = without_numbers(model)
    for name, value in copied.named_parameters():
        assert not torch.equal(value, before[name])
        assert torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([1.0, 1e-3, -5.0], True),
        ([0.0, 0.0], True),
        ([], True),
        ([3.1e5, -0.25], True),
        ([1.5, float("-inf")], False),
        ([1.5, float("nan")], False),
        ([0.5, -3.4e38], False),
        ([2047.0, 3.0], True),
        ([4607.0, 3.0], False),
    ],
)
def test_what_half_precision_holds(values: list[Any], fits: bool) -> None:
    assert fits_half(torch.tensor(values)) == fits
