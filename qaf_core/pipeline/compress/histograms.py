"""Histograms of weights and codes, small enough to keep with a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qaf_core.factorization.factors import Factors
from qaf_core.network.modules.quantized import Link
from qaf_core.quantization.grid import Grid

WEIGHT_BINS = 60


def value_histogram(values: Tensor, bins: int = WEIGHT_BINS) -> dict[str, Any]:
    """``edges`` (bins + 1) and ``counts`` (bins) over a symmetric range that holds every finite value."""
    finite = values.reshape(-1)[torch.isfinite(values.reshape(-1))].float().cpu()
    reach = float(finite.abs().max()) if finite.numel() else 0.0
    reach = reach if reach > 0 else 1.0
    counts = torch.histc(finite, bins=bins, min=-reach, max=reach)
    edges = torch.linspace(-reach, reach, bins + 1)
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": [int(c) for c in counts]}


def code_histogram(codes: Tensor, bits: int) -> dict[str, Any]:
    """``codes`` on the grid and how often each occurs (``counts``)."""
    grid = Grid.of(bits)
    counts = torch.bincount(codes.reshape(-1).long().cpu() - grid.low, minlength=grid.levels)
    return {"codes": list(range(grid.low, grid.high + 1)), "counts": [int(c) for c in counts], "bits": bits}


def factor_histograms(weight: Tensor, factors: Factors, last: Link | None = None) -> dict[str, Any]:
    """The weight's histogram under ``weight`` and one per factor under its letter.

    Args:
        weight: What the factors stand for.
        factors: As solved.
        last: The link that holds factor 0, as an output fit left it; None: there was none.
    """
    histograms: dict[str, Any] = {"weight": value_histogram(weight)}
    parts = [*zip(factors.codes, factors.scales, strict=True)]
    if last is not None:
        parts[0] = last.codes, last.scales
    for name, (codes, scales), bits in zip(factors.names, parts, factors.bits, strict=True):
        is_float = Grid.of(bits).is_float
        histograms[name] = value_histogram(codes * scales) if is_float else code_histogram(codes, bits)
    return histograms
