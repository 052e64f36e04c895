"""Accuracy and its intervals, against SciPy, by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qaf_core.pipeline.intervals import bootstrap_interval, paired_drop, wilson_interval
from qaf_core.pipeline.results import Evaluation


@given(st.integers(1, 3000), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson_interval(successes, n)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found[0] <= successes / n <= found[1] <= 1


def test_no_image_tells_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def rights(lost: int, gained: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    original = np.array([True] * lost + [False] * gained + [True] * both + [False] * neither)
    compressed = np.array([False] * lost + [True] * gained + [True] * both + [False] * neither)
    return original, compressed


def test_paired_drop_by_hand() -> None:
    drop, (low, high) = paired_drop(*rights(lost=30, gained=10, both=950, neither=10))
    assert drop == pytest.approx(0.02)
    # Agresti & Min: 30.5 and 10.5 of 1,002; variance (41 - 20² / 1002) / 1002².
    centre, half = 20 / 1002, 1.959963984540054 * math.sqrt(41 - 400 / 1002) / 1002
    assert (low, high) == pytest.approx((centre - half, centre + half))


def test_paired_drop_of_equal_networks_is_zero_with_a_narrow_interval() -> None:
    drop, (low, high) = paired_drop(*rights(lost=0, gained=0, both=1900, neither=100))
    assert drop == 0
    assert low == pytest.approx(-high)
    assert 0 < high < 0.001


@given(*(st.integers(0, 60) for _ in range(4)))
def test_paired_drop_turns_round_with_its_arguments(lost: int, gained: int, both: int, neither: int) -> None:
    if lost + gained + both + neither == 0:
        return
    original, compressed = rights(lost, gained, both, neither)
    drop, (low, high) = paired_drop(original, compressed)
    back, (back_low, back_high) = paired_drop(compressed, original)
    assert (back, back_low, back_high) == pytest.approx((-drop, -high, -low))
    assert drop == pytest.approx(original.mean() - compressed.mean())
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.04, 0.02, 300), (0.01, 0.01, 500), (0.1, 0.0, 200)])
def test_the_paired_interval_holds_the_truth_about_95_times_in_100(
    lost: float, gained: float, n: int
) -> None:
    generator = np.random.default_rng(0)
    rounds, held = 2000, 0
    for draw in generator.multinomial(n, [lost, gained, 0.8, 0.2 - lost - gained], size=rounds):
        _, (low, high) = paired_drop(*rights(*draw))
        held += low <= lost - gained <= high
    assert 0.93 <= held / rounds <= 0.995


def test_the_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    scores = np.random.default_rng(0).normal(0.7, 0.2, 800)
    low, high = bootstrap_interval(lambda drawn: drawn @ scores / len(scores), len(scores))
    half = 1.96 * scores.std() / math.sqrt(len(scores))
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)
    assert (low, high) == bootstrap_interval(lambda drawn: drawn @ scores / len(scores), len(scores))


def test_draws_without_a_value_are_left_out() -> None:
    def first_image(drawn: np.ndarray) -> np.ndarray:
        return np.where(drawn[:, 0] > 0, drawn[:, 0], np.nan)

    low, high = bootstrap_interval(first_image, 10)
    assert 1 <= low <= high <= 10


def test_an_evaluation_is_ready_for_json() -> None:
    found = Evaluation(metric="miou", value=0.5, n=2, ci95=(0.25, 0.75), per_class={"a": 0.5}).to_dict()
    assert found == {
        "metric": "miou", "value": 0.5, "n": 2, "ci95": [0.25, 0.75], "per_class": {"a": 0.5},
        "agreement": None, "extra": {},
    }  # fmt: skip
