"""Options say what they do not take; every status explains itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qaf_core.errors import SolverError
from qaf_core.factorization.options import SolverOptions, Status

WHOLE_NUMBERS = {
    "start_iterations": 1,
    "iterations": 0,
    "inner_iterations": 1,
    "rounding_rounds": 0,
    "descent_sweeps": 0,
    "patience": 1,
}


@pytest.mark.parametrize(("field", "least"), WHOLE_NUMBERS.items())
def test_counts_start_at_their_least(field: str, least: int) -> None:
    assert getattr(SolverOptions(**{field: least}), field) == least
    with pytest.raises(SolverError, match=f"{field}.*got {least - 1}.*at least {least}"):
        SolverOptions(**{field: least - 1})


@pytest.mark.parametrize("field", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [True, 2.5, "3", float("nan"), [1]])
def test_counts_are_whole_numbers(field: str, value: Any) -> None:
    with pytest.raises(SolverError, match=f"{field} out of range.*whole number"):
        SolverOptions(**{field: value})


def test_the_start_may_choose_its_own_length() -> None:
    assert SolverOptions(start_iterations=None).start_iterations is None
    with pytest.raises(SolverError, match="iterations out of range"):
        SolverOptions(iterations=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1e-9, 1.0, float("nan"), float("inf"), "0.1", True, None])
def test_tolerances_are_fractions(value: Any) -> None:
    with pytest.raises(SolverError, match="tolerance out of range"):
        SolverOptions(tolerance=value)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "5", True])
def test_time_limits_are_positive_seconds(value: Any) -> None:
    with pytest.raises(SolverError, match="time_limit_seconds out of range"):
        SolverOptions(time_limit_seconds=value)


def test_extremes_that_are_taken() -> None:
    assert SolverOptions(tolerance=0, time_limit_seconds=None).time_limit_seconds is None
    assert SolverOptions(time_limit_seconds=1).time_limit_seconds == 1


def test_unknown_penalty_policies_are_refused() -> None:
    assert SolverOptions(rho_policy="trace") == SolverOptions()
    with pytest.raises(SolverError, match="rho_policy.*got balanced.*trace"):
        SolverOptions(rho_policy="balanced")


@pytest.mark.parametrize("status", list(Status))
def test_every_status_explains_itself_in_one_sentence(status: Status) -> None:
    assert status.explanation.endswith(".")
    assert status.explanation.count(".") == 1
    assert status.explanation[0].isupper()


def test_a_status_is_plain_text_for_json() -> None:
    assert json.dumps({"status": Status.TIME_LIMIT}) == '{"status": "time_limit"}'
    assert f"{Status.CONVERGED}" == "converged"
