"""True divergences, run from where the first exchanged layer acts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layers_in
from qaf_core.pipeline.divergence import output_divergence
from qaf_core.search.sensitivity.changes import Weight
from qaf_core.search.sensitivity.exchange import Exchange
from tests.helpers import draw

SHAPE = (3, 8, 8)
NAMES = ("first", "second", "last")


class Skipping(nn.Module):
    """One layer runs twice, and the first one's values skip it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images).relu()
        values = values + self.second(self.second(values).relu())
        return self.last(values.mean(dim=(2, 3)))


def exchange() -> Exchange:
    torch.manual_seed(3)
    network = capture(Skipping().eval(), SHAPE)
    weights = {
        name: Weight(rows=layer.rows.detach(), statistics=None, by_channel=None)
        for name, layer in layers_in(network).items()
    }
    return Exchange(network, draw(12, *SHAPE, seed=4), weights, 1.0)


def changes_of(made: Exchange) -> dict[str, Tensor]:
    return {name: 0.1 * draw(made.weights[name].rows.numel(), seed=5) for name in NAMES}


def alone(changes: dict[str, Tensor]) -> float:
    """The divergence by plain arithmetic, of a network of its own."""
    made = exchange()
    network = made.network
    before = network(made.images)
    for name, change in changes.items():
        layer = layers_in(network)[name]
        layer.weight = nn.Parameter(layer.weight.detach() + change.reshape(layer.weight.shape))
    return output_divergence(before.detach(), network(made.images).detach())


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)))
def test_the_order_in_which_layers_are_tried_changes_nothing(order: tuple[str, ...]) -> None:
    made = exchange()
    changes = changes_of(made)
    for name in order:
        expected = alone({name: changes[name]})
        assert made.divergence({name: changes[name]}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)))
def test_a_layer_is_left_out_of_many_changes(order: tuple[str, ...]) -> None:
    made = exchange()
    changes = changes_of(made)
    assert made.divergence(changes) == pytest.approx(alone(changes), rel=1e-4)
    for name in order:
        others = {other: change for other, change in changes.items() if other != name}
        assert made.divergence(changes, without=name) == pytest.approx(alone(others), rel=1e-4)
        assert made.divergence({name: changes[name]}) == pytest.approx(alone({name: changes[name]}), rel=1e-4)


def test_the_run_up_to_a_layer_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    made = exchange()
    changes, starts = changes_of(made), []
    start = made.network.start_run
    monkeypatch.setattr(made.network, "start_run", lambda *images: starts.append(1) or start(*images))
    for name in NAMES:
        for scale in (1.0, 0.5, 0.25):
            made.divergence({name: scale * changes[name]})
    assert len(starts) == 1
