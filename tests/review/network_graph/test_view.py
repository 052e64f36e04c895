"""What is drawn: blocks closed and opened, dense blocks step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qaf_core.data.models.catalogue import find_model, load_structure
from qaf_core.network.topology.description import Edge, Node, Topology
from qaf_core.review.network_graph.view import (
    BLOCK,
    blocks_of,
    home_of,
    joined_stepwise,
    view_of,
)

RESNET = load_structure(find_model("inspection/resnet20"))[1]


def dense(count: int) -> Topology:
    """A block in which each of so many layers reads the input and all layers before it."""
    layers = [f"block.{n}.conv" for n in range(count)]
    nodes, edges = [Node(name="input", kind="input")], []
    for number, layer in enumerate(layers):
        reads = "input"
        if number:
            reads = f"block.{number}:cat"
            nodes.append(Node(name=reads, kind="merge", operation="cat", scope=f"block.{number}"))
            edges += [Edge(source=name, target=reads) for name in ("input", *layers[:number])]
        nodes.append(Node(name=layer, kind="layer", operation="conv2d", layer=layer, scope=f"block.{number}"))
        edges.append(Edge(source=reads, target=layer))
    nodes += [
        Node(name="block:cat", kind="merge", operation="cat", scope="block"),
        Node(name="head", kind="layer", operation="linear", layer="head"),
        Node(name="output", kind="output"),
    ]
    edges += [Edge(source=name, target="block:cat") for name in ("input", *layers)]
    edges += [Edge(source="block:cat", target="head"), Edge(source="head", target="output")]
    return Topology(nodes=tuple(nodes), edges=tuple(edges))


def test_a_small_network_is_open() -> None:
    assert RESNET is not None
    view = view_of(RESNET)
    assert view.closed == ()
    assert len(view.boxes) == len(RESNET.nodes)
    assert len(view.arrows) == len(RESNET.edges)
    box = next(box for box in view.boxes if box.name == "layer1.0.conv2")
    assert (box.within, box.title) == (("layer1", "layer1.0"), "conv2")


def test_a_block_is_opened_by_choice_with_those_around_it() -> None:
    assert RESNET is not None
    closed = view_of(RESNET, most=10)
    assert closed.closed == ("layer1", "layer2", "layer3")
    assert [box.kind for box in closed.boxes] == ["input", "layer", BLOCK, BLOCK, BLOCK, "layer", "output"]
    block = next(box for box in closed.boxes if box.name == "layer2")
    assert (len(block.layers), block.merges) == (6, 3)
    assert {(arrow.source, arrow.target) for arrow in closed.arrows} == {
        ("input", "conv1"), ("conv1", "layer1"), ("layer1", "layer2"), ("layer2", "layer3"),
        ("layer3", "linear"), ("linear", "output"),
    }  # fmt: skip
    opened = view_of(RESNET, chosen=["layer2.1"], most=10)
    assert opened.closed == ("layer1", "layer2.0", "layer2.2", "layer3")
    inside = [box.name for box in opened.boxes if box.within == ("layer2", "layer2.1")]
    assert inside == ["layer2.1.conv1", "layer2.1.conv2", "layer2.1:add"]


def test_where_a_layer_stands() -> None:
    assert RESNET is not None
    assert home_of(RESNET, "layer2.1.conv1") == ("layer2", "layer2.1")
    assert home_of(RESNET, "no such layer") == ()
    assert blocks_of(RESNET)[:4] == ("layer1", "layer1.0", "layer1.1", "layer1.2")


@pytest.mark.parametrize("count", [2, 5, 24])
def test_a_dense_block_is_read_step_by_step(count: int) -> None:
    whole = dense(count)
    assert len(whole.edges) == count * (count + 1) // 2 + 2 * count + 2
    stepwise = joined_stepwise(whole)
    # Two into each concatenation, one into each layer, head and output.
    assert len(stepwise.edges) == 2 * count + count + 2
    sources = stepwise.sources()
    assert sources["block:cat"] == (f"block.{count - 1}:cat", f"block.{count - 1}.conv")

    def inputs(name: str) -> tuple[str, ...]:
        node = stepwise.node(name)
        if node.operation != "cat":
            return (name,)
        return tuple(leaf for source in sources[name] for leaf in inputs(source))

    assert inputs("block:cat") == whole.sources()["block:cat"]  # in the same order
    assert stepwise.node("block.1:cat").scope == "block"  # beside the layers that share it


def test_what_differs_on_the_way_is_not_shared() -> None:
    nodes = (
        Node(name="a", kind="layer", layer="a"), Node(name="b", kind="layer", layer="b"),
        Node(name="c", kind="layer", layer="c"),
        Node(name="one", kind="merge", operation="cat"), Node(name="two", kind="merge", operation="cat"),
    )  # fmt: skip
    edges = (
        Edge(source="a", target="one"), Edge(source="b", target="one"),
        Edge(source="a", target="two", through=("relu",)), Edge(source="b", target="two"),
        Edge(source="c", target="two"),
    )  # fmt: skip
    assert joined_stepwise(Topology(nodes=nodes, edges=edges)).edges == edges


def test_a_block_called_as_a_node_is_no_less_a_block() -> None:
    """Many networks have modules called ``input`` and ``output``, or as an operation."""
    layers = [f"{block}.{n}" for block in ("input", "add", "output") for n in (0, 1)]
    nodes = [
        Node(name="input", kind="input"),
        *(Node(name=name, kind="layer", layer=name, scope=name[:-2]) for name in layers[:4]),
        Node(name="add", kind="merge", operation="add"),
        *(Node(name=name, kind="layer", layer=name, scope=name[:-2]) for name in layers[4:]),
        Node(name="output", kind="output"),
    ]
    way = ["input", *layers[:4], "add", *layers[4:], "output"]
    edges = [Edge(source=a, target=b) for a, b in pairwise(way)] + [Edge(source="input.1", target="add")]
    view = view_of(Topology(nodes=tuple(nodes), edges=tuple(edges)), most=6)
    assert view.closed == ("input", "add", "output")
    assert len({box.name for box in view.boxes}) == 6
    kinds = {box.name: box.kind for box in view.boxes}
    assert [(kinds[arrow.source], kinds[arrow.target]) for arrow in view.arrows] == [
        ("input", BLOCK), (BLOCK, BLOCK), (BLOCK, "merge"), (BLOCK, "merge"), ("merge", BLOCK),
        (BLOCK, "output"),
    ]  # fmt: skip
    assert all(box.layers for box in view.boxes if box.kind == BLOCK)
