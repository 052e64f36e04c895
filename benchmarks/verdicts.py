"""Whether verdicts keep their word: 1,000 simulated pairs of networks whose true drop is known.

    python -m benchmarks.verdicts

Each pair answers the same images; the drop allowed is one point. Of the pairs that lose more, how many are
passed; of those that lose less, how many are failed; and of those left open, how many does the number of
images that was foretold settle? Told apart also by how near the true drop lies to the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qaf_core.review.decision.measured import PairedDifference, more_needed
from qaf_core.review.decision.verdict import RISK

PAIRS = 1000
LIMIT = 0.01
IMAGES = (500, 2000)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One pair: its true drop, the verdict, and what came of the images foretold (None if none were)."""

    true: float
    status: str
    settled: bool | None = None
    more: int | None = None


def simulate_pair(generator: np.random.Generator, n: int, limit: float, true: float | None = None) -> Outcome:
    """Judge one pair on ``n`` images; where that stays open, on as many more as are foretold.

    Args:
        generator: Draws everything.
        n: Images.
        limit: Largest drop allowed.
        true: The true drop; None draws it from two points below the limit to two above.
    """
    true = float(generator.uniform(limit - 0.02, limit + 0.02)) if true is None else true
    discordant = float(generator.uniform(abs(true) + 0.01, abs(true) + 0.06))
    shares = ((discordant + true) / 2, (discordant - true) / 2, 1 - discordant)
    counts = generator.multinomial(n, shares)
    status, measured = judge_counts(counts, limit)
    if status != "open":
        return Outcome(true=true, status=status)
    more = more_needed(measured, limit, RISK)
    if more is None:
        return Outcome(true=true, status=status)
    later, _ = judge_counts(counts + generator.multinomial(more, shares), limit)
    return Outcome(true=true, status=status, settled=later != "open", more=more)


def judge_counts(counts: np.ndarray, limit: float) -> tuple[str, PairedDifference]:
    """The verdict of counts of images lost, gained, and alike."""
    measured = PairedDifference(lost=int(counts[0]), gained=int(counts[1]), n=int(counts.sum()))
    low, high = measured.interval(RISK)
    return "pass" if high <= limit else "fail" if low > limit else "open", measured


def summarise(outcomes: list[Outcome], limit: float) -> dict[str, float]:
    """Shares of false passes and fails among the pairs where they can happen, and of settled ones."""
    worse = [row for row in outcomes if row.true > limit]
    better = [row for row in outcomes if row.true <= limit]
    settled = [row for row in outcomes if row.settled is not None]
    return {
        "false_passes": sum(row.status == "pass" for row in worse) / max(1, len(worse)),
        "false_fails": sum(row.status == "fail" for row in better) / max(1, len(better)),
        "open": sum(row.status == "open" for row in outcomes) / len(outcomes),
        "settled": sum(bool(row.settled) for row in settled) / max(1, len(settled)),
        "median_more": float(np.median([row.more or 0 for row in settled])) if settled else 0.0,
    }


def main() -> None:
    """Print the table."""
    print(f"{PAIRS:,} pairs a line, limit {LIMIT:.1%}, intervals of {1 - RISK:.0%}")
    print(f"{'images':>7} {'true drop':>14} {'false passes':>13} {'false fails':>12} {'open':>7} "
          f"{'settled':>8} {'more (median)':>14}")  # fmt: skip
    for n in IMAGES:
        for true in (None, LIMIT + 1e-9, LIMIT - 1e-9, 0.0, 0.02):
            generator = np.random.default_rng((n, 3))
            outcomes = [simulate_pair(generator, n, LIMIT, true) for _ in range(PAIRS)]
            row = summarise(outcomes, LIMIT)
            name = "−1 to 3 points" if true is None else f"{true:.2%}"
            print(f"{n:>7,} {name:>14} {row['false_passes']:>13.1%} {row['false_fails']:>12.1%} "
                  f"{row['open']:>7.1%} {row['settled']:>8.1%} {row['median_more']:>14,.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
