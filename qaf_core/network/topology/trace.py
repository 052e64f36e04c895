"""Follows tensors through a captured network and writes down which layer's output reaches which.

Inside captured parts every node of the graph is looked at; between them, where Python chooses and rearranges,
every operation on tensors. What reads one node's output only is no node of its own: an activation, a norm, a
view or a pooling becomes a word on the edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node as Step
from torch.utils.weak import WeakTensorKeyDictionary

from qaf_core.network.graph.capture import EXAMPLE_IMAGES, capture, without_weights
from qaf_core.network.graph.inference import inference
from qaf_core.network.graph.network import GraphNetwork, first_tensors, networks_in
from qaf_core.network.graph.nodes import joined_path, module_of, operator_of
from qaf_core.network.graph.program import Execution
from qaf_core.network.graph.value_choices import KeepEverything
from qaf_core.network.modules.quantized import Layer
from qaf_core.network.topology.description import CODE, INPUT, LAYER, MERGE, OUTPUT, Edge, Node, Topology

MOST_WORDS = 6  # on one edge: the last ones
_PRODUCTS = {
    "bmm": "matmul", "matmul": "matmul", "mm": "matmul", "baddbmm": "matmul", "einsum": "matmul",
    "scaled_dot_product_attention": "attention",
}  # fmt: skip
_SILENT = {"getitem", "detach", "clone", "alias", "contiguous", "dropout", "to", "_to_copy"}

# Node -> the operations on the way from it.
Origin = Mapping[str, tuple[str, ...]]


def trace_topology(model: nn.Module, input_shape: Sequence[int]) -> Topology:
    """How the layers of a network are connected, as one forward pass shows it.

    The pass runs without weights, as that of the inventory, or with them where that fails.

    Args:
        model: The network, captured or not; left as it is.
        input_shape: (C, H, W) of one image.

    Raises:
        ModelError: If the network cannot be captured.
    """
    return without_weights(capture(model, input_shape), partial(_traced, input_shape))


def _traced(input_shape: Sequence[int], model: nn.Module, device: torch.device) -> Topology:
    flow = _Flow()
    parts = networks_in(model)
    for path, part in parts.items():
        flow.watch(path, part)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    images = torch.zeros(EXAMPLE_IMAGES, *input_shape, device=device, dtype=dtype)
    flow.begin(images)
    try:
        with inference(model), flow:
            output = model(images)
    finally:
        for part in parts.values():
            part.step_observer = None
    return flow.end(first_tensors(output))


class _Flow(KeepEverything):  # type: ignore[no-untyped-call]
    """Knows of every tensor which nodes it comes from."""

    def __init__(self) -> None:
        super().__init__()
        self._of: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()
        self._nodes: dict[str, Node] = {}
        self._edges: list[Edge] = []
        self._met_in_code: dict[tuple[str, frozenset[str]], str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        origin: dict[str, tuple[str, ...]] = {}
        for tensor in first_tensors((args, kwargs)):
            origin.update(self._of.get(tensor, {}))
        if origin:
            for tensor in first_tensors(output):
                self._of[tensor] = origin
        return output

    def begin(self, images: Tensor) -> None:
        """The network's input."""
        name = self._add(Node(name=INPUT, kind=INPUT, shape=_shape([images])))
        self._of[images] = {name: ()}

    def end(self, outputs: Iterable[Tensor]) -> Topology:
        """The whole, once its output is there."""
        results = list(outputs)
        reached: dict[str, tuple[str, ...]] = {}
        for tensor in results:
            reached.update(self._of.get(tensor, {}))
        name = self._add(Node(name=OUTPUT, kind=OUTPUT, shape=_shape(results[:1])))
        self._connect(reached, name)
        return Topology(nodes=tuple(self._nodes.values()), edges=tuple(self._edges))

    def watch(self, path: str, network: GraphNetwork) -> None:
        """Look at every node of a captured part that stands at some path."""

        def look(execution: Execution, step: Step, result: Any) -> None:
            if step.op == "get_attr":
                return
            origins = [
                self._entering(path, execution.values[read], read.op == "placeholder")
                for read in step.all_input_nodes
                if read.op != "get_attr"
            ]
            if isinstance(step.target, str) and isinstance(network.get_submodule(step.target), Layer):
                self._layer(joined_path(path, step.target), network, step, origins, result)
            else:
                self._operation(path, step, origins, result)

        network.step_observer = look

    def _entering(self, path: str, value: Any, first: bool) -> Origin:
        """Where an operand comes from: one node, met in Python if need be; nothing for a constant."""
        origins: dict[str, tuple[str, ...]] = {}
        tensors = list(first_tensors(value))
        for tensor in tensors:
            origins.update(self._of.get(tensor, {}))
        if first and tensors and not origins:
            origins = {INPUT: ()}  # copied into a batch, say
        if len(origins) < 2:
            return origins
        key = (path, frozenset(origins))
        if key not in self._met_in_code:
            shape = _shape(tensors[:1])
            node = self._add(
                Node(name=_named(path, CODE), kind=MERGE, operation=CODE, scope=path, shape=shape)
            )
            self._met_in_code[key] = node
            self._connect(origins, node)
        return {self._met_in_code[key]: ()}

    def _layer(
        self, name: str, network: GraphNetwork, step: Step, origins: Sequence[Origin], result: Any
    ) -> None:
        layer = network.get_submodule(str(step.target))
        assert isinstance(layer, Layer)
        node = self._add(
            Node(
                name=name, kind=LAYER, operation=layer.operation.kind, layer=name,
                scope=name.rpartition(".")[0], shape=_shape([result]),
            )
        )  # fmt: skip
        for origin in origins:
            self._connect(origin, node)
        self._of[result] = {node: ()}

    def _operation(self, path: str, step: Step, origins: Sequence[Origin], result: Any) -> None:
        known = [origin for origin in origins if origin]
        word = _word(step)
        results = list(first_tensors(result))
        if not known or not results:
            return
        joined: dict[str, tuple[str, ...]] = {}
        for origin in known:
            for name, words in origin.items():
                joined.setdefault(name, words)
        if len(joined) > 1 or (word in _PRODUCTS and len(known) > 1):
            scope = joined_path(path, module_of(step))
            operation = _PRODUCTS.get(word, word)
            node = self._add(
                Node(
                    name=_named(scope, operation), kind=MERGE, operation=operation, scope=scope,
                    shape=_shape(results[:1]),
                )
            )  # fmt: skip
            self._connect(joined, node)
            after: Origin = {node: ()}
        else:
            ((source, words),) = joined.items()
            is_new = word not in (*_SILENT, *words[-1:])
            after = {source: (*words, word)[-MOST_WORDS:] if is_new else words}
        for tensor in results:
            self._of[tensor] = after

    def _add(self, node: Node) -> str:
        """Take a node in, under its name or that with a number; its name."""
        name, number = node.name, 1
        while name in self._nodes:
            number += 1
            name = f"{node.name} ({number})"
        self._nodes[name] = Node(**{**vars(node), "name": name})
        return name

    def _connect(self, origin: Origin, target: str) -> None:
        self._edges += [Edge(source=name, target=target, through=words) for name, words in origin.items()]


def _named(scope: str, operation: str) -> str:
    return f"{scope}:{operation}" if scope else operation


def _word(step: Step) -> str:
    """What an operation is called."""
    if step.op == "call_module":
        return "batch_norm"
    name = operator_of(step) if "aten." in str(step.target) else getattr(step.target, "__name__", "operation")
    return name.removesuffix("_")


def _shape(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Of one image: without the first dimension where it counts images, else with its share of it."""
    if not tensors or not tensors[0].ndim:
        return ()
    rows, *rest = map(int, tensors[0].shape)
    if rows % EXAMPLE_IMAGES:
        return (rows, *rest)
    return tuple(rest) if rows == EXAMPLE_IMAGES else (rows // EXAMPLE_IMAGES, *rest)
