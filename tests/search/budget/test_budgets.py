"""Budgets and locks as users write them."""

import pytest

from qaf_core.errors import PlanError
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan
from qaf_core.search.budget.budgets import read_budget, read_budgets, read_locks

CONV = LayerInfo(
    name="conv=1",
    kind="conv2d",
    weight_shape=(16, 16, 3, 3),
    kernel=(3, 3),
    structures=("cp", "dense", "keep"),
)


@pytest.mark.parametrize(
    ("text", "original", "limit"),
    [
        ("size=0.2x", 1000.0, 200.0),
        ("size=60kB", 1.0, 60e3),
        ("bops=0.02x", 1e9, 2e7),
        ("drop=1pp", 9.0, 0.01),
        ("size=1e+3B", 1.0, 1000.0),  # as Explore writes large numbers
        ("bops=2e-2x", 100.0, 2.0),
        ("latency=0.5x", 3.0, 1.5),
        ("latency=2.5ms", 3.0, 2.5),
    ],
)
def test_a_budget_is_read(text: str, original: float, limit: float) -> None:
    assert read_budget(text).limit(original) == pytest.approx(limit)


@pytest.mark.parametrize(
    "text", ["size", "size=0x", "size=3", "drop=0.1x", "speed=2x", "size=-1kB", "bops=1kB"]
)
def test_what_is_no_budget_is_refused_with_examples(text: str) -> None:
    with pytest.raises(PlanError, match="size=60kB"):
        read_budget(text)


def test_a_kind_comes_once_and_there_is_one() -> None:
    with pytest.raises(PlanError, match="twice"):
        read_budgets(["size=1kB", "size=0.5x"])
    with pytest.raises(PlanError, match="no budget"):
        read_budgets([])


def test_locks_are_rows_of_a_plan() -> None:
    assert read_locks(["conv=1=cp:8:4"], [CONV]) == {
        "conv=1": LayerPlan(name="conv=1", structure="cp", rank=8, bits=4)
    }
    assert read_locks(["conv=1=keep"], [CONV])["conv=1"].structure == "keep"


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["nowhere=keep"], "no such layer"),
        (["conv=1=cp:8"], "not a setting"),
        (["conv=1=dense:9"], "lock on conv=1, bits"),
        (["conv=1=dense:4", "conv=1=keep"], "contradict"),
    ],
)
def test_locks_that_make_no_sense_are_refused(texts: list[str], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        read_locks(texts, [CONV])
