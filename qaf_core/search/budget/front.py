"""The front that is expected: plans of least harm for their size, all at once by a Lagrangian.

For a price of a byte every layer takes the setting of least harm plus price, on its own; a sweep of prices
gives the plans on the convex hull of all that can be chosen, in milliseconds and without a solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qaf_core.network.plan.types import LayerPlan
from qaf_core.search.sensitivity.settings import TOGETHER, Setting, harm_together

PRICES = np.geomspace(1e-12, 1e2, 281)  # of a byte, in powers of harm


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A plan on the front.

    Attributes:
        rows: Of all layers.
        size_bytes: Of these layers in the packed file.
        harm: What their harms come to.
    """

    rows: tuple[LayerPlan, ...]
    size_bytes: int
    harm: float


def expected_front(settings: Mapping[str, Sequence[Setting]]) -> list[FrontPoint]:
    """Plans of least expected harm for their size, the smallest first.

    Args:
        settings: What each layer may become, at least one.
    """
    harms = [np.array([row.harm for row in rows]) ** TOGETHER for rows in settings.values()]
    sizes = [np.array([row.size_bytes for row in rows], float) for rows in settings.values()]
    points: dict[int, FrontPoint] = {}
    for price in PRICES:
        chosen = [
            rows[int((harm + price * size).argmin())]
            for rows, harm, size in zip(settings.values(), harms, sizes, strict=True)
        ]
        total = sum(row.size_bytes for row in chosen)
        if total not in points:
            harm_of_all = harm_together(row.harm for row in chosen)
            points[total] = FrontPoint(
                rows=tuple(row.row for row in chosen), size_bytes=total, harm=harm_of_all
            )
    return [points[size] for size in sorted(points)]


def harm_at_size(front: Sequence[FrontPoint], size_bytes: float) -> float | None:
    """The least harm expected at a size, between the points of a front; None where it does not reach down."""
    if not front or size_bytes < front[0].size_bytes:
        return None
    sizes, harms = [point.size_bytes for point in front], [max(point.harm, 1e-12) for point in front]
    return float(np.exp(np.interp(size_bytes, sizes, np.log(harms))))
