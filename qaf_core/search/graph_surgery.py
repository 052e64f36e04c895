"""A dense INT8 network with some of its layers exchanged for chains, in the graph itself: only time counts.

Codes are drawn at random and nothing is solved, so that many plans can be timed as whole networks in the
time one export takes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from qaf_core.deploy.onnx_export.writer import inputs_of
from qaf_core.factorization.structures import Rank
from qaf_core.search.geometry import LayerGeometry, LinkShape
from qaf_core.search.layer_onnx import LayerGraph, add_grid, add_product

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LAYER_OPERATORS = ("Conv", "Gemm", "MatMul")


def swappable_layers(dense: ModelProto) -> set[str]:
    """Names of the layers whose nodes :func:`swap_layers` finds."""
    return {_layer_of(node) for node in dense.graph.node if node.op_type in LAYER_OPERATORS}


def swap_layers(
    dense: ModelProto, geometries: Mapping[str, LayerGeometry], structures: Mapping[str, tuple[str, Rank]]
) -> bytes:
    """The network with chains in place of layers, serialized.

    Args:
        dense: As ``write_dense_int8`` makes it: QuantizeLinear and DequantizeLinear around every layer, whose
            node is named ``LAYER.0/OPERATOR``. It is not changed.
        geometries: Of the layers.
        structures: Structure and rank of the layers to exchange, by name.
    """
    model = copy.deepcopy(dense)
    graph = LayerGraph()
    grid = graph.add_grid_constants("swapped")
    nodes: list[NodeProto] = []
    for index, node in enumerate(model.graph.node):
        structure = structures.get(_layer_of(node)) if node.op_type in LAYER_OPERATORS else None
        if structure is None:
            nodes.append(node)
            continue
        graph.nodes.clear()
        chain = geometries[_layer_of(node)].chain(*structure)
        _write_chain(graph, node, chain, f"swapped{index}", grid)
        nodes += graph.nodes
    nodes = _used(nodes, [row.name for row in model.graph.output])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in inputs_of(node)}
    constants = [row for row in (*model.graph.initializer, *graph.constants) if row.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return bytes(model.SerializeToString())


def _write_chain(
    graph: LayerGraph, node: NodeProto, chain: Sequence[LinkShape], name: str, grid: tuple[str, str]
) -> None:  # fmt: skip
    values = node.input[0]
    for index, link in enumerate(chain):
        place, last = f"{name}.{index}", index == len(chain) - 1
        values = add_product(
            graph, link, values, place, node.op_type,
            bias=last and len(node.input) > 2, output=node.output[0] if last else None, conv=link.attributes,
        )  # fmt: skip
        if not last:
            values = add_grid(graph, values, place, grid)


def _layer_of(node: NodeProto) -> str:
    """The layer in a node's name ``LAYER.LINK/OPERATOR``; empty for another name."""
    link, slash, _ = str(node.name).rpartition("/")
    return link.rpartition(".")[0] if slash else ""


def _used(nodes: Sequence[NodeProto], outputs: Collection[str]) -> list[NodeProto]:
    """The nodes that something reads: the weights of exchanged layers would be dequantized all the same."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(inputs_of(node))
            live.append(node)
    return live[::-1]
