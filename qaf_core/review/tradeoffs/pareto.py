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


def knee(costs: Sequence[float], values: Sequence[float]) -> int | None:
    """The position after which more cost buys least: farthest above the line between a front's ends, costs by
    their logarithms.

    Args:
        costs: Of a front, rising, above 0.
        values: As many.

    Returns:
        None of fewer than three points, or where none lies above the line.
    """
    if len(costs) < 3 or costs[0] <= 0:
        return None
    along = [math.log(cost / costs[0]) / math.log(costs[-1] / costs[0]) for cost in costs]
    rise = values[-1] - values[0]
    heights = [value - values[0] - share * rise for value, share in zip(values, along, strict=True)]
    best = max(range(len(heights)), key=heights.__getitem__)
    return best if heights[best] > 0 else None
