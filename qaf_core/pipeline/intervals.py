"""Intervals of shares, of differences on the same images, and of other metrics. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
RESAMPLES = 1000

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, Z95 * Z95 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def paired_drop(original_right: BoolArray, compressed_right: BoolArray) -> tuple[float, tuple[float, float]]:
    """Accuracy lost, and its 95 % interval from the same images.

    Args:
        original_right: ``(N,)`` whether the original was right.
        compressed_right: ``(N,)`` whether the compressed network was right.

    Returns:
        ``original - compressed`` accuracy and (low, high), as fractions.
    """
    n = len(original_right)
    lost = int((original_right & ~compressed_right).sum())
    gained = int((~original_right & compressed_right).sum())
    low, high = paired_interval(lost, gained, n)
    return (lost - gained) / n, (float(low), float(high))


def paired_interval(lost: Any, gained: Any, n: Any, z: float = Z95) -> tuple[FloatArray, FloatArray]:
    """The interval of a difference of two shares of the same images.

    Half an image is added to each cell of the table (Agresti & Min 2005).

    Args:
        lost, gained: Images that count for the first share only, and for the second only; numbers or arrays.
        n: Images in all.
        z: Quantile of the normal distribution.

    Returns:
        (low, high), of the shape of the counts.
    """
    total, b, c = n + 2.0, np.asarray(lost) + 0.5, np.asarray(gained) + 0.5
    centre = (b - c) / total
    half = z * np.sqrt(np.maximum(b + c - (b - c) ** 2 / total, 0.0)) / total
    return np.maximum(-1.0, centre - half), np.minimum(1.0, centre + half)


def bootstrap_interval(
    statistic: Callable[[FloatArray], FloatArray], n: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of a metric over images drawn again with replacement (Efron 1979).

    Two networks are compared on the same draws when ``statistic`` returns the difference of their metrics.

    Args:
        statistic: Maps how often each image is drawn, ``(R, N)``, to the metric of each draw, ``(R,)``; NaN
            where a draw has none.
        n: Number of images.
        resamples: Number of draws; the same ones on every call.

    Returns:
        (low, high).
    """
    generator = np.random.default_rng((n, 29))
    counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    drawn = statistic(counts)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return 0.0, 1.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
