"""Solving under the second moment of a layer's inputs, ``‖(W - Ŵ)Σ^½‖``.

Inside the solver's loop Σ is taken as one moment over channels for all kernel positions (Σ⊗I), which keeps
every factor's problem small. The output side then sees the full Σ: with the rest of the chain as one matrix
``M (P, J·K)``, ``Ŵ = A M``, its Gram is ``M Σ Mᵀ``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qaf_core.factorization.factors import Factors, as_stored_codes
from qaf_core.factorization.rounding import coordinate_descent, damped, gptq_round, solve_gram
from qaf_core.factorization.sweeps import fit_factor_scales

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
    target: Tensor, covariance: Tensor, factors: Factors, granularity: str, shared_rows: int = 1
) -> Factors:
    """Round factor 0 once more, under the full second moment; kept only if the error of outputs falls.

    Args:
        target: The weight.
        covariance: ``Σ (J·K, J·K)``.
        factors: Of the weight.
        granularity: Of the scales of factor 0.
        shared_rows: Consecutive rows of factor 0 that share a scale.
    """
    values = factors.values()
    outer, bits = values[0], factors.bits[0]
    rest = factors.algebra.rest_of_chain(values)
    moment = damped(covariance / covariance.diagonal().mean(), UNSEEN)
    rows = target.reshape(len(target), -1)
    weighted = rest @ moment
    gram, linear = weighted @ rest.mT, rows @ weighted.mT
    solution = solve_gram(gram, linear)
    fitted = fit_factor_scales(solution.reshape_as(outer), bits, granularity, 0, shared_rows)
    by_row = fitted.expand_as(outer).reshape_as(solution)
    rounded = gptq_round(solution, gram, by_row, bits)
    rounded = coordinate_descent(rounded, solution, gram, by_row, bits, sweeps=DESCENT_SWEEPS)

    def error(factor: Tensor) -> float:
        return float((factor * (factor @ gram - 2.0 * linear)).sum(dtype=torch.float64))

    if not error(rounded * by_row) < error(outer.reshape_as(solution)):
        return factors
    codes = as_stored_codes(rounded.reshape_as(outer), bits)
    return replace(factors, codes=(codes, *factors.codes[1:]), scales=(fitted, *factors.scales[1:]))
