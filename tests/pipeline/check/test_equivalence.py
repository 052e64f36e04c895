"""The safety net notices what it is there for, and says nothing of what is as it should be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in, layer_of
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, swap_layer
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.check import equivalence
from qaf_core.pipeline.check.equivalence import (
    exact_chain,
    explain,
    file_differs,
    layers_to_blame,
    unexpected_disagreement,
)
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.text.catalogue import translator

SHAPE = (3, 10, 10)
QUICK = CompressOptions(solver=SolverOptions(starts=1, start_iterations=5, iterations=2, rounding_rounds=2))
LAYERS = ("stem", "down", "depthwise", "up", "hidden", "head")


class Mixed(nn.Module):
    """BatchNorm to fold, groups, a transposed convolution and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2)
        self.hidden = nn.Linear(6, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.down(self.norm(self.stem(images)).relu()).relu()
        values = self.up(self.depthwise(values).relu()).relu()
        found: Tensor = self.head(self.hidden(values.mean((2, 3))).relu())
        return found


@pytest.fixture(scope="module")
def captured() -> nn.Module:
    torch.manual_seed(0)
    model = Mixed().train()
    with torch.no_grad():
        model(images(64))
    return capture(model.eval(), SHAPE)


@pytest.fixture
def network(captured: nn.Module) -> nn.Module:
    return copy.deepcopy(captured)


@pytest.fixture
def inventory(network: nn.Module) -> tuple[LayerInfo, ...]:
    return take_inventory(network, SHAPE)


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def rows(structure: str = "dense") -> list[LayerPlan]:
    fits = {"depthwise": "dense", "hidden": "svd", "head": "svd"}
    return [LayerPlan(name=name, structure=fits.get(name, structure), rank=1, bits=8) for name in LAYERS]


def spoil(monkeypatch: pytest.MonkeyPatch, network: nn.Module, *names: str) -> None:
    """Have chains in place of some layers put out something else than the layers."""
    wrong = {tuple(layer_of(network, name).rows.shape) for name in names}
    right = equivalence.exact_chain

    def chain(layer: Layer, structure: str) -> FactorizedLayer:
        made = right(layer, structure)
        if tuple(layer.rows.shape) in wrong:
            made.last.codes.mul_(1.5)
        return made

    monkeypatch.setattr(equivalence, "exact_chain", chain)


# Before anything is solved


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "spatial", "dense"])
@pytest.mark.parametrize("given", [True, False])
def test_exact_exchanges_blame_nobody(
    network: nn.Module, inventory: tuple[LayerInfo, ...], structure: str, given: bool
) -> None:
    before = copy.deepcopy(network.state_dict())
    assert layers_to_blame(network, inventory, rows(structure), images() if given else None, SHAPE) == {}
    assert not chains_in(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("names", [("down",), ("stem", "head"), LAYERS])
def test_the_layers_whose_exchange_changes_the_outputs_are_found(
    network: nn.Module,
    inventory: tuple[LayerInfo, ...],
    names: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch, network, *names)
    found = layers_to_blame(network, inventory, rows(), images(), SHAPE)
    assert tuple(found) == names
    assert all(value > 1e-4 for value in found.values())


def test_without_rows_there_is_nobody_to_blame(network: nn.Module, inventory: tuple[LayerInfo, ...]) -> None:
    assert layers_to_blame(network, inventory, [], images(), SHAPE) == {}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "spatial", "dense"])
def test_an_exact_chain_computes_what_the_layer_does(network: nn.Module, name: str, structure: str) -> None:
    layer = layer_of(network, name)
    if layer.operation.groups > 1 and structure != "dense":
        return
    inputs = {"stem": (3, 9, 9), "down": (6, 9, 9), "depthwise": (8, 5, 5), "up": (8, 4, 4)}
    values = torch.randn(2, *inputs.get(name, (layer.rows.shape[1],)))
    with torch.no_grad():
        torch.testing.assert_close(exact_chain(layer, structure)(values), layer(values), rtol=1e-4, atol=1e-5)


def plan_of(inventory: tuple[LayerInfo, ...]) -> Plan:
    return plan_for_ratio(inventory, model="tests/mixed", ratio=1.5, bits=6)


def test_a_blamed_layer_is_kept_and_that_is_told(
    network: nn.Module, inventory: tuple[LayerInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(inventory)
    spoil(monkeypatch, network, "down")
    made = compress_network(network, plan, inventory, calibration=images(48), options=QUICK)
    assert made.status == "completed"
    assert "down" not in [outcome.name for outcome in made.layers]
    assert isinstance(made.model.get_submodule("down"), Layer)
    assert torch.equal(layer_of(made.model, "down").weight, layer_of(network, "down").weight)
    assert any(str(note).startswith("down is kept: replacing it changes what") for note in made.notes)
    assert len(made.layers) == len(LAYERS) - 1


def test_nothing_is_told_where_all_is_well(network: nn.Module, inventory: tuple[LayerInfo, ...]) -> None:
    made = compress_network(network, plan_of(inventory), inventory, calibration=images(48), options=QUICK)
    assert made.notes == ()
    assert len(made.layers) == len(LAYERS)


def test_what_is_said_of_blamed_layers_names_each() -> None:
    told = explain({"a": 0.5, "b": 0.012})
    assert list(map(str, told)) == [
        "a is kept: replacing it changes what the network computes (relative difference 0.5).",
        "b is kept: replacing it changes what the network computes (relative difference 0.012).",
    ]
    assert told[0].text(translator("ja")) == (
        "a は変更しません。置き換えるとネットワークの計算結果が変わるためです（相対差 0.5）。"
    )


# Afterwards


class Scaled(nn.Module):
    """Scores times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Any:
        return values * self.factor


@pytest.mark.parametrize(
    ("factor", "errors", "told"),
    [
        (1.0, (0.0, 0.0), False),
        (1.4, (0.0, 0.0), False),  # 0.16 of the square: too little to speak of
        (1.6, (0.01, 0.01), True),  # 0.36, where 0.2 would be expected at most
        (1.6, (0.02, 0.03), False),
        (-1.0, (0.2, 0.1), True),
        (-1.0, (0.3, 0.2), False),
    ],
)
def test_disagreement_beyond_what_the_layers_errors_explain_is_told(
    factor: float, errors: tuple[float, ...], told: bool
) -> None:
    output_errors = {str(index): error for index, error in enumerate(errors)}
    found = unexpected_disagreement(Scaled(1.0), Scaled(factor), images(), output_errors)
    assert (found is not None) == told
    if found is not None:
        assert f"{(factor - 1) ** 2:.2g}" in str(found)
        assert f"{sum(errors):.2g} in all" in str(found)


class FirstRows(Scaled):
    """Puts out so many rows only, as a detector its boxes."""

    def forward(self, values: Tensor) -> list[Tensor]:
        return list(values[: int(self.factor)])


def test_outputs_that_differ_in_number_or_are_not_finite_are_told() -> None:
    for one, two in ((FirstRows(2), FirstRows(3)), (Scaled(1.0), Scaled(float("nan")))):
        for told in (
            unexpected_disagreement(one, two, images(), {"a": 0.0}),
            file_differs(one, two, images()),
        ):
            assert told is not None
            assert "not finite, or of another form" in str(told)


def test_a_broken_chain_is_told_after_a_whole_compression(
    network: nn.Module, inventory: tuple[LayerInfo, ...]
) -> None:
    made = compress_network(network, plan_of(inventory), inventory, calibration=images(48), options=QUICK)
    errors = {outcome.name: outcome.output_error or 0.0 for outcome in made.layers}
    assert unexpected_disagreement(network, made.model, images(), dict.fromkeys(errors, 0.01)) is None
    broken = copy.deepcopy(made.model)
    chain = chains_in(broken)["head"]
    with torch.no_grad():
        chain.last.scales.mul_(-6.0)
    told = unexpected_disagreement(network, broken, images(), dict.fromkeys(errors, 0.01))
    assert told is not None
    assert "look at the first layers that differ" in str(told)


def test_a_file_that_puts_out_other_numbers_is_told(network: nn.Module) -> None:
    assert file_differs(network, copy.deepcopy(network), images()) is None
    assert file_differs(Scaled(1.0), Scaled(1.05), images()) is None  # half precision
    told = file_differs(Scaled(1.0), Scaled(1.2), images())
    assert told is not None
    assert "relative difference 0.2" in str(told)
    other = copy.deepcopy(network)
    swap_layer(other, "head", exact_chain(layer_of(network, "head"), "svd"))
    assert file_differs(network, other, images()) is None


class Chooser(nn.Module):
    """Puts out its pictures' features by score, as a detector its boxes; all scores are nearly the same."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.score = nn.Linear(8, 1)

    def forward(self, values: Tensor) -> list[Tensor]:
        features = self.features(values).mean((2, 3))
        scores = (1.0 + 1e-7 * torch.tanh(self.score(features))).flatten()
        order = scores.tolist()
        best = sorted(range(len(order)), key=order.__getitem__)
        return [values[index].mean((1, 2)) for index in best if order[index] > 0]


def test_a_choice_among_scores_that_are_nearly_equal_is_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Chooser().train()
    with torch.no_grad():
        model(images(64))
        model.score.weight.mul_(50)
    captured = capture(model.eval(), SHAPE)
    inventory = take_inventory(captured, SHAPE)
    rows = [LayerPlan(name="features.0", structure="dense", rank=1, bits=8)]
    assert layers_to_blame(captured, inventory, rows, images(), SHAPE) == {}
    other = copy.deepcopy(captured)
    with torch.no_grad():
        layer_of(other, "features.0").weight.mul_(1 + 1e-5)
    assert file_differs(captured, other, images()) is None
    with torch.no_grad():
        layer_of(other, "features.0").weight.mul_(2)
    assert file_differs(captured, other, images()) is not None
    spoil(monkeypatch, captured, "features.0")
    assert layers_to_blame(captured, inventory, rows, images(), SHAPE).keys() == {"features.0"}
