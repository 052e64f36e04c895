"""The packed file of a compressed network: integer codes at their own bit-width, all else in half precision.

One safetensors file with these tensors and a JSON index in its metadata:

- ``codes`` (uint8): the codes of every link, packed without gaps, every link starting on a byte;
- ``halves`` (fp16): scales and biases of the links and all kept tensors, one segment after the other;
- ``gains`` (int8): the power of two each segment of ``halves`` is multiplied with, so that fp16's range will
  do;
- ``steps`` (fp32) and ``zeros`` (uint8): the activation quantizer of each link's input; a step of 0: none;
- ``exact.N``: tensors that half precision does not hold, integer, Boolean and complex ones, as they are.

Beside the index stands a checksum over it and all tensors, which is verified whenever a file is loaded.
BatchNorm is folded into the layer before it, or kept as one factor and one shift per channel; whole where the
network reads its numbers besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from qaf_core.deploy.packed.kept_tensors import (
    is_fixed,
    is_within,
)
from qaf_core.network.modules.quantized import BatchNorm

INDEX_KEY, CHECKSUM_KEY = "qaf", "sha256"
# 1 had no checksum, 2 no exact tensors, 3 none of floating point and every BatchNorm as factor and shift.
FORMAT_VERSION = 4
OLDEST_VERSION = 2
# Segments are scaled to just below 2**15: fp16 ends at 65504, and rounds up.
TOP_EXPONENT = 15


def checksum_of(index: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 over the index and every tensor with its name, type and length."""
    digest = hashlib.sha256(index.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def statistics_of(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and shift per channel of a BatchNorm that is kept as those; None of other modules, and where
    the network reads its numbers besides.
    """
    return norm.factor_and_shift() if isinstance(norm, BatchNorm) and _is_reduced(norm) else None


def _is_reduced(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and not module.read_elsewhere


def as_factor_and_shift(model: nn.Module, skip: Sequence[str]) -> dict[str, Tensor]:
    """Weight and bias that stand for a BatchNorm and its statistics."""
    changed = {}
    for name, module in model.named_modules():
        statistics = statistics_of(module)
        if statistics is not None and name not in skip:
            changed[f"{name}.weight"], changed[f"{name}.bias"] = statistics
    return changed


def kept_outside(model: nn.Module, skip: Sequence[str]) -> dict[str, Tensor]:
    """The parameters and floating-point buffers that a file keeps, under all their names, outside ``skip``.

    The statistics of BatchNorm are none of them where a file keeps what they amount to.
    """
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    replaced = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if _is_reduced(module)
        for part in ("running_mean", "running_var")
    }
    return {
        key: value
        for key, value in tensors.items()
        if value.is_floating_point()
        and not is_fixed(key)
        and not is_within(key, skip)
        and key not in replaced
    }
