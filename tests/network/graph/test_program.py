"""Programs run from node to node: stopped, copied, gone on with, and what nobody reads any more is freed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import GraphNetwork, delegated, layer_of, networks_in, observed
from qaf_core.network.graph.program import Execution

SHAPE = (3, 6, 6)


class Skipping(nn.Module):
    """A skip connection around two layers, one of which runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Any]:
        x = self.first(images).relu()
        return {"sum": x + self.twice(self.twice(x)), "parts": [x.mean(), 3]}


@pytest.fixture(scope="module")
def network() -> GraphNetwork:
    torch.manual_seed(0)
    captured = capture(Skipping(), SHAPE)
    assert isinstance(captured, GraphNetwork)
    return captured


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_run_can_be_stopped_anywhere(network: GraphNetwork, images: Tensor) -> None:
    expected = network(images)
    for position in range(len(network.main_program.steps) + 1):
        run = network.start_run(images)
        run.run_to(position)
        assert run.position == position
        found = run.finish()
        assert torch.equal(found["sum"], expected["sum"])
        assert torch.equal(found["parts"][0], expected["parts"][0])
        assert found["parts"][1] == 3


@torch.no_grad()
def test_a_copy_of_a_run_goes_on_by_itself(network: GraphNetwork, images: Tensor) -> None:
    run = network.start_run(images)
    first, second = network.main_program.calls["twice"]
    run.run_to(network.main_program.index(second))
    twin = run.copy()
    assert torch.equal(twin.operand(second), run.operand(second))
    twin.accept(second, torch.zeros_like(twin.operand(second)))
    assert twin.position == run.position + 1
    changed, whole = twin.finish()["sum"], run.finish()["sum"]
    assert torch.equal(whole, network(images)["sum"])
    assert torch.equal(
        changed, network.start_run(images).program and layer_of(network, "first")(images).relu()
    )
    assert network.main_program.index(first) < network.main_program.index(second)


@torch.no_grad()
def test_values_are_freed_behind_their_last_reader(network: GraphNetwork, images: Tensor) -> None:
    run, program = network.start_run(images), network.main_program
    for position, node in enumerate(program.steps):
        run.run_to(position + 1)
        kept = [n for n in run.values if n not in program.inputs]
        for other in kept:
            reader = program.last_reader[other]
            assert reader.op == "output" or program.index(reader) > position
        assert (node in run.values) == bool(node.users)


@torch.no_grad()
def test_every_step_is_told_with_its_result(network: GraphNetwork, images: Tensor) -> None:
    seen: list[tuple[str, Any]] = []

    def observe(execution: Execution, node: Node, result: Any) -> None:
        if node.op == "call_module":
            assert execution.operand(node).shape[0] == 2
            seen.append((str(node.target), result))

    with observed(network, observe):
        expected = network(images)
    network(images)
    assert [name for name, _ in seen] == ["first", "twice", "twice"]
    assert torch.equal(seen[0][1].relu() + seen[2][1], expected["sum"])


@torch.no_grad()
def test_a_run_can_be_left_to_somebody_else(network: GraphNetwork, images: Tensor) -> None:
    def run_doubled(part: GraphNetwork, run: Execution) -> Any:
        assert part is network
        return {"sum": 2 * run.finish()["sum"]}

    with delegated(run_doubled):
        found = network(images)["sum"]
    torch.testing.assert_close(found, 2 * network(images)["sum"])


def test_layers_are_found_by_name(network: GraphNetwork) -> None:
    assert layer_of(network, "first").rows.shape == (4, 3, 3, 3)
    with pytest.raises(ModelError, match="no such layer.*third"):
        layer_of(network, "third")
    with pytest.raises(ModelError, match="the layer is not as it was"):
        layer_of(nn.Sequential(nn.ReLU()), "0")
    assert networks_in(network) == {"": network}
