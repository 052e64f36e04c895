"""Tensors of a packed file outside its layers: exact ones, and names of older files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qaf_core.network.graph.canonical import FIXED
from qaf_core.network.graph.constants import packed_parts
from qaf_core.network.modules.quantized import FactorizedLayer

EXACT_KEY = "exact."  # tensors that half precision does not hold follow under names of their own
LARGEST_HALF_WHOLE = 2048
HALF_RANGE = 2.0**24  # of the largest number of a tensor over its median, in half precision


def split_packed(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Older files may hold the projections of an attention in one tensor."""
    tensors: dict[str, Tensor] = {}
    for key, values in kept.items():
        weight = f"{key.removesuffix('bias')}weight" if key.endswith("in_proj_bias") else key
        rows, last = (values.shape[0], values.shape[-1]) if values.ndim else (0, 0)
        columns = rows // 3 if values.ndim == 1 else last
        parts = packed_parts(weight, rows, columns) if columns else ()
        kind = "bias" if key.endswith("bias") else "weight"
        if parts:
            pieces = torch.split(values, columns)
            tensors.update({f"{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)})
        else:
            tensors[key] = values
    return tensors


def read_exact(
    rows: Sequence[Sequence[str]], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, Tensor]:
    """The exact tensors of a file by name, from the rows of its index."""
    exact = {}
    for number, (key, dtype) in enumerate(rows):
        values, target = torch.from_numpy(tensors[f"{EXACT_KEY}{number}"]), getattr(torch, dtype)
        exact[key] = torch.view_as_complex(values) if target.is_complex else values.to(target)
    return exact


def put_back(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Copy tensors of a file into the network's of these names, of the same number of elements.

    Raises:
        KeyError: If the network has no such tensor.
    """
    present = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for key, tensor in kept.items():
        present[key].data.copy_(tensor.reshape(present[key].shape))


def exact_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Integer, Boolean and complex tensors outside the chains."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    chains = [name for name, part in model.named_modules() if isinstance(part, FactorizedLayer)]
    return {
        key: value.detach()
        for key, value in tensors.items()
        if not value.is_floating_point() and not is_fixed(key) and not is_within(key, chains)
    }


def made_otherwise(model: nn.Module, anew: nn.Module) -> dict[str, Tensor]:
    """Tensors that follow from the network's code and are others in the same network built anew.

    Those that only inputs of another size need are made when such come.
    """
    built = dict(anew.named_buffers()) | dict(anew.named_parameters())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        key: value.detach()
        for key, value in tensors.items()
        if is_fixed(key) and key in built and not torch.equal(value, built[key])
    }


def fits_half(values: Tensor) -> bool:
    """Whether half precision, over a common power of two, holds a tensor's numbers: all of them near enough,
    whole numbers, which may count something, exactly.
    """
    numbers = values.detach().abs().double()
    if not bool(numbers.isfinite().all()):
        return False
    if (
        numbers.numel()
        and float(numbers.max()) > LARGEST_HALF_WHOLE
        and torch.equal(numbers, numbers.round())
    ):
        return False
    numbers = numbers[numbers > 0]
    return not numbers.numel() or float(numbers.max()) <= HALF_RANGE * float(numbers.median())


def smallest_type(values: Tensor) -> np.ndarray[Any, Any]:
    """The values in the smallest type that holds them exactly; complex ones as pairs."""
    if values.is_complex():
        pairs: np.ndarray[Any, Any] = torch.view_as_real(values).contiguous().numpy()
        return pairs
    if values.is_floating_point():
        numbers: np.ndarray[Any, Any] = values.float().contiguous().numpy()
        return numbers
    integers = values.to(torch.int64) if values.dtype != torch.bool else values.to(torch.uint8)
    low, high = (int(integers.min()), int(integers.max())) if integers.numel() else (0, 0)
    fits = (t for t in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
    chosen = next(t for t in fits if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    array: np.ndarray[Any, Any] = integers.to(chosen).contiguous().numpy()
    return array


def is_fixed(key: str) -> bool:
    """Whether a tensor follows from the network's code alone."""
    return FIXED in key.split(".")[:-1]


def is_within(key: str, names: Sequence[str]) -> bool:
    """Whether a tensor belongs to one of these modules."""
    return any(key.startswith(f"{name}.") for name in names)
