"""The weight itself, rounded row by row: nothing is solved for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra.base import Algebra, Shape
from qaf_core.factorization.structures import Rank
from qaf_core.factorization.structures.dense import Dense
from qaf_core.factorization.subproblem import Subproblem


class DenseAlgebra(Algebra):
    """W ``(I, J·K)``."""

    structure = Dense()

    def subproblem(
        self, target: Tensor, rank: Rank, moment: Tensor | None, weight_shape: Shape
    ) -> Subproblem:
        """There is none."""
        raise SolverError("a weight that stays whole is rounded, not solved", got=self.structure.name)

    def reconstruct(self, values: Sequence[Tensor], weight_shape: Shape) -> Tensor:
        """W."""
        return values[0].reshape(weight_shape)

    def exact(self, weight: Tensor) -> list[Tensor]:
        """W."""
        return [weight.reshape(weight.shape[0], -1)]

    def rest_of_chain(self, values: Sequence[Tensor], weight_shape: Shape) -> Tensor:
        """The identity."""
        return torch.eye(values[0].shape[1], dtype=values[0].dtype, device=values[0].device)

    def link_weights(
        self, codes: Sequence[Tensor], scales: Sequence[Tensor], weight_shape: Shape
    ) -> list[tuple[Tensor, Tensor]]:
        """One link with the scales of rows."""
        return [(codes[0], scales[0])]
