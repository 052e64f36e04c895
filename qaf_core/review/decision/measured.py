"""Numbers that criteria limit, with their intervals, and how many more images would settle a verdict.

Each kind of number draws what more images would add from its own predictive distribution: first the unknown
share from what it may be after the images seen so far (Jeffreys' prior), then the outcomes of the new
images. So the uncertainty of the number itself is counted in, which planning with the number as if it were
the truth would leave out: close to a limit that asks for far too few images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from qaf_core.pipeline.intervals import paired_interval

POWER = 0.85  # a little above what is promised: the prior is not the world
DRAWS = 1000
MOST_IMAGES = 10_000_000

FloatArray = NDArray[np.float64]


class Measured(Protocol):
    """A measured number.

    Attributes:
        value: The number.
        n: How many images (or rounds of a timing) it rests on; 0 where it is exact.
    """

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int: ...

    def interval(self, risk: float) -> tuple[float, float]:
        """What it may be, with a risk of ``risk / 2`` on either side."""
        ...

    def drawn(self, more: int, risk: float, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Intervals ``(DRAWS,)`` as they may come out with so many images more."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A number that is known, such as the size of a file."""

    value: float
    n: int = 0

    def interval(self, risk: float) -> tuple[float, float]:
        """The number itself."""
        return self.value, self.value

    def drawn(self, more: int, risk: float, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """The number itself."""
        values = np.full(DRAWS, self.value)
        return values, values


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of images, with the exact interval of Clopper and Pearson (1934)."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share."""
        return self.count / self.n

    def interval(self, risk: float) -> tuple[float, float]:
        """It keeps its risk for every share and number of images."""
        low, high = _clopper_pearson(np.array([self.count]), self.n, risk)
        return float(low[0]), float(high[0])

    def drawn(self, more: int, risk: float, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """The share drawn from its beta distribution, the new images from the binomial one."""
        share = generator.beta(self.count + 0.5, self.n - self.count + 0.5, DRAWS)
        return _clopper_pearson(self.count + generator.binomial(more, share), self.n + more, risk)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A difference of two shares of the same images.

    Attributes:
        lost: Images that count for the first network only.
        gained: Images that count for the second only.
    """

    lost: int
    gained: int
    n: int

    @property
    def value(self) -> float:
        """First share minus second."""
        return (self.lost - self.gained) / self.n

    def interval(self, risk: float) -> tuple[float, float]:
        """By Agresti and Min, as everywhere in the product."""
        low, high = paired_interval(self.lost, self.gained, self.n, _quantile(risk))
        return float(low), float(high)

    def drawn(self, more: int, risk: float, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """The shares of discordant images drawn from their Dirichlet distribution, then the new images."""
        rest = self.n - self.lost - self.gained
        shares = generator.dirichlet((self.lost + 0.5, self.gained + 0.5, rest + 0.5), DRAWS)
        added = generator.multinomial(more, shares)
        return paired_interval(
            self.lost + added[:, 0], self.gained + added[:, 1], self.n + more, _quantile(risk)
        )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with a standard error that falls with the root of ``n``: a mean IoU, a median time."""

    value: float
    error: float
    n: int

    def interval(self, risk: float) -> tuple[float, float]:
        """Of a normal distribution."""
        half = _quantile(risk) * self.error
        return self.value - half, self.value + half

    def drawn(self, more: int, risk: float, generator: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """The true number drawn around this one, the mean of the new images around that."""
        spread, total = self.error * math.sqrt(self.n), self.n + more
        future = self.value + self.error * generator.normal(size=DRAWS)
        if more:
            future = future + spread / math.sqrt(more) * generator.normal(size=DRAWS)
        pooled = (self.n * self.value + more * future) / total
        half = _quantile(risk) * spread / math.sqrt(total)
        return pooled - half, pooled + half


def more_needed(measured: Measured, limit: float, risk: float, power: float = POWER) -> int | None:
    """How many images more would settle on which side of a limit a number lies.

    Args:
        measured: What is known so far.
        limit: In the unit of the number.
        risk: Of the intervals, both sides together.
        power: How likely the new images shall settle it, either way.

    Returns:
        The number to two digits, rounded up; None where ten million would not do.
    """

    def settles(more: int) -> bool:
        low, high = measured.drawn(more, risk, np.random.default_rng((more, 7)))
        return float(((high < limit) | (low > limit)).mean()) >= power

    most = max(16, measured.n // 16)
    while not settles(most):
        most *= 2
        if most > MOST_IMAGES:
            return None
    least = 0
    while most - least > max(1, most // 50):
        middle = (least + most) // 2
        least, most = (least, middle) if settles(middle) else (middle, most)
    unit = 10 ** max(0, len(str(most)) - 2)
    rounded: int = -(-most // unit) * unit
    return rounded


def _clopper_pearson(count: NDArray[np.int64], n: int, risk: float) -> tuple[FloatArray, FloatArray]:
    low = special.betaincinv(np.maximum(count, 1), n - count + 1, risk / 2)
    high = special.betaincinv(count + 1, np.maximum(n - count, 1), 1 - risk / 2)
    return np.where(count == 0, 0.0, low), np.where(count == n, 1.0, high)


def _quantile(risk: float) -> float:
    return float(special.ndtri(1 - risk / 2))
