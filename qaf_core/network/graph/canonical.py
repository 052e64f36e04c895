"""From an exported graph to a program: constants named, layers and BatchNorms found, the rest as it is.

A layer is a multiplication by a constant weight, named after that weight: several multiplications by one
weight are one layer. What is computed from parameters alone and used as a weight becomes a constant; other
such computations stay in the graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from qaf_core.network.graph.constants import (
    Constant,
    compute,
    packed_parts,
    part_name,
    unique,
    weight_name,
)
from qaf_core.network.graph.export import Exported
from qaf_core.network.graph.multiplications import Multiplication, find_multiplication
from qaf_core.network.graph.network import GraphNetwork
from qaf_core.network.graph.nodes import arguments_of, operator_of
from qaf_core.network.graph.program import Program, put, tensor_at
from qaf_core.network.modules.operation import Operation
from qaf_core.network.modules.quantized import BatchNorm, Layer

_ATEN = torch.ops.aten
FIXED = "_fixed_by_code"  # holds tensors that follow from the network's code alone, and no parameter
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(eq=False)
class _LayerSite:
    """A layer as it is put together from the multiplications by one weight."""

    weight: Constant
    biases: list[Constant | None] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    name: str = ""
    parts: tuple[str, ...] = ()

    @property
    def shared_bias(self) -> bool:
        """Whether all multiplications add the same bias, so that it belongs to the layer."""
        return len({None if bias is None else bias.key for bias in self.biases}) == 1

    def site(self, operation: Operation) -> int:
        """The number of an operation."""
        if operation not in self.operations:
            self.operations.append(operation)
        return self.operations.index(operation)


@dataclass(frozen=True)
class _Norm:
    """A BatchNorm in evaluation: its tensors and its epsilon."""

    values: Node
    weight: Constant | None
    bias: Constant | None
    mean: Constant
    variance: Constant
    eps: float

    @property
    def key(self) -> Hashable:
        """The same for the same normalisation."""
        tensors = (self.weight, self.bias, self.mean, self.variance)
        return (*(None if row is None else row.key for row in tensors), self.eps)


class CanonicalGraph:
    """Builds a program, and puts the tensors and layers it needs into a network.

    Args:
        exported: The graph.
        names: Id of a tensor -> its first name in the network, so that shared tensors have one name.
        root: Gets the layers and tensors; what it has already, from another graph of the network, is used.
            One that was filled from a file gets nothing more that parameters tell.

    Attributes:
        taken_up: Names of parameters that only a computed constant follows from.
    """

    def __init__(self, exported: Exported, names: Mapping[int, str], root: GraphNetwork) -> None:
        self._exported, self._root = exported, root
        self._known: dict[Node, Constant] = {}
        self._multiplications: dict[Node, Multiplication] = {}
        self._norms: dict[Node, _Norm] = {}
        self._layers: dict[Hashable, _LayerSite] = {}
        self._norm_names: dict[Hashable, str] = {}
        self._raw: dict[str, Constant] = {}
        self.taken_up_parameters: set[str] = set()
        self._graph = Graph()
        self._emitted: dict[Node, Node] = {}
        for node, (name, value) in exported.constants.items():
            first = names.get(id(value))
            if first is None and isinstance(value, Tensor):  # written in the network's code
                fixed = self._tensor_name(f"{FIXED}.{name}", value)
                self._known[node] = Constant(value=value, sources=(), key=("tensor", fixed), name=fixed)
            else:
                first = first or name
                self._known[node] = Constant(value=value, sources=(first,), key=("tensor", first), name=first)

    def build(self) -> Program:
        """The program; the network holds all it needs afterwards."""
        self._recognise()
        self._collect_raw()
        self._name()
        for node in self._exported.graph.nodes:
            self._emit(node)
        self._erase_unused()
        self._register()
        return Program(
            self._graph, self._exported.in_spec, self._exported.out_spec, any_batch=self._exported.any_batch
        )

    # What is there

    def _recognise(self) -> None:
        """Find constants, multiplications by them, and BatchNorms, in the order they run."""
        unnamed: list[tuple[Constant, str]] = []
        for node in self._exported.graph.nodes:
            if node in self._known:
                continue
            constant = compute(node, self._known)
            if constant is not None:
                self._known[node] = constant
                if isinstance(constant.value, Tensor) and not constant.sources:
                    unnamed.append((constant, f"{FIXED}.{node.name}"))  # not stored
                elif isinstance(constant.value, Tensor) and node.meta.get("written"):
                    unnamed.append((constant, f"computed.{node.name}"))  # it cannot be taken apart
                    constant.key = ("written", node.name)
                continue
            multiplication = find_multiplication(node, self._known)
            if multiplication is not None:
                self._multiplications[node] = multiplication
                site = self._layers.setdefault(_site_key(multiplication), _LayerSite(multiplication.weight))
                site.biases.append(multiplication.bias)
                site.site(multiplication.operation)
                continue
            norm = _find_norm(node, self._known)
            if norm is not None:
                self._norms[node] = norm
        for constant, name in unnamed:  # by now all that is written into them has been
            constant.name = self._tensor_name(name, constant.value)

    def _tensor_name(self, base: str, value: Tensor) -> str:
        """The name, with a number behind it where a program for another size has another tensor of it.

        Operators have names that modules have methods of, as ``to``.
        """
        count, name = 1, base
        if hasattr(nn.Module, base.rpartition(".")[2]):
            base = name = f"{base}_result"
        while _has(self._root, name) and not _same(self._first_value(name), value):
            count += 1
            name = f"{base}__{count}"
        return name

    def _first_value(self, name: str) -> Any:
        """A tensor of the network as it was captured first."""
        return self._root.first_computed_values.get(name, tensor_at(self._root, name))

    def _collect_raw(self) -> None:
        """Constants that something else than a layer or a BatchNorm reads, down to the tensors they need."""
        waiting: list[Node] = []
        for node in self._exported.graph.nodes:
            if node not in self._known and node not in self._multiplications and node not in self._norms:
                waiting += [read for read in node.all_input_nodes if read in self._known]
        for site in self._layers.values():
            if not site.shared_bias:
                waiting += self._nodes_of(site.biases)
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            constant = self._known[node]
            if constant.name is not None:
                self._raw[constant.name] = constant
            else:
                waiting += node.all_input_nodes

    def _nodes_of(self, constants: list[Constant | None]) -> list[Node]:
        keys = {row.key for row in constants if row is not None}
        return [node for node, constant in self._known.items() if constant.key in keys]

    # Names

    def _name(self) -> None:
        taken: set[str] = set()
        weights = [(site, self._weight_name(site.weight)) for site in self._layers.values()]
        everything = {*self._raw, *(name for _, name in weights)}
        for norm in self._norms.values():
            tensors = (norm.weight, norm.bias, norm.mean, norm.variance)
            everything |= {row.name for row in tensors if row is not None and row.name}
        for site, name in weights:
            owner, _, last = name.rpartition(".")
            others = {other for other in everything if other.startswith(f"{owner}.")} - {name}
            if site.shared_bias:  # else it is added after the layer, and read as a tensor of its own
                others -= {row.name for row in site.biases if row is not None}
            plain = last == "weight" and owner and not others
            site.name = self._free(owner if plain else name, taken, bool(plain))
            taken.add(site.name)
            rows, columns = site.weight.value.shape[0], site.weight.value[0].numel()
            if site.weight.value.ndim == 2 and len(site.operations) == 1 and self._ends_packed(site, name):
                site.parts = packed_parts(name, rows, columns)
        for norm in self._norms.values():
            if norm.key in self._norm_names:
                continue
            name = (norm.mean.name or weight_name(norm.weight or norm.mean)).rpartition(".")[0] or "norm"
            blocked = any(other.startswith(f"{name}.") for other in (*self._raw, *taken))
            norm_name = self._free(f"{name}.batchnorm" if blocked or name in taken else name, taken, True)
            self._norm_names[norm.key] = norm_name
            taken.add(norm_name)

    def _ends_packed(self, site: _LayerSite, name: str) -> bool:
        """Whether a weight is a whole packed one, or all of one from some row on."""
        full, part = self._values_of(name), site.weight.value
        offset = None if full is None else _offset_in(full, part)
        return full is None or (offset is not None and offset + len(part) == len(full))

    def _weight_name(self, weight: Constant) -> str:
        """The weight's name; a slice of a packed attention is named after its projection."""
        name = weight_name(weight)
        if name.endswith(_SEPARATE):  # of an attention whose keys or values have another width
            return f"{name.removesuffix('_weight')}.weight"
        if weight.sources != (weight.name,) and len(weight.sources) == 1 and name.endswith("in_proj_weight"):
            offset = _offset_in(self._values_of(name), weight.value)
            part = None if offset is None else part_name(name, offset, weight.value.shape[1])
            if part is not None and weight.value.shape[0] == weight.value.shape[1]:
                return part
        return name

    def _values_of(self, name: str) -> Tensor | None:
        return next((row.value for row in self._known.values() if row.name == name), None)

    def _free(self, base: str, taken: set[str], plain: bool) -> str:
        """A name for a module that no tensor or module has."""
        if not plain and any(name == base or name.startswith(f"{base}.") for name in self._raw):
            base = f"{base}_matrix"
        return unique(base, taken)

    # The new graph

    def _emit(self, node: Node) -> None:
        graph = self._graph
        if node.op == "placeholder":
            if node not in self._known:
                self._emitted[node] = graph.placeholder(node.name)
                self._emitted[node].meta = dict(node.meta)
            return
        if node.op == "output":
            graph.output(map_arg(node.args[0], self._operand))
            return
        if node in self._known or node in self._emitted:
            return  # made where it is read, or with the BatchNorm it is the result of
        if node in self._multiplications:
            self._emitted[node] = self._emit_layer(self._multiplications[node])
        elif node in self._norms:
            self._emitted[node] = self._emit_norm(node)
        elif node.op == "get_attr":
            self._emitted[node] = graph.get_attr(str(node.target))
        else:
            self._emitted[node] = graph.node_copy(node, self._operand)
        self._emitted[node].meta.setdefault("val", node.meta.get("val"))

    def _operand(self, node: Node) -> Node:
        if node not in self._emitted:
            constant = self._known[node]
            if constant.name is not None:
                self._emitted[node] = self._graph.get_attr(constant.name)
            else:
                self._emitted[node] = self._graph.node_copy(node, self._operand)
        return self._emitted[node]

    def _emit_layer(self, multiplication: Multiplication) -> Node:
        graph, site = self._graph, self._layers[_site_key(multiplication)]
        values = multiplication.before(graph, self._operand(multiplication.values))
        number = site.site(multiplication.operation)
        named: dict[str, Any] = {"site": number} if number else {}
        if site.parts:
            outputs = [graph.call_module(part, (values,), named) for part in site.parts]
            result = graph.call_function(_ATEN.cat.default, (outputs, -1))
        else:
            result = graph.call_module(site.name, (values,), named)
        if multiplication.bias is not None and not site.shared_bias:
            bias = self._operand(self._nodes_of([multiplication.bias])[0])
            if multiplication.operation.dims:
                shape = [-1, *(1,) * multiplication.operation.dims]
                bias = graph.call_function(_ATEN.view.default, (bias, shape))
            result = graph.call_function(_ATEN.add.Tensor, (result, bias))
        return multiplication.after(graph, result)

    def _emit_norm(self, node: Node) -> Node:
        norm = self._norms[node]
        norm_node = self._graph.call_module(self._norm_names[norm.key], (self._operand(norm.values),))
        if operator_of(node) == "batch_norm":
            return norm_node
        # PyTorch's own decomposition puts out a tuple, whose first part is read.
        for user in list(node.users):
            self._emitted[user] = norm_node
        return norm_node

    def _erase_unused(self) -> None:
        for node in reversed(list(self._graph.nodes)):
            if node.op not in ("placeholder", "output") and not node.users:
                self._graph.erase_node(node)

    # The network

    def _register(self) -> None:
        used = {str(node.target) for node in self._graph.nodes if node.op == "call_module"}
        read = {str(node.target) for node in self._graph.nodes if node.op == "get_attr"}
        for site in self._layers.values():
            if site.parts:
                self._register_parts(site)
            elif site.name in used:
                bias = site.biases[0] if site.shared_bias else None
                self._put_layer(site.name, _own(site.weight), _own_or_none(bias), site)
        for norm in self._norms.values():
            name = self._norm_names[norm.key]
            if name in used and not _has(self._root, name):
                self._check_open(name)
                batchnorm = BatchNorm(
                    _own_or_none(norm.weight), _own_or_none(norm.bias), _own(norm.mean), _own(norm.variance),
                    norm.eps,
                )  # fmt: skip
                put(self._root, name, batchnorm)
        for name in read:
            self._put_tensor(name)
            if name.startswith("computed.") and name in self._raw:
                self.taken_up_parameters.update(self._raw[name].sources)
        for module in self._root.modules():
            if isinstance(module, Layer | BatchNorm):
                module.read_elsewhere = module.read_elsewhere or self._is_read(module, read)

    def _is_read(self, part: Layer | BatchNorm, read: set[str]) -> bool:
        own = {id(tensor) for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))}
        return any(id(tensor_at(self._root, name)) in own for name in read if _has(self._root, name))

    def _register_parts(self, site: _LayerSite) -> None:
        weight, bias = site.weight.value, site.biases[0] if site.shared_bias else None
        size = weight.shape[1]
        for index, part in enumerate(site.parts):
            rows = slice(index * size, (index + 1) * size)
            own = (
                None if bias is None else nn.Parameter(bias.value[rows].detach().clone(), requires_grad=False)
            )
            values = nn.Parameter(weight[rows].detach().clone(), requires_grad=False)
            self._put_layer(part, values, own, site)

    def _put_layer(self, name: str, weight: Tensor, bias: Tensor | None, site: _LayerSite) -> None:
        if not _has(self._root, name):
            self._check_open(name)
            put(self._root, name, Layer(weight, bias, site.operations))
            return
        present = self._root.get_submodule(name)
        operations = getattr(present, "operations", ())
        if tuple(site.operations) != tuple(operations)[: len(site.operations)]:
            raise LookupError(f"{name} is used in another way for inputs of another size")

    def _put_tensor(self, name: str) -> None:
        if _has(self._root, name):
            return
        constant = self._raw.get(name)
        value = constant.value if constant is not None else None
        if isinstance(value, Tensor):
            if constant is not None and constant.sources:
                self._check_open(name)
                if constant.sources != (name,):
                    self._root.first_computed_values[name] = value.detach().clone()
            put(self._root, name, value)
        elif constant is not None:
            raise LookupError(f"{name} is no tensor")

    def _check_open(self, name: str) -> None:
        if self._root.read_from_file:
            raise LookupError(f"for inputs of this size it reads {name}, which its file does not hold")


def _site_key(multiplication: Multiplication) -> Hashable:
    """Multiplications by one weight are one layer where they read its rows alike."""
    return (multiplication.weight.key, multiplication.operation.transposed, multiplication.operation.groups)


def _own(constant: Constant) -> Tensor:
    """A tensor for a layer: the network's own, or a computed one."""
    values: Tensor = constant.value
    return values if constant.name is not None else values.detach().clone()


def _own_or_none(constant: Constant | None) -> Tensor | None:
    return None if constant is None else _own(constant)


def _has(root: nn.Module, name: str) -> bool:
    try:
        tensor_at(root, name)
    except AttributeError:
        return False
    return True


def _same(one: Any, two: Tensor) -> bool:
    alike = isinstance(one, Tensor) and (one.shape, one.dtype) == (two.shape, two.dtype)
    return alike and (one.is_meta or two.is_meta or torch.equal(one, two))


def _offset_in(full: Tensor | None, part: Tensor) -> int | None:
    """The row of a tensor at which a slice of it begins."""
    if full is None or full.ndim != 2 or part.ndim != 2 or part.shape[1] != full.shape[1]:
        return None
    if part._base is None and part.untyped_storage()._cdata != full.untyped_storage()._cdata:
        return None
    return int(part.storage_offset() - full.storage_offset()) // full.shape[1]


_NORMS = ("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default")


def _find_norm(node: Node, known: Mapping[Node, Constant]) -> _Norm | None:
    """A BatchNorm by statistics that were kept, or None."""
    if node.op != "call_function" or str(node.target) not in _NORMS:
        return None
    arguments = arguments_of(node)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = [arguments[name] for name in names]
    if arguments.get("training", False) or any(value is not None and value not in known for value in tensors):
        return None
    weight, bias, mean, variance = (None if value is None else known[value] for value in tensors)
    if mean is None or variance is None or arguments["input"] in known:
        return None
    only_first = all(user.args[1:] == (0,) for user in node.users)
    if operator_of(node) != "batch_norm" and not only_first:
        return None
    return _Norm(
        values=arguments["input"],
        weight=weight,
        bias=bias,
        mean=mean,
        variance=variance,
        eps=float(arguments["eps"]),
    )
