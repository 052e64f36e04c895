"""Edges and merges as they are written in the network, counted by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import small_networks
import torch
import torchvision
from capturing import SHAPE, Net, conv
from torch import Tensor, nn

from qaf_core.data.models.catalogue import find_model, load_structure
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.topology.description import LAYER, MERGE, Topology
from qaf_core.network.topology.trace import trace_topology


def merges(found: Topology) -> Counter[str]:
    return Counter(node.operation for node in found.nodes if node.kind == MERGE)


def test_a_plain_network_is_a_line() -> None:
    parts = [conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6), nn.Flatten(), nn.Linear(384, 5)]
    found = trace_topology(nn.Sequential(*parts), SHAPE)
    assert [node.name for node in found.nodes] == ["input", "0", "3", "5", "output"]
    assert [(edge.source, edge.target) for edge in found.edges] == [
        ("input", "0"), ("0", "3"), ("3", "5"), ("5", "output"),
    ]  # fmt: skip
    assert [edge.through for edge in found.edges] == [(), ("batch_norm", "relu"), ("flatten",), ()]
    assert [node.shape for node in found.nodes] == [(3, 8, 8), (4, 8, 8), (6, 8, 8), (5,), (5,)]


def test_a_residual_block_has_one_merge_and_its_shortcut() -> None:
    with torch.device("meta"):
        block = torchvision.models.resnet.BasicBlock(3, 3)
    found = trace_topology(nn.Sequential(block), SHAPE)
    assert {(edge.source, edge.target) for edge in found.edges} == {
        ("input", "0.conv1"), ("0.conv1", "0.conv2"), ("0.conv2", "0:add"), ("input", "0:add"),
        ("0:add", "output"),
    }  # fmt: skip
    assert len(found.edges) == 5
    assert found.node("0:add").scope == "0"


def test_a_dense_block_joins_all_that_came_before() -> None:
    found = trace_topology(small_networks.densenet(), (3, 32, 32))
    # Two blocks of two layers: the second layer reads two, what leaves the block is made of three.
    assert merges(found) == {"cat": 4}
    sources = found.sources()
    assert sources["features.denseblock1.denselayer2:cat"] == (
        "features.conv0", "features.denseblock1.denselayer1.conv2",
    )  # fmt: skip
    assert sources["features.denseblock1:cat"] == (
        "features.conv0", "features.denseblock1.denselayer1.conv2", "features.denseblock1.denselayer2.conv2",
    )  # fmt: skip
    layers = sum(node.kind == LAYER for node in found.nodes)
    assert len(found.edges) == layers + (2 + 3) * 2 + 1


def test_a_layer_called_twice_is_two_nodes_of_one_layer() -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        return net.same(torch.relu(net.same(images)))

    found = trace_topology(Net(forward, same=conv(3, 3)), SHAPE)
    assert [(node.name, node.layer) for node in found.nodes[1:-1]] == [("same", "same"), ("same (2)", "same")]
    assert [(edge.source, edge.target) for edge in found.edges] == [
        ("input", "same"), ("same", "same (2)"), ("same (2)", "output"),
    ]  # fmt: skip


def test_gates_are_merges_and_activations_are_not() -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        seen = net.first(images)
        seen = seen * torch.sigmoid(seen)  # one source: an activation, however it is written
        return seen * torch.sigmoid(net.gate(seen.mean((2, 3), keepdim=True)))

    found = trace_topology(Net(forward, first=conv(3, 4), gate=nn.Conv2d(4, 4, 1)), SHAPE)
    assert merges(found) == {"mul": 1}
    assert found.sources()["mul"] == ("first", "gate")


def test_attention_is_one_merge_of_what_it_reads() -> None:
    def forward(net: Net, images: Tensor) -> Tensor:
        rows = images.flatten(2)
        return nn.functional.scaled_dot_product_attention(net.query(rows), net.key(rows), net.value(rows))

    parts = {name: nn.Linear(64, 16) for name in ("query", "key", "value")}
    found = trace_topology(Net(forward, **parts), SHAPE)
    assert merges(found) == {"attention": 1}
    assert found.sources()["attention"] == ("query", "key", "value")


def test_a_detector_in_parts_is_connected_through_its_code() -> None:
    model = small_networks.detector()
    found = trace_topology(model, (3, 64, 64))
    assert merges(found)["code"] >= 1  # regions are cut out by Python, of what two parts found
    nodes = found.by_name()
    read = {edge.source for edge in found.edges}
    assert {node.name for node in found.nodes if node.kind == LAYER} <= read, "a layer's output is lost"
    reached = {edge.target for edge in found.edges}
    assert all(name in reached or node.kind == "input" for name, node in nodes.items())
    heads = [name for name, node in nodes.items() if node.layer.startswith("roi_heads.box_head")]
    assert any(nodes[source].operation == "code" for source in found.sources()[heads[0]])


@pytest.mark.parametrize("make", [small_networks.mobilenet, small_networks.vision_transformer])
def test_every_layer_of_the_inventory_that_runs_is_there(make: object) -> None:
    model = make()  # type: ignore[operator]
    inventory = take_inventory(model, (3, 32, 32))
    found = trace_topology(model, (3, 32, 32))
    assert {node.layer for node in found.nodes if node.kind == LAYER} == {
        info.name for info in inventory if info.planned and info.calls
    }
    assert Topology.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("model", ["digits/cnn", "inspection/resnet20", "inspection/detector"])
def test_the_card_tells_what_the_network_is(model: str) -> None:
    source = find_model(model)
    assert load_structure(replace(source, shipped=False)) == load_structure(source)
