"""The weight as it is, on an integer grid: one factor, one link."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qaf_core.factorization.structures.base import Kernel, LinkForm, Rank, Shape, Structure


class Dense(Structure):
    """W ``(C_out, C_in·k·k)``; it has no rank."""

    name, label, factors = "dense", "Dense", ("W",)
    links = (LinkForm(0, Kernel.WHOLE),)

    def published(self, weight_shape: Sequence[int]) -> bool:
        """Rounded alike under every method."""
        del weight_shape
        return True

    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """None."""
        del weight_shape
        return None

    def rank_in(self, factor_shapes: Sequence[Sequence[int]]) -> Rank:
        """None."""
        del factor_shapes
        return None

    def widths(self, rank: Rank) -> Shape:
        """None between."""
        del rank
        return ()

    def rank_of(self, widths: Sequence[int]) -> Rank:
        """None."""
        del widths
        return None

    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """W."""
        del rank
        return ((weight_shape[0], math.prod(weight_shape[1:])),)

    def has_kind(self, rank: Rank) -> bool:
        """None."""
        return rank is None

    def rank_for_ratio(self, weight_shape: Sequence[int], ratio: float) -> Rank:
        """None."""
        del weight_shape, ratio
        return None
