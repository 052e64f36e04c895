"""Two factors: the kernel to R channels, then 1×1 to the outputs; of a linear layer two linear layers.

The truncated SVD of the weight seen as a matrix of C_out rows (Zhang et al. 2015, arXiv 1505.06798).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qaf_core.factorization.structures.base import Kernel, LinkForm, Rank, Shape, Structure, one_number


class TwoFactors(Structure):
    """A ``(C_out, R)``, B ``(C_in·k·k, R)``; a stride goes into the first link."""

    name, label, factors = "svd", "SVD", ("A", "B")
    links = (LinkForm(1, Kernel.WHOLE), LinkForm(0))

    def published(self, weight_shape: Sequence[int]) -> bool:
        """CP of a matrix, where there is no kernel."""
        return math.prod(weight_shape[2:]) == 1

    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """The smaller side of the matrix."""
        return min(weight_shape[0], math.prod(weight_shape[1:]))

    def widths(self, rank: Rank) -> Shape:
        """R."""
        return (one_number(rank),)

    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """A, B."""
        return (weight_shape[0], one_number(rank)), (math.prod(weight_shape[1:]), one_number(rank))
