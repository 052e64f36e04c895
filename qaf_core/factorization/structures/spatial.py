"""Spatial SVD: a k×k kernel as k×1 to R channels, then 1×k to the outputs.

The truncated SVD of the kernel as a matrix of rows (C_out, k_x) and columns (C_in, k_y), y being dimension 0
(Jaderberg et al. 2014, arXiv 1405.3866).
"""

from __future__ import annotations

from collections.abc import Sequence

from qaf_core.factorization.structures.base import Kernel, LinkForm, Rank, Shape, Structure, one_number


class Spatial(Structure):
    """A ``(C_out·k_x, R)``, B ``(C_in·k_y, R)``; each link takes stride and padding of its own dimension."""

    name, label, factors = "spatial", "Spatial SVD", ("A", "B")
    dims = range(4, 5)
    links = (LinkForm(1, Kernel.FIRST), LinkForm(0, Kernel.LAST))

    def takes(self, weight_shape: Sequence[int]) -> bool:
        """Kernels of two dimensions, both above 1: others have nothing to split."""
        return len(weight_shape) == 4 and min(weight_shape[2:]) > 1

    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """The smaller side of the matrix."""
        outputs, inputs, height, width = weight_shape
        return min(outputs * width, inputs * height)

    def widths(self, rank: Rank) -> Shape:
        """R."""
        return (one_number(rank),)

    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """A, B."""
        outputs, inputs, height, width = weight_shape
        return (outputs * width, one_number(rank)), (inputs * height, one_number(rank))
