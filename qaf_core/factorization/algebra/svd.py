"""The two-factor form of a weight seen as a matrix: ``X (I, K·J) ≈ A Bᵀ``.

The solver has the channels of one kernel position beside each other, so that a moment over channels applies
to each position alike; ``Factors`` keep B in the order of a flat weight, ``(J·K, R)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from qaf_core.factorization.algebra.base import Algebra, LinkWeight, identity, row_and_column
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.structures import Rank, Structure
from qaf_core.factorization.structures.base import one_number
from qaf_core.factorization.structures.svd import TwoFactors


def by_position(rows: Tensor, channels: int) -> Tensor:
    """Rows ``(J·K, P)``, in the order of a flat weight, as ``(K·J, P)``: kernel positions outermost."""
    return rows.reshape(channels, -1, rows.shape[1]).movedim(0, 1).reshape_as(rows)


def by_channel(rows: Tensor, channels: int) -> Tensor:
    """What undoes :func:`by_position`."""
    return rows.reshape(-1, channels, rows.shape[1]).movedim(0, 1).reshape_as(rows)


class TwoFactorAlgebra(Algebra):
    """A ``(I, R)``, B ``(J·K, R)``."""

    structure: ClassVar[Structure] = TwoFactors()

    def target(self, weight: Tensor) -> Tensor:
        """``(I, K·J)``."""
        return by_position(weight.flatten(1).mT, weight.shape[1]).mT.contiguous()

    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Canonical:
        """CP of a matrix."""
        return Canonical(target, one_number(rank), moment)

    def stored(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """B by channels."""
        outer, inner = matrices
        return [outer, by_channel(inner, self.weight_shape[1])]

    def matrices(self, values: Sequence[Tensor]) -> list[Tensor]:
        """B by positions."""
        outer, inner = values
        return [outer, by_position(inner, self.weight_shape[1])]

    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """``A Bᵀ``."""
        return (values[0] @ values[1].mT).reshape(-1, *self.weight_shape[1:])

    def exact(self, weight: Tensor) -> list[Tensor]:
        """The rank of the smaller side."""
        matrix = weight.reshape(weight.shape[0], -1)
        if matrix.shape[0] < matrix.shape[1]:
            return [identity(matrix, 0), matrix.mT]
        return [matrix, identity(matrix, 1)]

    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """The kernel to R channels with all column scales, then 1×1."""
        row, column = row_and_column(scales[0], codes[0])
        return [(codes[1].mT.contiguous(), column * scales[1].expand_as(column)), (codes[0], row)]

    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Outer, inner."""
        inner, outer = (weight.flatten(1) for weight in weights)
        return [outer, inner.mT.contiguous()]
