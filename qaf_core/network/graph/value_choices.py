"""Operations that choose by value: the best scores, the boxes that remain, the positions that are not zero.

Two things follow from a choice. How much it keeps is not known before it runs: on the meta device, which has
no values, everything is taken to be kept, so that counts are those of the busiest image; a single value that
Python asks for is zero. And what a layer behind it takes in need not agree, row by row, between two networks
that choose differently.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST_VALUES = 10_000  # asked for by Python in one pass; more would be a loop until a value is reached

_CHOOSING = {
    "aten::topk",
    "aten::sort",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "torchvision::nms",
}


def is_choice(operation: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether an operation (as a dispatch mode sees it) selects or orders elements by their values."""
    name = _name(operation)
    return name in _CHOOSING or (name == "aten::index" and any(map(_is_mask, arguments[1])))


class KeepEverything(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """On the meta device, choices by value keep all there is to choose from.

    Attributes:
        values: How many single values Python has asked for; they were all zero.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _name(func) == "aten::_local_scalar_dense" and args[0].device.type == "meta":
            self.values += 1
            if self.values > MOST_VALUES:
                raise RuntimeError("the network loops until a value is reached")
            return torch.zeros((), dtype=args[0].dtype).item()
        return keep_everything(func, args, kwargs or {})


def keep_everything(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The result of an operation on the meta device, choices keeping all there is."""
    name, first = _name(operation), arguments[0] if arguments else None
    if not isinstance(first, Tensor) or first.device.type != "meta":
        return operation(*arguments, **named)
    if name == "aten::nonzero":
        return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
    if name == "torchvision::nms":
        return first.new_empty(len(first), dtype=torch.long)
    if name == "aten::masked_select":
        return first.new_empty((first == arguments[1]).numel())
    if name in ("aten::_unique", "aten::_unique2"):  # one value, else loops over them would take their time
        counts = first.new_empty(1, dtype=torch.long)
        inverse = first.new_empty(first.shape, dtype=torch.long)
        return (first.new_empty(1), inverse, counts)[: 2 if name == "aten::_unique" else 3]
    if name == "aten::index":
        return operation(first, _all_positions(arguments[1]))
    return operation(*arguments, **named)


def _all_positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with every mask replaced by positions of all its elements."""
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and _is_mask(index):
            positions += [index.new_empty(index.numel(), dtype=torch.long)] * index.dim()
        else:
            positions.append(index)
    return positions


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@cache
def _name(operation: Any) -> str:
    return str(operation.name()).split(".")[0]
