"""Which runs are worth choosing: those no other run beats on both accounts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> tuple[int, ...]:
    """Positions of the points that are not beaten, cheapest first.

    A point is beaten when another costs no more and is worth at least as much, and is better in one of the
    two. Of points that are alike in both, the first stands for all. Points that are not finite never count.

    Args:
        costs: Lower is better (bytes, bit-operations).
        values: Higher is better (accuracy); as many as ``costs``.

    Returns:
        Indices into the arguments; along them both cost and value rise strictly.
    """
    finite = [
        index
        for index, (cost, value) in enumerate(zip(costs, values, strict=True))
        if math.isfinite(cost) and math.isfinite(value)
    ]
    front: list[int] = []
    best = -math.inf
    for index in sorted(finite, key=lambda i: (costs[i], -values[i], i)):
        if values[index] > best:
            front.append(index)
            best = values[index]
    return tuple(front)
