"""Wrappers come off where they change nothing, any name may be used, no difference hides behind another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import GraphNetwork, layers_in
from qaf_core.network.graph.proof import Answers, largest_difference
from qaf_core.network.graph.wrappers import needs_values

SHAPE = (3, 8, 8)


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    found: Tensor = model(torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)))
    return found


class _Semantic(nn.Module):
    """Its name holds "ema", and it is no wrapper: it does more than the module it holds."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 4)
        self.more = more

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.module((images - 0.5) * 4)) if self.more else self.module(images)


@pytest.mark.parametrize("more", [True, False])
def test_a_wrapper_is_what_computes_the_same(more: bool) -> None:
    torch.manual_seed(0)
    network = _Semantic(more).eval()
    found = capture(network, SHAPE)
    assert largest_difference(outputs(network), outputs(found)) <= 1e-6
    assert ("module.0" in layers_in(found)) == more


def test_a_wrapper_with_a_hook_stays() -> None:
    network = nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 1))).eval()
    network.register_forward_hook(lambda _module, _inputs, output: torch.cat([-output, output], 1))
    assert outputs(capture(network, SHAPE)).shape == (2, 2)


_NAMES = ("main", "start", "programs", "absent", "filled", "observer", "taken_up", "fixed", "main_program")


class _Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
        self.head = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(getattr(self, self.name)(images).mean((2, 3)))


@pytest.mark.parametrize("name", _NAMES)
def test_a_network_may_use_any_name(name: str) -> None:
    found = capture(_Named(name).eval(), SHAPE)
    if name == "main_program":  # ours: then captured in parts, with names a level below
        assert not isinstance(found, GraphNetwork)
        return
    assert isinstance(found, GraphNetwork)
    assert set(layers_in(found)) == {f"{name}.0", "head"}


class _OwnProjections(nn.Module):
    """Slices of a packed weight other than PyTorch's attention takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.in_proj_weight = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(24, 8))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.stem(images).flatten(2).mT
        first = nn.functional.linear(rows, self.in_proj_weight[:16])
        last = nn.functional.linear(rows * 2, self.in_proj_weight[16:])
        return torch.cat([first, last], -1).mean(1)


def test_slices_of_a_packed_weight_are_not_taken_for_one_another() -> None:
    torch.manual_seed(0)
    network = _OwnProjections().eval()
    found = capture(network, SHAPE)
    assert largest_difference(outputs(network), outputs(found)) <= 1e-6


@pytest.mark.parametrize("mask", [-math.inf, -1e9, 1e9])
def test_a_masked_class_hides_no_difference(mask: float) -> None:
    one, two = torch.tensor([[mask, 1.0, 2.0], [mask, 3.0, 4.0]]), torch.tensor([[mask, 5.0, -7.0]] * 2)
    assert largest_difference(one, two) > 0.5
    assert largest_difference(one, one.clone()) == 0.0
    assert largest_difference(torch.tensor([[1.0, math.inf]]), torch.tensor([[1.0, -math.inf]])) == math.inf


def test_wrappers_of_our_own_kind_are_told_by_values_alone() -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    assert not needs_values(plain)
    assert not needs_values(nn.DataParallel(plain))
    assert needs_values(_Semantic(False))
    assert needs_values(nn.DataParallel(_Semantic(False)))


class _Often(nn.Module):
    """Python that runs a captured part so many times, and puts out the first."""

    def __init__(self, part: nn.Module, times: int) -> None:
        super().__init__()
        self.part, self.times = part, times

    def forward(self, images: Tensor) -> Tensor:
        found: list[Tensor] = [self.part(images) for _ in range(self.times)]
        return found[0]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_part_that_runs_more_or_less_often_is_a_difference(times: int) -> None:
    part = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), SHAPE)
    answers = Answers(_Often(part, 2), [torch.rand(2, *SHAPE)])
    assert answers.difference(_Often(part, times)) == (0.0 if times == 2 else math.inf)
