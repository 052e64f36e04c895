"""Canonical polyadic form: 1×1 to R channels, a depthwise kernel, 1×1 to the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qaf_core.factorization.structures.base import Kernel, LinkForm, Rank, Shape, Structure, one_number


class Canonical(Structure):
    """A ``(C_out, R)``, B ``(C_in, R)``, C ``(k·k, R)``; the first 1×1 runs at the input's resolution."""

    name, label, factors = "cp", "CP", ("A", "B", "C")
    dims = range(3, 6)
    links = (LinkForm(1), LinkForm(2, Kernel.WHOLE, depthwise=True), LinkForm(0))

    def takes(self, weight_shape: Sequence[int]) -> bool:
        """Weights with a kernel."""
        return math.prod(weight_shape[2:]) > 1

    def published(self, weight_shape: Sequence[int]) -> bool:
        """What the paper is about."""
        del weight_shape
        return True

    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """All pairs of indices of the two smaller dimensions."""
        outputs, inputs, *kernel = weight_shape
        return math.prod(weight_shape) // max(outputs, inputs, math.prod(kernel))

    def widths(self, rank: Rank) -> Shape:
        """R, R."""
        return (one_number(rank), one_number(rank))

    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """A, B, C."""
        outputs, inputs, *kernel = weight_shape
        return tuple((rows, one_number(rank)) for rows in (outputs, inputs, math.prod(kernel)))
