"""Layers timed inside the whole network: a stand-in as fast as the plan's, and what is slower named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.deploy import in_place
from qaf_core.deploy.in_place import slower_in_place, stand_in
from qaf_core.network.inventory import take_inventory
from qaf_core.network.layers import FactorizedLayer
from qaf_core.network.plan import LayerPlan, Plan, plan_for_ratio, replace_layer

SHAPE = (3, 16, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def plan(network: nn.Module) -> Plan:
    inventory = take_inventory(network, SHAPE)
    plan = plan_for_ratio(inventory, model="test/net", ratio=2.0, bits=4)
    return replace_layer(plan, LayerPlan(name="3", structure="tucker2", rank=(12, 8), bits=4))


def images() -> Tensor:
    return torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_the_stand_in_has_the_plans_layers(network: nn.Module, plan: Plan) -> None:
    found = stand_in(network, take_inventory(network, SHAPE), plan)
    with torch.inference_mode():
        outputs = found(images())
    assert outputs.shape == (8, 4)
    assert bool(torch.isfinite(outputs).all())
    chains = {name: part for name, part in found.named_modules() if isinstance(part, FactorizedLayer)}
    assert {name: chain.structure for name, chain in chains.items()} == {
        row.name: row.structure for row in plan.layers
    }
    assert [link.codes.shape[0] for link in chains["3"].chain] == [8, 12, 32]
    assert isinstance(found.get_submodule("1"), nn.Identity)
    assert isinstance(network.get_submodule("0"), nn.Conv2d)


def test_what_takes_longer_than_dense_is_named(
    network: nn.Module, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def profile(
        models: Mapping[str, Any], given: Any, layers: Sequence[str], **_: Any
    ) -> dict[str, dict[str, float]]:
        asked.append((sorted(models), given.shape, list(layers)))
        times = {name: dict.fromkeys(layers, 1.0) for name in models}
        times["factorized_int8"] |= {"3": 1.5, "0": 9.0, "5": 0.5}
        return times

    monkeypatch.setattr(in_place, "profile_layers", profile)
    inventory = take_inventory(network, SHAPE)
    slower = slower_in_place(network, inventory, plan, images(), threads=1, batch=2)
    assert slower == ("3",)  # "0" is dense in the plan: there is nothing to go back to
    models, shape, layers = asked[0]
    assert models == ["dense_int8", "factorized_int8", "original_fp32"]
    assert shape == (2, *SHAPE)
    assert layers == [row.name for row in plan.layers]


def test_every_layer_is_found_in_a_real_profile(network: nn.Module, plan: Plan) -> None:
    names = {row.name for row in plan.layers if row.rank is not None}
    inventory = take_inventory(network, SHAPE)
    assert set(slower_in_place(network, inventory, plan, images(), threads=1)) <= names
