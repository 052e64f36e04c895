"""What a node of a graph says: its operator, its arguments by name, its number among a layer's operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node


def operator_of(node: Node) -> str:
    """The name of an ATen operator without its overload; of anything else its whole name."""
    name = str(node.target)
    return name.removeprefix("aten.").split(".")[0] if name.startswith("aten.") else name


def schema_of(node: Node) -> Any:
    """The schema of the operator a node calls; None of a Python function."""
    return getattr(node.target, "_schema", None)


def arguments_of(node: Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults filled in; none of a Python function."""
    schema = schema_of(node)
    if schema is None:
        return {}
    arguments: dict[str, Any] = {
        row.name: row.default_value for row in schema.arguments if row.has_default_value()
    }
    arguments.update({row.name: value for row, value in zip(schema.arguments, node.args, strict=False)})
    arguments.update(node.kwargs)
    return arguments


def site_of(node: Node) -> int:
    """Which of its layer's operations a layer's node is."""
    number = node.kwargs.get("site", 0)
    return number if isinstance(number, int) else 0


def made_by(node: Node) -> Tensor | None:
    """What an exported node puts out, of no content; None where that is no tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def module_of(node: Node) -> str:
    """Path of the module in whose forward pass an operation was written, inside its captured part."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def joined_path(path: str, name: str) -> str:
    """The name of something inside a module that stands at a path; either may be empty."""
    return ".".join(filter(None, (path, name)))
