"""Building networks without their weights, where only shapes are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Weightless(TorchFunctionMode):
    """A context in which modules are made with weights that have shapes and no values: no memory, no time.

    PyTorch's layers begin as empty tensors, and only those go to the ``meta`` device: what a constructor
    computes, as a list of drop rates or RegNet its widths, has values that it can read.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty and named.get("device") is None:
            named["device"] = "meta"
        return func(*args, **named)
