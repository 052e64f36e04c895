"""The Pareto front against its definition."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.review.tradeoffs.pareto import knee, pareto_front

NUMBERS = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False, allow_infinity=False))
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front([p[0] for p in points], [p[1] for p in points])
    unbeaten = {p for p in points if not any(beats(other, p) for other in points)}
    assert {points[i] for i in front} == unbeaten
    assert len(front) == len(unbeaten)


@given(POINTS)
def test_cost_and_value_rise_along_the_front(points: list[tuple[float, float]]) -> None:
    front = [points[i] for i in pareto_front([p[0] for p in points], [p[1] for p in points])]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(front))


def test_the_first_of_equal_points_stands_for_all() -> None:
    assert pareto_front([1.0, 1.0, 2.0], [0.5, 0.5, 0.4]) == (0,)


def test_points_that_are_not_finite_never_count() -> None:
    assert pareto_front([math.nan, 1.0, -math.inf], [0.9, 0.5, 0.9]) == (1,)


def test_as_many_values_as_costs_are_needed() -> None:
    with pytest.raises(ValueError, match="argument"):
        pareto_front([1.0], [])


def test_the_knee_is_where_more_cost_begins_to_buy_little() -> None:
    assert knee([10.0, 20.0, 40.0, 80.0], [0.1, 0.8, 0.85, 0.9]) == 1
    assert knee([10.0, 100.0, 1000.0], [0.1, 0.2, 0.9]) is None
    assert knee([10.0, 20.0], [0.1, 0.8]) is None
