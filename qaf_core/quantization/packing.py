"""Codes packed into bytes at their own bit-width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qaf_core.quantization.grid import Grid


def pack_codes(codes: Tensor, grid: Grid) -> Tensor:
    """Pack signed integer codes into bytes, least significant bit first, without gaps.

    Args:
        codes: Codes of the grid, any shape, read in row-major order.
        grid: Of integers.

    Returns:
        A one-dimensional ``uint8`` tensor of ``grid.packed_bytes(codes.numel())`` bytes.
    """
    unsigned = (codes.reshape(-1).to(torch.int64).cpu().numpy() & (grid.levels - 1)).astype(np.uint8)
    table = np.unpackbits(unsigned[:, None], axis=1, count=grid.bits, bitorder="little")
    return torch.from_numpy(np.packbits(table.reshape(-1), bitorder="little"))


def unpack_codes(packed: Tensor, grid: Grid, count: int) -> Tensor:
    """The ``count`` signed codes that :func:`pack_codes` stored, as a one-dimensional ``int8`` tensor.

    Raises:
        ValueError: If ``packed`` holds too few bytes.
    """
    bits, needed = grid.bits, grid.packed_bytes(count)
    if packed.numel() < needed:
        raise ValueError(f"{count} codes of {bits} bits need {needed} bytes, got {packed.numel()}")
    table = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = np.packbits(table, axis=1, bitorder="little")[:, 0].astype(np.int16)
    return torch.from_numpy(np.where(unsigned > grid.high, unsigned - grid.levels, unsigned).astype(np.int8))
