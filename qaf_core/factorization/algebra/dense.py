"""The weight itself, rounded row by row: nothing is solved for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra.base import Algebra, LinkWeight
from qaf_core.factorization.structures import Rank
from qaf_core.factorization.structures.dense import Dense
from qaf_core.factorization.subproblem import Subproblem


class DenseAlgebra(Algebra):
    """W ``(I, J·K)``."""

    structure = Dense()

    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Subproblem:
        """There is none."""
        raise SolverError("a weight that stays whole is rounded, not solved", got=self.structure.name)

    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """W."""
        return values[0].reshape(-1, *self.weight_shape[1:])

    def exact(self, weight: Tensor) -> list[Tensor]:
        """W."""
        return [weight.reshape(weight.shape[0], -1)]

    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """One link with the scales of rows."""
        return [(codes[0], scales[0])]

    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weight as a matrix."""
        (weight,) = weights
        return [weight.flatten(1)]
