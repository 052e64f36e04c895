"""What a setting makes of a layer's weight: solved quickly, its output side fitted as a run fits it.

A run solves a layer and then fits the last link of its chain to the layer's outputs. The same fit needs no
images here: with ``P`` the map from the layer's inputs to those of its last link and Σ the covariance of the
inputs, it rounds ``argmin_A tr((W - A P) Σ (W - A P)ᵀ)`` on its grid under the Gram ``P Σ Pᵀ``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.rounding import round_rows, solve_gram
from qaf_core.factorization.solve import solve_layer
from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.types import Bits
from qaf_core.pipeline.compress.compress import shrink
from qaf_core.pipeline.compress.input_moments import InputStatistics
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.quantization.spec import QuantSpec

FLOAT_OPTIONS = SolverOptions(starts=1, start_iterations=25, iterations=0, rounding_rounds=0)
ROUNDED_OPTIONS = SolverOptions(starts=1, start_iterations=1, iterations=2, rounding_rounds=3)
# Of the inputs' second moment in what the factors are solved for. A run's solver takes none; but without it
# the plans that were found (real ResNet-20, three budgets) diverged 4 to 14 % more.
MOMENT_WEIGHT = 0.5
RIDGE = 1e-2  # of the Gram's diagonal: what the output fit draws to the weight before it
GRANULARITY = "rank_row"
ROUNDING_NOISE = 2.5e-4  # of activations at 8 bits, relative to the power of the strongest channel


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A layer's weight and what it is multiplied with.

    Attributes:
        rows: ``(C_out, C_in / groups, k…)``.
        statistics: Of its inputs as patches; None where they are not known (several groups).
        by_channel: Second moment of its inputs over channels, for the solver, or None.
    """

    rows: Tensor
    statistics: InputStatistics | None
    by_channel: Tensor | None

    @property
    def matrix(self) -> Tensor:
        """``(C_out, C_in·k… / groups)``."""
        return self.rows.reshape(len(self.rows), -1)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a setting does to a layer.

    Attributes:
        weight: ``Ŵ - W (C_out, P)``.
        spread: ``(C_out, n)``: rounding what passes from link to link adds noise to each output, of the
            covariance ``spread spreadᵀ``. None where nothing passes or nothing is rounded.
    """

    weight: Tensor
    spread: Tensor | None = None


def dense_change(weight: Weight, bits: int) -> Change:
    """Of a layer that is rounded and not factorized."""
    gram = None if weight.statistics is None else _raised(weight.statistics.covariance)
    codes, scales = round_rows(weight.matrix, gram, bits)
    return Change(weight=codes * scales - weight.matrix)


def factorized_changes(
    weight: Weight, structure: str, rank: Rank, bits: tuple[Bits, ...], seed: int, activation_bits: int
) -> dict[Bits, Change]:
    """Of a factorized layer, by bit-width.

    Args:
        weight: The layer's.
        structure: A factorized one.
        rank: Of its kind.
        bits: Falling, one number or one a factor; each solve begins from the one before. 32 leaves the
            factors unrounded.
        seed: Of the random start.
        activation_bits: Of what passes from link to link.
    """
    covariance = None if weight.by_channel is None else shrink(weight.by_channel, MOMENT_WEIGHT)
    start: Factors | None = None
    changes: dict[Bits, Change] = {}
    for width in bits:
        result = solve_layer(
            weight.rows,
            structure=structure,
            rank=rank,
            spec=QuantSpec(
                bits=width or FLOAT.bits, granularity=GRANULARITY, activation_bits=activation_bits
            ),
            options=FLOAT_OPTIONS if start is None else ROUNDED_OPTIONS,
            seed=seed,
            input_covariance=covariance,
            start=start,
        )
        start = result.factors
        changes[width] = Change(
            weight=_fitted(weight, start) - weight.matrix,
            spread=_spread(weight, start, activation_bits),
        )
    return changes


def _fitted(weight: Weight, factors: Factors) -> Tensor:
    """The weight that factors stand for once their output side is fitted to the layer's outputs."""
    matrix = factors.reconstruct().reshape(weight.matrix.shape)
    if weight.statistics is None:
        return matrix
    values = factors.values()
    passing, outer = factors.algebra.rest_of_chain(values), values[0].reshape(len(matrix), -1)
    image = passing @ weight.statistics.covariance
    exact = image @ passing.mT
    gram = _raised(exact)
    target = solve_gram(gram, weight.matrix @ image.mT + (gram - exact).diagonal() * outer)
    if factors.bits[0] == FLOAT.bits:
        return target @ passing
    codes, scales = round_rows(target, gram, factors.bits[0])
    fitted = (codes * scales) @ passing
    return torch.where(_errors(fitted, weight) < _errors(matrix, weight), fitted, matrix)


def _spread(weight: Weight, factors: Factors, activation_bits: int) -> Tensor | None:
    """What rounding between links adds to the outputs, see ``Change``.

    The last link's inputs share one range, so the noise of all is that of the largest. What is rounded before
    them passes the links between, whatever its correlation over positions was.
    """
    if Grid.of(activation_bits).is_float or weight.statistics is None or weight.by_channel is None:
        return None
    values = factors.values()
    passing, outer = factors.algebra.rest_of_chain(values), values[0].reshape(len(weight.rows), -1)
    moment = weight.statistics.covariance + torch.outer(weight.statistics.mean, weight.statistics.mean)
    powers = ((passing @ moment) * passing).sum(dim=1).clamp_min(0.0)
    parts = [outer * powers.max().sqrt()]
    if (before := factors.algebra.noise_before_last(values, weight.by_channel)) is not None:
        parts.append(outer @ before)
    return torch.cat(parts, dim=1) * math.sqrt(ROUNDING_NOISE * 4.0 ** (8 - activation_bits))


def _errors(matrix: Tensor, weight: Weight) -> Tensor:
    """Squared errors of outputs, by output channel ``(C_out, 1)``."""
    assert weight.statistics is not None
    change = matrix - weight.matrix
    return ((change @ weight.statistics.covariance) * change).sum(dim=1, keepdim=True)


def _raised(gram: Tensor) -> Tensor:
    diagonal = gram.diagonal()
    return gram + torch.diag(RIDGE * diagonal.clamp_min(float(diagonal.mean()) * 1e-2))
