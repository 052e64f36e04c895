"""Operations that multiply by a constant weight, however they are written.

Each is brought to one of two forms, a convolution or a linear map over the last axis, with what has to be
done to its input and output around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from qaf_core.network.graph.constants import Constant
from qaf_core.network.graph.nodes import arguments_of, made_by, operator_of
from qaf_core.network.modules.operation import LINEAR, Operation, convolution, is_plain, same_padding

_ATEN = torch.ops.aten
Around = Callable[[Graph, Node], Node]


def _as_it_is(_graph: Graph, values: Node) -> Node:
    return values


@dataclass(kw_only=True)
class Multiplication:
    """One multiplication by a constant weight.

    Attributes:
        values: The other operand.
        weight: As stored (see ``Operation``).
        bias: ``(C_out,)``, or None.
        operation: What is done.
        before, after: Bring the operand to the operation's form, and its result to what the network goes on
            with.
    """

    values: Node
    weight: Constant
    bias: Constant | None
    operation: Operation
    before: Around = field(default=_as_it_is)
    after: Around = field(default=_as_it_is)


Known = dict[Node, Constant]
_CONVOLUTIONS = {
    "conv1d": (1, False), "conv2d": (2, False), "conv3d": (3, False),
    "conv_transpose1d": (1, True), "conv_transpose2d": (2, True), "conv_transpose3d": (3, True),
}  # fmt: skip


def find_multiplication(node: Node, known: Known) -> Multiplication | None:
    """The multiplication a node is, or None."""
    if node.op != "call_function" or node in known:
        return None
    name, arguments = operator_of(node), arguments_of(node)
    if name in _CONVOLUTIONS:
        multiplication = _convolution(node, name, arguments, known)
    elif name == "convolution":
        multiplication = _plain_convolution(arguments, known)
    elif name == "linear":
        multiplication = _linear(arguments, known)
    elif name in ("matmul", "mm", "addmm"):
        multiplication = _product(name, arguments, known)
    elif name == "einsum":
        multiplication = _einsum(arguments, known)
    elif name == "tensordot":
        multiplication = _tensordot(arguments, known)
    else:
        return None
    return multiplication


def _weight(value: Any, known: Known) -> Constant | None:
    constant = known.get(value) if isinstance(value, Node) else None
    return (
        constant
        if constant is not None and isinstance(constant.value, Tensor) and is_plain(constant.value)
        else None
    )


def _bias(value: Any, known: Known) -> tuple[Constant | None, bool]:
    """A constant bias, and whether it is one or absent."""
    if value is None:
        return None, True
    constant = _weight(value, known)
    return constant, constant is not None


def _convolution(node: Node, name: str, args: dict[str, Any], known: Known) -> Multiplication | None:
    dims, transposed = _CONVOLUTIONS[name]
    weight, (bias, usual) = _weight(args["weight"], known), _bias(args["bias"], known)
    if weight is None or not usual or args["input"] in known or not isinstance(args["input"], Node):
        return None
    geometry = {"stride": args["stride"], "dilation": args["dilation"], "groups": args["groups"]}
    before: Around = _as_it_is
    padding = args["padding"]
    if isinstance(padding, str):
        padding, before = _named_padding(padding, weight.value.shape[2:], args["dilation"], dims)
    if transposed:
        geometry["output_padding"] = args["output_padding"]
    operation = convolution(dims, padding=padding, transposed=transposed, **geometry)
    return Multiplication(values=args["input"], weight=weight, bias=bias, operation=operation, before=before)


def _named_padding(
    name: str, kernel: Sequence[int], dilation: Sequence[int], dims: int
) -> tuple[tuple[int, ...], Around]:
    """``same`` and ``valid`` in pixels; where the two sides differ, the rest is padded beforehand."""
    if name == "valid":
        return (0,) * dims, _as_it_is
    apart = tuple(dilation) * (dims if len(dilation) == 1 else 1)
    left, right = same_padding(tuple(kernel), apart)
    if left == right:
        return left, _as_it_is
    rest = [amount for pair in zip(left[::-1], right[::-1], strict=True) for amount in (0, pair[1] - pair[0])]

    def pad(graph: Graph, values: Node) -> Node:
        return graph.call_function(_ATEN.constant_pad_nd.default, (values, rest, 0.0))

    return left, pad


def _plain_convolution(args: dict[str, Any], known: Known) -> Multiplication | None:
    weight, (bias, usual) = _weight(args["weight"], known), _bias(args["bias"], known)
    if weight is None or not usual or args["input"] in known:
        return None
    dims = weight.value.ndim - 2
    if not 1 <= dims <= 3:
        return None
    operation = convolution(
        dims, stride=args["stride"], padding=args["padding"], dilation=args["dilation"],
        output_padding=args["output_padding"], groups=args["groups"], transposed=bool(args["transposed"]),
    )  # fmt: skip
    return Multiplication(values=args["input"], weight=weight, bias=bias, operation=operation)


def _linear(args: dict[str, Any], known: Known) -> Multiplication | None:
    weight, (bias, usual) = _weight(args["weight"], known), _bias(args["bias"], known)
    if weight is None or not usual or args["input"] in known or weight.value.ndim != 2:
        return None
    return Multiplication(values=args["input"], weight=weight, bias=bias, operation=LINEAR)


def _product(name: str, args: dict[str, Any], known: Known) -> Multiplication | None:
    """``x @ W`` and ``W @ x`` with a matrix W; with a bias in ``addmm``."""
    left: Node = args["mat1" if name == "addmm" else "self"]
    right: Node = args["other" if name == "matmul" else "mat2"]
    bias: Constant | None = None
    if name == "addmm":
        bias, usual = _bias(args["self"], known)
        if not usual or args["beta"] != 1 or args["alpha"] != 1 or (bias is None or bias.value.ndim != 1):
            return None
    weight = _weight(right, known)
    if weight is not None and left not in known and weight.value.ndim == 2:
        return Multiplication(values=left, weight=transposed(weight), bias=bias, operation=LINEAR)
    weight = _weight(left, known)
    if weight is None or right in known or weight.value.ndim != 2 or bias is not None or _dims(right) < 2:
        return None
    return Multiplication(
        values=right, weight=weight, bias=None, operation=LINEAR, before=_turned, after=_turned
    )


def _dims(node: Node) -> int:
    value = made_by(node)
    return 0 if value is None else value.ndim


def _turned(graph: Graph, values: Node) -> Node:
    return graph.call_function(_ATEN.transpose.int, (values, -2, -1))


def transposed(weight: Constant) -> Constant:
    """The transpose of a constant matrix."""
    if weight.turned is not None:  # ``x @ W.T`` is a linear map by W itself
        return weight.turned
    return Constant(
        value=weight.value.mT.contiguous(), sources=weight.sources, key=("turned", weight.key), turned=weight
    )


def _einsum(args: dict[str, Any], known: Known) -> Multiplication | None:
    """Two operands, one of them constant, every index once in each, the contracted ones only in both."""
    equation, operands = str(args["equation"]).replace(" ", ""), args["tensors"]
    if len(operands) != 2 or "..." in equation or "->" not in equation:
        return None
    inputs, result = equation.split("->")
    left, right = inputs.split(",")
    weight, values, of_weight, of_values = _weight(operands[1], known), operands[0], right, left
    if weight is None:
        weight, values, of_weight, of_values = _weight(operands[0], known), operands[1], left, right
    if weight is None or values in known or not isinstance(values, Node):
        return None
    return _contraction(values, weight, of_values, of_weight, result)


def _tensordot(args: dict[str, Any], known: Known) -> Multiplication | None:
    left, right = args["self"], args["other"]
    weight, other = _weight(right, known), _weight(left, known)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    if weight is not None and left not in known:
        of_values = [next(letters) for _ in range(_dims(left))]
        of_weight = [next(letters) for _ in range(weight.value.ndim)]
    elif other is not None and right not in known:
        weight, of_weight = other, [next(letters) for _ in range(other.value.ndim)]
        of_values = [next(letters) for _ in range(_dims(right))]
    else:
        return None
    first, second = (of_values, of_weight) if weight is not other else (of_weight, of_values)
    for one, two in zip(args["dims_self"], args["dims_other"], strict=True):
        second[two] = first[one]
    shared = set(first) & set(second)
    result = "".join(letter for letter in (*first, *second) if letter not in shared)
    values = left if weight is not other else right
    return _contraction(values, weight, "".join(of_values), "".join(of_weight), result)


def _contraction(
    values: Node, weight: Constant, of_values: str, of_weight: str, result: str
) -> Multiplication | None:
    """A linear map over some axes of the values, written with letters for axes."""
    inner = [letter for letter in of_weight if letter in of_values]
    outer = [letter for letter in of_weight if letter not in of_values]
    stay = [letter for letter in of_values if letter not in inner]
    once = all(len(set(letters)) == len(letters) for letters in (of_values, of_weight, result))
    if not once or not inner or not outer or any(letter in result for letter in inner):
        return None
    if sorted(result) != sorted([*stay, *outer]):
        return None
    sizes = dict(zip(of_weight, weight.value.shape, strict=True))
    order = [of_weight.index(letter) for letter in (*outer, *inner)]
    rows, columns = prod(sizes[letter] for letter in outer), prod(sizes[letter] for letter in inner)
    matrix = weight.value.permute(order).reshape(rows, columns).contiguous()
    if order == [0, 1] and weight.value.ndim == 2:
        flat = weight
    else:
        key = ("contraction", repr(weight.key), of_weight, tuple(outer), tuple(inner))
        flat = Constant(value=matrix, sources=weight.sources, key=key)

    def before(graph: Graph, node: Node) -> Node:
        axes = [of_values.index(letter) for letter in (*stay, *inner)]
        node = graph.call_function(_ATEN.permute.default, (node, axes))
        if len(inner) > 1:
            node = graph.call_function(_ATEN.flatten.using_ints, (node, len(stay), -1))
        return node

    def after(graph: Graph, node: Node) -> Node:
        if len(outer) > 1:
            shape = [sizes[letter] for letter in outer]
            node = graph.call_function(_ATEN.unflatten.int, (node, -1, shape))
        axes = [(*stay, *outer).index(letter) for letter in result]
        return graph.call_function(_ATEN.permute.default, (node, axes))

    return Multiplication(values=values, weight=flat, bias=None, operation=LINEAR, before=before, after=after)
