"""Spatial SVD: ``W[o, i, y, x] ≈ Σ_r A[(o, x), r]·B[(i, y), r]``, the two-factor form of another matrix.

The rows ``x`` of A that belong to an output channel share its scale, as the weight of the 1×k link has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qaf_core.factorization.algebra.base import LinkWeight, row_and_column
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.algebra.svd import TwoFactorAlgebra
from qaf_core.factorization.structures import Rank
from qaf_core.factorization.structures.base import one_number
from qaf_core.factorization.structures.spatial import Spatial


class SpatialAlgebra(TwoFactorAlgebra):
    """A ``(I·X, R)``, B ``(J·Y, R)``; ``Y``, ``X`` the kernel's sizes."""

    structure = Spatial()

    def target(self, weight: Tensor) -> Tensor:
        """``(I·X, Y·J)``."""
        rows, _, _, width = weight.shape
        return weight.permute(0, 3, 2, 1).reshape(rows * width, -1)

    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Canonical:
        """CP of a matrix, scales shared by the rows of an output channel."""
        return Canonical(target, one_number(rank), moment, shared_rows=self.weight_shape[-1])

    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """``A Bᵀ``, its four indices in the weight's order."""
        _, columns, height, width = self.weight_shape
        matrix = values[0] @ values[1].mT
        return matrix.reshape(-1, width, columns, height).permute(0, 2, 3, 1).contiguous()

    def exact(self, weight: Tensor) -> list[Tensor]:
        """The rank of the smaller side."""
        rows, _, _, width = weight.shape
        return super().exact(weight.permute(0, 3, 1, 2).reshape(rows * width, -1))

    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """k×1 to R channels with all column scales, then 1×k."""
        outer, inner = codes
        row, column = row_and_column(scales[0], outer)
        by_channel = outer.reshape(self.weight_shape[0], self.weight_shape[-1], -1)
        return [
            (inner.mT.contiguous(), column * scales[1].expand_as(column)),
            (by_channel.mT.contiguous(), row[:: self.weight_shape[-1]]),
        ]

    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """A, B."""
        inner, outer = (weight.flatten(1) for weight in weights)
        ranked = outer.reshape(len(outer), -1, self.weight_shape[-1])
        return [ranked.mT.reshape(-1, ranked.shape[1]), inner.mT.contiguous()]
