"""What of a graph follows from parameters alone, and the name of the weight it stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from qaf_core.network.graph.nodes import arguments_of, made_by, operator_of

LEAST_EPSILON = 1e-12  # of a BatchNorm that was made with none: PyTorch trains it only with more than zero

# Where a weight is computed, its parts carry names of their own: all stand for "weight".
_COMPUTED_ENDINGS = ("weight_orig", "weight_g", "weight_v", "weight_u")
_PARAMETRIZED = ".parametrizations."
_PACKED, _PARTS = "in_proj_weight", ("q_proj", "k_proj", "v_proj")


@dataclass(eq=False)
class Constant:
    """A tensor that does not depend on the network's input.

    Attributes:
        value: Its value (of no content on the meta device).
        sources: Names of the parameters and buffers it follows from, in the order met.
        key: The same for the same computation on the same tensors.
        name: Of a tensor of the state dict; None where it is computed.
        turned: The matrix it is the transpose of, if it is made as one.
    """

    value: Any
    sources: tuple[str, ...]
    key: Hashable
    name: str | None = None
    turned: Constant | None = field(default=None, repr=False)


def compute(node: Node, known: dict[Node, Constant]) -> Constant | None:
    """The value of an operation whose tensors are all known; None where it is not one of these."""
    if is_filled(node):
        return Constant(value=_filled(node), sources=(), key=("filled", node.name))
    if node.op != "call_function" or not all(operand in known for operand in node.all_input_nodes):
        return None
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and "attention" not in str(node.target):
        return None
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda operand: known[operand].value)
    with torch.no_grad():
        value = node.target(*args, **kwargs)  # type: ignore[operator]
    keys = tree_map(
        lambda leaf: _Key(known[leaf].key) if isinstance(leaf, Node) else leaf, (node.args, dict(node.kwargs))
    )
    sources: dict[str, None] = {}
    for operand in node.all_input_nodes:
        sources.update(dict.fromkeys(known[operand].sources))
    turned = known[node.all_input_nodes[0]] if _turns_a_matrix(node, value) else None
    # A digest: written out, expressions of expressions would grow without end.
    digest = hashlib.sha256(repr(keys).encode()).hexdigest()
    return Constant(value=value, sources=tuple(sources), key=(str(node.target), digest), turned=turned)


# Operators that take of a tensor its type only, by the number they fill a new one with.
_FILLERS = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1}


def is_filled(node: Node) -> bool:
    """Whether an operation makes a tensor of one number and of a fixed shape."""
    tensor = made_by(node)
    fixed = tensor is not None and all(isinstance(size, int) for size in tensor.shape)
    return fixed and node.op == "call_function" and operator_of(node) in _FILLERS


def _filled(node: Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return torch.full(tuple(value.shape), _FILLERS[operator_of(node)], dtype=value.dtype, device=value.device)


def _turns_a_matrix(node: Node, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.ndim != 2:
        return False
    name, arguments = operator_of(node), arguments_of(node)
    if name == "permute":
        return [axis % 2 for axis in arguments["dims"]] == [1, 0]
    if name == "transpose":
        return bool(arguments["dim0"] % 2 != arguments["dim1"] % 2)
    return name in ("t", "numpy_T", "mT", "matrix_H", "adjoint")


@dataclass(frozen=True)
class _Key:
    """Stands in an expression for the key of an operand."""

    key: Hashable

    def __repr__(self) -> str:
        return f"<{self.key!r}>"


def weight_name(weight: Constant) -> str:
    """The state-dict name a weight is known by: its own, or that of what it is computed from."""
    if weight.sources == (weight.name,):
        return weight.sources[0]
    names = [_plain(name) for name in weight.sources]
    named = [name for name in names if name.endswith("weight")] or names or ["constant"]
    return named[0]


def _plain(name: str) -> str:
    """The name a parameter would have, were it not computed from others."""
    if _PARAMETRIZED in f".{name}":
        owner, _, rest = name.partition("parametrizations.")
        return owner + rest.split(".")[0]
    owner, dot, last = name.rpartition(".")
    return owner + dot + "weight" if last in _COMPUTED_ENDINGS else name


def packed_parts(name: str, rows: int, columns: int) -> tuple[str, ...]:
    """Names of the projections that PyTorch's attention packs into one weight, in order; none of others."""
    owner, dot, last = name.rpartition(".")
    if last != _PACKED or rows % columns or rows // columns not in (2, 3):
        return ()
    return tuple(f"{owner}{dot}{part}" for part in _PARTS[-(rows // columns) :])


def part_name(name: str, offset: int, columns: int) -> str | None:
    """The name of one packed projection by where it begins; None of other weights."""
    owner, dot, last = name.rpartition(".")
    if last != _PACKED or offset % columns or offset // columns > 2:
        return None
    return f"{owner}{dot}{_PARTS[offset // columns]}.weight"


def unique(base: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it where it is taken already."""
    names = set(taken)
    count, name = 1, base
    while name in names:
        count += 1
        name = f"{base}_{count}"
    return name
