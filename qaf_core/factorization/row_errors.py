"""How well factors meet a weight, as a whole and by output channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.factorization.factors import Factors

# ‖w - ŵ‖² = ‖w‖² - ‖ŵ‖² where ŵ is fitted to w: at this error half of the size is left.
LOST = math.sqrt(0.75)


@dataclass(frozen=True, kw_only=True)
class RowErrors:
    """Relative errors of one weight.

    Attributes:
        total: ‖W - Ŵ‖_F / ‖W‖_F; of a zero weight ‖Ŵ‖_F.
        worst: The largest ‖w - ŵ‖ / ‖w‖ of a row that is not zero; 0 where there is none.
        lost: Rows whose error is above ``LOST``.
    """

    total: float
    worst: float
    lost: int


def row_errors(weight: Tensor, factors: Factors) -> RowErrors:
    """The errors of factors, summed in float64; sizes near the ends of float64 are no matter.

    Args:
        weight: What the factors stand for; its first dimension are the output channels.
        factors: Of any structure.
    """
    exact = weight.detach().to(torch.float64).reshape(len(weight), -1)
    difference = exact - factors.reconstruct().to(exact).reshape_as(exact)
    sizes, errors = _norms(exact), _norms(difference)
    size, error = (float(_norms(norms[None, :])[0]) for norms in (sizes, errors))
    shares = (errors / sizes)[sizes > 0]
    return RowErrors(
        total=error / size if size > 0 else error,
        worst=float(shares.max()) if len(shares) else 0.0,
        lost=int((shares > LOST).sum()),
    )


def _norms(rows: Tensor) -> Tensor:
    """The norm of each row ``(N,)``; no square over- or underflows."""
    peaks = rows.abs().amax(dim=1, keepdim=True)
    usable = torch.where((peaks > 0) & peaks.isfinite(), peaks, torch.ones_like(peaks))
    norms: Tensor = (rows / usable).norm(dim=1) * usable[:, 0]
    return norms
