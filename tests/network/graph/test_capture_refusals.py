"""What capture takes apart or refuses: wrappers, choices by value, changing state, states of gradients."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import SHAPE, Net, assert_captured, conv, parameter
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.export import RefusedNetworkError
from qaf_core.network.graph.network import layers_in, networks_in
from qaf_core.network.graph.proof import largest_difference, prove_capture
from qaf_core.network.graph.wrappers import unwrapped

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
