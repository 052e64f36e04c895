"""A graph ready to be run, and its run from node to node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import TreeSpec, tree_unflatten

from qaf_core.errors import ModelError

Observer = Callable[["Execution", Node, Any], None]


class Program:
    """A graph of operations over the tensors and layers of a network.

    Nodes are placeholders (the inputs), ``get_attr`` (a tensor of the network), ``call_function`` (an
    operation) and ``call_module`` (a layer or a BatchNorm, by name).

    Args:
        graph: Its nodes in the order they run.
        in_spec, out_spec: How arguments and results are nested.
        any_batch: Whether it takes any number of images.

    Attributes:
        steps: The nodes that are run.
        inputs: The placeholders.
        results: What the output node names.
        calls: Name of a layer or BatchNorm -> its nodes.
    """

    def __init__(self, graph: Graph, in_spec: TreeSpec, out_spec: TreeSpec, *, any_batch: bool) -> None:
        self.graph, self.in_spec, self.out_spec, self.any_batch = graph, in_spec, out_spec, any_batch
        nodes = list(graph.nodes)
        self.inputs = [node for node in nodes if node.op == "placeholder"]
        self.steps = [node for node in nodes if node.op not in ("placeholder", "output")]
        output = next(node for node in nodes if node.op == "output")
        self.results: Any = output.args[0]
        self.calls: dict[str, list[Node]] = {}
        for node in self.steps:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)
        self.position = {node: index for index, node in enumerate(self.steps)}
        self.last_reader = self._last_readers(output)
        self.freed: dict[Node, list[Node]] = {}
        for node, reader in self.last_reader.items():
            if reader is not output:
                self.freed.setdefault(reader, []).append(node)

    def _last_readers(self, output: Node) -> dict[Node, Node]:
        last: dict[Node, Node] = {}
        for node in (*self.steps, output):
            for read in node.all_input_nodes:
                last[read] = node
        return last

    def index(self, node: Node) -> int:
        """Where in ``steps`` a node stands."""
        return self.position[node]

    def start(
        self, root: nn.Module, flat_inputs: Sequence[Any], observer: Observer | None = None
    ) -> Execution:
        """Begin a run on the leaves of a call's arguments."""
        values = {node: value for node, value in zip(self.inputs, flat_inputs, strict=True) if node.users}
        return Execution(self, root, values, observer=observer)

    def nest(self, results: Sequence[Any]) -> Any:
        """The results as the network nests them."""
        return tree_unflatten(list(results), self.out_spec)


class Execution:
    """A run of a program that can stand at any node.

    Args:
        program: What is run.
        root: Holds the layers and tensors.
        values: What is known so far, by node; freed when nothing reads it any more.
        position: The step that is next.
        observer: Told of every step with its result, before what it read is freed.
    """

    def __init__(
        self,
        program: Program,
        root: nn.Module,
        values: Mapping[Node, Any],
        position: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.program, self.root, self.position, self._observer = program, root, position, observer
        self.values: dict[Node, Any] = dict(values)

    def copy(self) -> Execution:
        """The same state, to go on from twice; operations change no tensor in place."""
        return Execution(self.program, self.root, self.values, self.position, self._observer)

    def run_to(self, position: int) -> None:
        """Run all steps before a position."""
        for node in self.program.steps[self.position : position]:
            self._keep(node, self.compute(node))
        self.position = max(self.position, position)

    def accept(self, node: Node, result: Any) -> None:
        """Take the result of the step that is next, and go on behind it."""
        self._keep(node, result)
        self.position += 1

    def _keep(self, node: Node, result: Any) -> None:
        self.values[node] = result
        if self._observer is not None:
            self._observer(self, node, result)
        for read in self.program.freed.get(node, ()):
            self.values.pop(read, None)
        if not node.users:
            del self.values[node]

    def compute(self, node: Node) -> Any:
        """The result of one step on the values as they are."""
        if node.op == "get_attr":
            return tensor_at(self.root, str(node.target))
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def operand(self, node: Node) -> Tensor:
        """What a layer's node is about to take in."""
        value: Tensor = self.values[node.args[0]]  # type: ignore[index]
        return value

    def finish(self) -> Any:
        """Run what is left; the results, nested as the network nests them."""
        self.run_to(len(self.program.steps))
        results = map_arg(self.program.results, self.values.__getitem__)
        return self.program.nest(results)


def tensor_at(root: nn.Module, name: str) -> Any:
    """A parameter, buffer or module by its dotted name."""
    owner, _, last = name.rpartition(".")
    return getattr(root.get_submodule(owner), last)


def put(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Register a module or tensor under a dotted name, with plain modules on the way."""
    *path, last = name.split(".")
    first = (*path, last)[0]
    if hasattr(type(root), first) or (first in vars(root) and first not in root._modules):
        raise ModelError(
            "a part of the network has a name that is taken", got=first, remedy="give it another name"
        )
    owner = root
    for part in path:
        if part not in owner._modules:
            owner._modules[part] = nn.Module()
        following = owner._modules[part]
        assert following is not None
        owner = following
    if isinstance(value, nn.Module):
        owner._modules[last] = value
    elif isinstance(value, nn.Parameter):
        owner._parameters[last] = value
    else:
        owner._buffers[last] = value
