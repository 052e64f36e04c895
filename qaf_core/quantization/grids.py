"""Integer grids: the scales of a factor, and the way between values and codes."""

from __future__ import annotations

import torch
from torch import Tensor

from qaf_core.quantization.spec import BITS_FLOAT

# Relative mean squared error of the best uniform quantizer of a unit Gaussian, by bits (J. Max, "Quantizing
# for minimum distortion", IRE Trans. Inf. Theory 6, 1960, table II).
RELATIVE_NOISE = {
    2: 0.1188,
    3: 0.03744,
    4: 0.01154,
    5: 0.003495,
    6: 0.001041,
    7: 0.0003035,
    8: 0.0000869,
    32: 0.0,
}

_SEARCH_FRACTIONS = torch.linspace(0.30, 1.15, 35).tolist()
_SEARCH_NUMBERS = 500_000  # values that may stand in memory at once during a search


def code_range(bits: int) -> tuple[int, int]:
    """The lowest and highest code of a ``bits``-wide grid: ``-2**(bits-1)`` and ``2**(bits-1)-1``."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def to_codes(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Nearest codes of ``values``, as whole numbers in the dtype of ``values``.

    Args:
        values: Any shape.
        scales: Positive, broadcastable to ``values``.
        bits: 2 to 8; 32 returns ``values / scales`` unrounded.
    """
    if bits == BITS_FLOAT:
        return values / scales
    low, high = code_range(bits)
    return torch.div(values, scales).round_().clamp_(low, high)


def fit_scales(
    values: Tensor, bits: int, *, dims: tuple[int, ...], importance: Tensor | None = None
) -> Tensor:
    """Scales that minimise the squared rounding error of ``values``, found by a search over clipping ranges.

    Args:
        values: The tensor to be rounded.
        bits: 2 to 8; 32 gives scales of one.
        dims: The dimensions that share a scale; they are kept with size one.
        importance: Non-negative weights of the squared errors, broadcastable to ``values``.

    Returns:
        Positive scales; one for a group of zeros.
    """
    peak = values.abs().amax(dim=dims, keepdim=True)
    if bits == BITS_FLOAT:
        return torch.ones_like(peak)
    usable = peak > torch.finfo(values.dtype).tiny * 2**bits
    largest = torch.where(usable, peak / (2 ** (bits - 1) - 0.5), torch.ones_like(peak))
    # Besides: the scales that put the peak on the highest or the lowest code, where a grid stays as it is.
    ends = [(2 ** (bits - 1) - 0.5) / abs(code) for code in reversed(code_range(bits))]
    fractions = torch.tensor([*ends, *_SEARCH_FRACTIONS], device=values.device, dtype=values.dtype)
    shared = tuple(dim % values.ndim + 1 for dim in dims)
    best_error, best_scales = torch.full_like(peak, torch.inf), largest
    for part in torch.split(fractions, max(1, _SEARCH_NUMBERS // max(values.numel(), 1))):
        scales = largest * part.reshape(-1, *[1] * values.ndim)
        error = (to_codes(values, scales, bits) * scales).sub_(values).square_()
        if importance is not None:
            error.mul_(importance)
        least, where = error.sum(dim=shared, keepdim=True).min(dim=0)
        better = least < best_error
        best_error = torch.where(better, least, best_error)
        best_scales = torch.where(better, largest * part[where], best_scales)
    return torch.where(usable, best_scales, torch.ones_like(peak))
