"""Networks without weights: the same shapes, nothing drawn, and constructors that compute still run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import SIDE, built_and_captured, mobilenet, vision_transformer
from torch import nn

from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.weightless import Weightless


class DropRates(nn.Module):
    """Reads values while it is made, as many networks do for stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.2, 3)]
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in self.rates))


def test_only_the_weights_are_missing() -> None:
    with Weightless():
        model = DropRates()
        given = torch.empty(3, device="cpu")
    assert model.rates == pytest.approx([0.0, 0.1, 0.2])
    assert all(parameter.is_meta for parameter in model.parameters())
    assert given.device.type == "cpu"
    assert not torch.empty(3).is_meta


@pytest.mark.parametrize("build", [mobilenet, vision_transformer])
def test_a_network_without_weights_has_the_same_layers(build: Callable[[], nn.Module]) -> None:
    with Weightless():
        weightless = build()
    assert sum(parameter.is_meta for parameter in weightless.parameters()) > 20
    _, captured = built_and_captured(build)
    assert take_inventory(weightless, (3, SIDE, SIDE)) == take_inventory(captured, (3, SIDE, SIDE))
