"""One call of ``torch.export``: module and example inputs in, a graph of operations without side effects out.

The exported graph calls in-place operators as the network does. Where what they overwrite is read by nothing
else, they are exchanged for those that make a new tensor; where it is, PyTorch's own functionalization
rewrites the graph, which takes several times as long.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_map

from qaf_core.errors import ModelError
from qaf_core.network.graph.constants import is_filled
from qaf_core.network.graph.nodes import made_by, schema_of
from qaf_core.text.said import say

EXPORT_LOGGERS = (
    "torch.export", "torch.onnx", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._export",
)  # fmt: skip
MOST_IMAGES = 1024  # more are never in one batch
_ATEN = torch.ops.aten
# They check, or say, what holds anyway.
_ASSERTIONS = (
    "aten._assert_scalar", "aten._assert_tensor_metadata", "aten._assert_async", "aten.sym_constrain_range",
    "aten.sym_constrain_range_for_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A module as a graph.

    Attributes:
        graph: Placeholders for the constants, then for the inputs; operations; one output node.
        constants: Placeholder of a constant -> its name in the state dict and its value.
        in_spec, out_spec: How arguments and results are nested.
        any_batch: Whether the graph takes any number of images.
    """

    graph: Graph
    constants: Mapping[Node, tuple[str, Any]]
    in_spec: TreeSpec
    out_spec: TreeSpec
    any_batch: bool


class RefusedNetworkError(ModelError):
    """The network does what no captured part of it could do either."""


def export_module(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, any_batch: bool
) -> Exported:
    """Export a module in evaluation mode.

    Args:
        module: Not changed.
        args, kwargs: Example inputs, tensors nested in lists, tuples and dicts; two images, if ``any_batch``.
        any_batch: Leave the first dimension of every tensor open.

    Raises:
        RefusedNetworkError: If the module changes itself, or runs a part of itself as
            no captured graph can: in mixed precision, by a choice that depends on a value.
        Exception: Whatever the module or ``torch.export`` raises.
    """
    shapes: Any = None
    if any_batch:
        open_first = tree_map(_open_first, (tuple(args), dict(kwargs)))
        shapes = (*open_first[0], *open_first[1].values()) if not kwargs else {
            **dict(zip(_names(module, args), open_first[0], strict=False)), **open_first[1],
        }  # fmt: skip
    with quiet(), torch.no_grad(), _unfused_attention():
        program = export(module, tuple(args), dict(kwargs) or None, dynamic_shapes=shapes, strict=False)
        _refuse_mutation(program)
        _inline_contexts(program.graph_module)
        _drop_without_effect(program.graph)
        if not _make_functional(program.graph, _constants(program)):
            program = program.run_decompositions({})
            _drop_without_effect(program.graph)
    _refuse_mutation(program)
    _keep_results_only(program)
    if any_batch and not all(_is_open(bounds) for bounds in program.range_constraints.values()):
        raise ValueError("the network takes only some numbers of images in this way")
    return Exported(
        graph=program.graph,
        constants=_constants(program),
        in_spec=program.call_spec.in_spec,
        out_spec=program.call_spec.out_spec,
        any_batch=any_batch,
    )


def _keep_results_only(program: ExportedProgram) -> None:
    """Take inputs that were written into off the outputs."""
    rows = program.graph_signature.output_specs
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = output.args[0]
    kept = [value for row, value in zip(rows, results, strict=True) if row.kind is OutputKind.USER_OUTPUT]
    if len(kept) < len(results):
        output.args = (tuple(kept),)


def _is_open(bounds: Any) -> bool:
    """Whether any number of images from 2 on, and to more than are ever in one batch, lies within bounds."""
    upper = bounds.upper
    return int(bounds.lower) <= 2 and (not upper.is_Integer or int(upper) >= MOST_IMAGES)


def _open_first(value: Any) -> Any:
    return {0: Dim.DYNAMIC} if isinstance(value, Tensor) and value.ndim else None


def _names(module: nn.Module, args: Sequence[Any]) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)[: len(args)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What export warns of is either harmless or ends in an error; of some errors it prints whole graphs."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in EXPORT_LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _unfused_attention() -> Iterator[None]:
    """PyTorch's transformer layers take no fused path, in which no layer could be seen."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _refuse_mutation(program: ExportedProgram) -> None:
    changed = program.graph_signature.buffers_to_mutate or program.graph_signature.parameters_to_mutate
    if changed:
        raise RefusedNetworkError(
            "the network changes its own state while it runs",
            got=", ".join(sorted(map(str, changed.values()))[:3]),
            remedy="make its forward pass leave parameters and buffers as they are",
        )


def _inline_contexts(module: GraphModule) -> None:
    """Put what runs under another state of gradients, or with autocast off, among the other operations.

    Export writes each such ``with`` block as an operation on a graph of its own.
    """
    for node in list(module.graph.nodes):
        if not isinstance(node.target, HigherOrderOperator):
            continue
        kind = str(node.target)
        if kind == "wrap_with_autocast":
            device, dtype, enabled, _cache, block, *inputs = node.args
            if enabled and device == "cpu":
                raise RefusedNetworkError(
                    "the network computes in mixed precision",
                    got=say("autocast to {dtype} in its forward pass", dtype=dtype),
                    remedy="switch autocast off there: qaf starts from the numbers in full precision",
                )
        elif kind == "wrap_with_set_grad_enabled":
            _enabled, block, *inputs = node.args
        elif any(argument.op == "get_attr" for argument in node.all_input_nodes):
            raise RefusedNetworkError(
                "the network runs a part of itself in a way that is not supported",
                got=str(node.target),
                remedy="write it as plain operations on tensors",
            )
        else:
            continue
        _inline(module, node, block, inputs)


def _inline(module: GraphModule, node: Node, block: Any, inputs: Sequence[Any]) -> None:
    """Put a block's operations in place of the node that runs it."""
    inner = module.get_submodule(str(block.target))
    assert isinstance(inner, GraphModule)
    _inline_contexts(inner)
    graph = module.graph
    places = [place for place in inner.graph.nodes if place.op == "placeholder"]
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(inner.graph, dict(zip(places, inputs, strict=True)))
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # they take one result each
        graph.erase_node(user)
    graph.erase_node(node)
    if not block.users:
        graph.erase_node(block)


def _constants(program: ExportedProgram) -> dict[Node, tuple[str, Any]]:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    constants = {}
    for row in program.graph_signature.input_specs:
        if row.kind is InputKind.USER_INPUT:
            continue
        name = str(row.target)
        value = program.state_dict.get(name, program.constants.get(name))
        constants[nodes[row.arg.name]] = (name, value)
    return constants


def _drop_without_effect(graph: Graph) -> None:
    """Take out assertions, and dropout that is off."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = str(node.target)
        if name.startswith(_ASSERTIONS):
            graph.erase_node(node)
        elif name.startswith(("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout")) and not _trains(
            node
        ):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _trains(node: Node) -> bool:
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("train", False))


# In-place operators


class _Memory:
    """Which nodes show the same memory, and what depends on parameters alone."""

    def __init__(self, nodes: Sequence[Node], constants: Collection[Node]) -> None:
        self.position = {node: index for index, node in enumerate(nodes)}
        self.constant = set(constants)
        self._base: dict[Node, Node] = {}
        self._members: dict[Node, list[Node]] = {}

    def add(self, node: Node) -> None:
        """Take up the next node."""
        shown = _shown(node) if node.op == "call_function" else None
        self._put(node, node if shown is None else self._base[shown])
        known = all(read in self.constant for read in node.all_input_nodes)
        if node.op == "call_function" and (known or is_filled(node)):
            self.constant.add(node)

    def _put(self, node: Node, base: Node) -> None:
        self._base[node] = base
        self._members.setdefault(base, []).append(node)

    def part(self, node: Node) -> None:
        """The node has memory of its own from now on."""
        self._members[self._base[node]].remove(node)
        self._put(node, node)

    def is_private(self, written: Node) -> bool:
        """Whether the memory belongs to neither an input nor a parameter."""
        return self._base[written].op not in ("placeholder", "get_attr")

    def read_after(self, node: Node, written: Node) -> bool:
        """Whether anything but the in-place operation's own result is read of the memory afterwards."""
        base = self._base[written]
        if written is not base and _size(written) != _size(base):
            return True  # a part of it
        readers = {user for member in self._members[base] if member is not node for user in member.users}
        return any(self.position[user] > self.position[node] for user in readers - {node})

    def used_before(self, node: Node, written: Node) -> bool:
        """Whether something that depends on the input has read the memory already."""
        readers = {user for member in self._members[self._base[written]] for user in member.users}
        return any(
            self.position[user] < self.position[node] and user not in self.constant for user in readers
        )

    def shown_with(self, written: Node) -> list[Node]:
        """All nodes that show the same memory so far."""
        return self._members[self._base[written]]


def _make_functional(graph: Graph, constants: Collection[Node]) -> bool:
    """Exchange in-place operators for functional ones; False where that could change what is computed.

    Those that work on parameters' copies alone stay: their results are computed once, in this order, and are
    marked ``written`` in the nodes' ``meta``.
    """
    memory = _Memory(list(graph.nodes), constants)
    exchanges: list[tuple[Node, Any]] = []
    written_constants: list[Node] = []
    for node in graph.nodes:
        memory.add(node)
        if node.op != "call_function" or not _writes(node):
            continue
        written = node.args[0] if node.args else None
        if not isinstance(written, Node) or not memory.is_private(written):
            return False
        if node in memory.constant and not memory.used_before(node, written):
            written_constants.append(node)
            continue
        functional = _functional_of(node)
        if functional is None or memory.read_after(node, written):
            return False
        exchanges.append((node, functional))
        memory.part(node)
    for node in written_constants:
        for shown in memory.shown_with(node):
            shown.meta["written"] = True
    for node, functional in exchanges:
        node.target = functional
    return True


def _size(node: Node) -> Any:
    value = made_by(node)
    return None if value is None else value.numel()


def _writes(node: Node) -> bool:
    schema = schema_of(node)
    return schema is not None and bool(schema.is_mutable)


def _shown(node: Node) -> Node | None:
    """The argument whose memory the result shows, if any."""
    if str(node.target) == "<built-in function getitem>":
        first = node.args[0]
        return first if isinstance(first, Node) else None
    schema = schema_of(node)
    if schema is None or not any(row.alias_info is not None for row in schema.returns):
        return None
    for row, value in zip(schema.arguments, node.args, strict=False):
        if row.alias_info is not None and isinstance(value, Node):
            return value
    return None


def _functional_of(node: Node) -> Any:
    """The operator that makes a new tensor, of an in-place one."""
    target = node.target
    packet, overload = getattr(target, "overloadpacket", None), getattr(target, "_overloadname", "default")
    name = getattr(packet, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    if name in ("copy_", "zero_", "fill_", "normal_", "uniform_", "bernoulli_", "random_", "set_", "resize_"):
        return None
    twin = getattr(_ATEN, name[:-1], None)
    if twin is None or overload not in twin.overloads():
        return None
    candidate = getattr(twin, overload)
    names = [row.name for row in schema_of(node).arguments]
    return candidate if [row.name for row in candidate._schema.arguments] == names else None
