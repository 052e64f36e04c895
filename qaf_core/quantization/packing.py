"""Codes packed into bytes at their own bit-width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def packed_size_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits fill when packed without gaps."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack signed integer codes into bytes, least significant bit first, without gaps.

    Args:
        codes: Integers within ``-2**(bits-1) … 2**(bits-1)-1``, any shape, read in row-major order.
        bits: 2 to 8.

    Returns:
        A one-dimensional ``uint8`` tensor of ``packed_size_bytes(codes.numel(), bits)`` bytes.
    """
    unsigned = (codes.reshape(-1).to(torch.int64).cpu().numpy() & (2**bits - 1)).astype(np.uint8)
    table = np.unpackbits(unsigned[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(table.reshape(-1), bitorder="little"))


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` signed codes that :func:`pack_codes` stored, as a one-dimensional ``int8`` tensor.

    Raises:
        ValueError: If ``packed`` holds too few bytes.
    """
    if packed.numel() < packed_size_bytes(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits need {packed_size_bytes(count, bits)} bytes, got {packed.numel()}"
        )
    table = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = np.packbits(table, axis=1, bitorder="little")[:, 0].astype(np.int16)
    signed = np.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned)
    return torch.from_numpy(signed.astype(np.int8))
