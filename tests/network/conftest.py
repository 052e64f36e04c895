"""Inventories that several tests of this folder read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from small_networks import SIDE, built_and_captured
from torch import nn

from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.layer_info import LayerInfo

RowOf = Callable[[nn.Module, tuple[int, ...]], LayerInfo]
Listed = Callable[..., tuple[nn.Module, nn.Module, tuple[LayerInfo, ...]]]


def _row_of(module: nn.Module, shape: tuple[int, ...]) -> LayerInfo:
    (row,) = take_inventory(nn.Sequential(module), shape)
    return row


@pytest.fixture(scope="session")
def row_of() -> RowOf:
    """The inventory row of one layer, given the layer and its input shape."""
    return _row_of


@pytest.fixture(scope="session")
def weightless() -> Callable[..., nn.Module]:
    """A torchvision network on the meta device, built without drawing its weights, by name."""

    def build(name: str, **arguments: Any) -> nn.Module:
        with torch.device("meta"):
            return torchvision.models.get_model(name, weights=None, **arguments)

    return build


@pytest.fixture(scope="session")
def listed(weightless: Callable[..., nn.Module]) -> Listed:
    """A network, captured once, and its inventory: torchvision's at 224 × 224 by name, small ones by what
    builds them.
    """

    @functools.cache
    def make(
        name: str | Callable[[], nn.Module], **arguments: Any
    ) -> tuple[nn.Module, nn.Module, tuple[LayerInfo, ...]]:
        if not isinstance(name, str):
            model, captured = built_and_captured(name)
            return model, captured, take_inventory(captured, (3, SIDE, SIDE))
        model = weightless(name, **arguments)
        captured = capture(model, (3, 224, 224))
        return model, captured, take_inventory(captured, (3, 224, 224))

    return make


@pytest.fixture(scope="session")
def resnet18(listed: Listed) -> tuple[LayerInfo, ...]:
    """torchvision's ResNet-18 at 224 × 224."""
    return listed("resnet18")[2]


@pytest.fixture(scope="session")
def resnet50(listed: Listed) -> tuple[LayerInfo, ...]:
    """torchvision's ResNet-50 at 224 × 224."""
    return listed("resnet50")[2]
