"""Tucker-2: 1×1 to R_in channels, the kernel to R_out, 1×1 to the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from qaf_core.errors import PlanError
from qaf_core.factorization.structures.base import Kernel, LinkForm, Rank, Shape, Structure


class Tucker2(Structure):
    """U_out ``(C_out, R_out)``, core ``(R_out, R_in, k·k)``, U_in ``(C_in, R_in)``."""

    name, label, factors = "tucker2", "Tucker-2", ("U_out", "core", "U_in")
    dims = range(3, 6)
    links = (LinkForm(2), LinkForm(1, Kernel.WHOLE), LinkForm(0))

    def takes(self, weight_shape: Sequence[int]) -> bool:
        """Weights with a kernel."""
        return math.prod(weight_shape[2:]) > 1

    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """(C_out, C_in)."""
        return weight_shape[0], weight_shape[1]

    def rank_in(self, factor_shapes: Sequence[Sequence[int]]) -> Rank:
        """(R_out, R_in), of the core."""
        return factor_shapes[1][0], factor_shapes[1][1]

    def has_kind(self, rank: Rank) -> bool:
        """A pair of whole numbers (R_out, R_in)."""
        return isinstance(rank, tuple) and len(rank) == 2

    def widths(self, rank: Rank) -> Shape:
        """R_in, R_out."""
        outer, inner = pair_of(rank)
        return (inner, outer)

    def rank_of(self, widths: Sequence[int]) -> Rank:
        """(R_out, R_in)."""
        return widths[1], widths[0]

    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """U_out, core, U_in."""
        outputs, inputs, *kernel = weight_shape
        outer, inner = pair_of(rank)
        return (outputs, outer), (outer, inner, math.prod(kernel)), (inputs, inner)

    def rank_for_ratio(self, weight_shape: Sequence[int], ratio: float) -> Rank:
        """The largest pair proportional to (C_out, C_in) within the weight's numbers over ``ratio``."""
        outputs, inputs, *kernel = weight_shape
        return _largest_pair(outputs, inputs, math.prod(kernel), math.prod(weight_shape) / ratio)


def pair_of(rank: Rank) -> tuple[int, int]:
    """The two ranks (R_out, R_in).

    Raises:
        PlanError: If it is one number, or none.
    """
    if not isinstance(rank, tuple):
        raise PlanError("tucker2 has two ranks", got=rank, expected="(R_out, R_in)")
    return rank


@lru_cache(maxsize=4096)
def _largest_pair(outputs: int, inputs: int, kernel: int, budget: float) -> tuple[int, int]:
    """Largest pair in the channels' proportion with R_out·C_out + R_in·C_in + R_out·R_in·k² ≤ budget."""
    larger = max(outputs, inputs)

    def pair(step: int) -> tuple[int, int]:
        return max(1, outputs * step // larger), max(1, inputs * step // larger)

    low, high = 1, larger
    while low < high:
        middle = (low + high + 1) // 2
        rank_out, rank_in = pair(middle)
        if rank_out * outputs + rank_in * inputs + rank_out * rank_in * kernel <= budget:
            low = middle
        else:
            high = middle - 1
    return pair(low)
