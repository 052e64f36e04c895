"""Solving under the second moment of a layer's inputs, ``‖(W - Ŵ)Σ^½‖``.

Inside the solver's loop Σ is taken as one moment over channels for all kernel positions (Σ⊗I), which keeps
every factor's problem small. The output side then sees the full Σ: with the rest of the chain as one matrix
``M (P, J·K)``, ``Ŵ = A M``, its Gram is ``M Σ Mᵀ``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qaf_core.factorization.admm import fit_factor_scales
from qaf_core.factorization.rounding import damped, descend_codes, round_with_feedback, solve_gram

UNSEEN = 1e-3  # how much directions that no input shows count, relative to the mean
DESCENT_SWEEPS = 3


def channel_moment(covariance: Tensor, channels: int) -> Tensor:
    """The second moment over input channels ``(J, J)``, averaged over kernel positions, mean diagonal one."""
    if covariance.shape[0] != channels:
        positions = covariance.shape[0] // channels
        blocks = covariance.reshape(channels, positions, channels, positions)
        covariance = blocks.diagonal(dim1=1, dim2=3).mean(dim=-1)
    # Damped: what no input shows is held loosely, and weights that meet dead channels only keep a size.
    return damped(covariance / covariance.diagonal().mean(), UNSEEN)


def refit_output_side(
    target: Tensor,
    covariance: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    bits: int,
    granularity: str,
) -> tuple[Tensor, Tensor]:
    """Round factor 0 once more, under the full second moment; kept only if the error of outputs falls.

    Args:
        target: The weight, ``(I, J·K)`` when flat.
        covariance: ``Σ (J·K, J·K)``.
        codes, scales: Of all factors, as the structure solves them: A ``(I, P)``, B ``(J, P)``, C ``(K, P)``
            for CP; U_out ``(I, P)``, core ``(P, Q, K)``, U_in ``(J, Q)`` for Tucker-2; A ``(I, P)``, B
            ``(J·K, P)`` for two factors.
        bits: Of factor 0.
        granularity: Of its scales.

    Returns:
        Codes and scales of factor 0.
    """
    values = [c * s for c, s in zip(codes, scales, strict=True)]
    rest = _rest_of_chain(values)
    moment = damped(covariance / covariance.diagonal().mean(), UNSEEN)
    rows = target.reshape(len(target), -1)
    weighted = rest @ moment
    gram, linear = weighted @ rest.mT, rows @ weighted.mT
    wanted = solve_gram(gram, linear)
    fitted = fit_factor_scales(wanted, bits, granularity, 0)
    rounded = round_with_feedback(wanted, gram, fitted, bits)
    rounded = descend_codes(rounded, wanted, gram, fitted, bits, sweeps=DESCENT_SWEEPS)

    def error(factor: Tensor) -> float:
        return float((factor * (factor @ gram - 2.0 * linear)).sum(dtype=torch.float64))

    return (rounded, fitted) if error(rounded * fitted) < error(values[0]) else (codes[0], scales[0])


def _rest_of_chain(values: Sequence[Tensor]) -> Tensor:
    """All factors but the first as one matrix ``M (P, J·K)``."""
    if len(values) == 2:
        return values[1].mT
    first, second, third = values
    if second.ndim == 3:
        return torch.einsum("pqk,jq->pjk", second, third).reshape(len(second), -1)
    return torch.einsum("jp,kp->pjk", second, third).reshape(first.shape[1], -1)
