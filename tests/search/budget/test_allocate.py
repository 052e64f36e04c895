"""The exact choice among settings: against every combination, and what is told where none will do."""

import ctypes
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qaf_core.errors import PlanError
from qaf_core.network.plan.types import LayerPlan
from qaf_core.search.budget.allocate import Choice, Limit, _nothing_on_stdout, allocate, undominated
from qaf_core.search.sensitivity.settings import TOGETHER, Setting, harm_together


def choice(layer: str, harm: float, size: int, bops: int) -> Choice:
    row = LayerPlan(name=layer, structure="dense", bits=4)
    setting = Setting(row=row, harm=harm, size_bytes=size, bops=bops)
    return Choice(setting=setting, costs={"size": float(size), "bops": float(bops)})


def limit(name: str, most: float, fixed: float = 0.0) -> Limit:
    return Limit(name=name, limit=most, fixed=fixed, text=f"{name}={most:g}")


number = st.integers(1, 60)
layers = st.lists(st.lists(st.tuples(number, number, number), min_size=1, max_size=5), min_size=1, max_size=4)


def test_a_limit_on_harm_is_one_on_what_layers_harm_together() -> None:
    rows = {name: [choice(name, 1.0, 2, 1), choice(name, 0.5, 4, 1)] for name in "abc"}
    most = harm_together((1.0, 1.0, 0.5))
    found = allocate(rows, [limit("harm", most + 0.1 + 1e-9, fixed=0.1)], minimise="size")
    assert found.harm == pytest.approx(most)
    assert found.totals["harm"] == pytest.approx(most + 0.1)
    with pytest.raises(PlanError, match="at least harm=1.3"):
        allocate(rows, [limit("harm", 0.7, fixed=0.1)], minimise="size")


def test_what_the_solver_prints_does_not_reach_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with _nothing_on_stdout():
        ctypes.CDLL(None).puts(b"from the solver")
    os.write(1, b"{}")
    assert capfd.readouterr() == ("{}", "from the solver\n")


def test_threads_that_solve_at_once_leave_stdout_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    def solve(_: int) -> None:
        with _nothing_on_stdout():
            time.sleep(0.002)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(solve, range(40)))
    os.write(1, b"{}")
    assert capfd.readouterr().out == "{}"


@settings(max_examples=60, deadline=None)
@given(layers, number, number, st.sampled_from(["harm", "size"]))
def test_no_combination_is_better(
    rows: list[list[tuple[int, int, int]]], size: int, bops: int, minimise: str
) -> None:
    choices = {
        f"layer{index}": [choice(f"layer{index}", *row) for row in own] for index, own in enumerate(rows)
    }
    limits = [limit("size", 2.0 * size, fixed=1.0), limit("bops", 2.0 * bops)]
    position = 0 if minimise == "harm" else 1
    totals = [
        (harm_together(harms), sum(sizes), sum(operations))
        for harms, sizes, operations in (zip(*picked, strict=True) for picked in itertools.product(*rows))
    ]
    within = [total[position] for total in totals if total[1] + 1 <= 2 * size and total[2] <= 2 * bops]
    if not within:
        with pytest.raises(PlanError):
            allocate(choices, limits, minimise=minimise)
        return
    found = allocate(choices, limits, minimise=minimise)
    assert found.totals["size"] <= 2 * size + 1e-6
    assert found.totals["bops"] <= 2 * bops + 1e-6
    reached = found.harm if minimise == "harm" else found.totals["size"] - 1
    assert reached == pytest.approx(min(within), rel=1e-3)


def test_of_equal_choices_one_stays_and_worse_ones_go() -> None:
    rows = [choice("a", 1.0, 5, 5), choice("a", 1.0, 5, 5), choice("a", 1.0, 6, 5), choice("a", 2.0, 4, 5)]
    assert [(row.setting.harm, row.costs["size"]) for row in undominated(rows)] == [(1.0, 5.0), (2.0, 4.0)]


def test_a_budget_out_of_reach_names_the_nearest_and_the_layer_in_the_way() -> None:
    choices = {"a": [choice("a", 1.0, 1000, 1)], "b": [choice("b", 1.0, 100, 1), choice("b", 0.0, 900, 1)]}
    with pytest.raises(PlanError, match=r"at least size=1\.2kB.*a \(locked\) is most in the way"):
        allocate(choices, [limit("size", 500.0, fixed=100.0)])


def test_budgets_that_fight_each_other_are_told_together() -> None:
    choices = {"a": [choice("a", 1.0, 10, 100), choice("a", 1.0, 100, 10)]}
    with pytest.raises(PlanError, match="not all together.*about size=0.1kB, bops=100"):
        allocate(choices, [limit("size", 20.0), limit("bops", 20.0)])


def test_the_binding_limit_and_its_price() -> None:
    rows = [choice("a", 10.0, 10, 1), choice("a", 1.0, 100, 1)]
    found = allocate({"a": rows}, [limit("size", 55.0), limit("bops", 50.0)])
    assert found.binding == "size"
    assert found.price == pytest.approx((10**1.25 - 1) / 90.0 * 0.55 * 10**-0.25 / 1.25, rel=1e-6)
    assert allocate({"a": rows}, [limit("size", 500.0)]).binding is None


def test_small_harms_count_beside_layers_that_would_be_destroyed() -> None:
    bits = (8, 6, 5, 4, 3, 2)
    generator = np.random.default_rng(0)
    sizes, weights = generator.integers(5, 60, 24), generator.uniform(0.2, 5.0, 24)
    rows = {
        f"layer{index}": [
            choice(f"layer{index}", weight * (4.0 ** (2 - b) if b > 2 else 2e3) / 50, b * size, 0)
            for b in bits
        ]
        for index, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    }
    limit_size = int(6.3 * sizes.sum())
    found = allocate(rows, [limit("size", limit_size)])
    best = np.full(limit_size + 1, np.inf)  # least sum of powers, by the size that is spent
    best[0] = 0.0
    for settings_of_layer in rows.values():
        following = np.full(limit_size + 1, np.inf)
        for row in settings_of_layer:
            spent = int(row.costs["size"])
            moved = best[: limit_size + 1 - spent] + row.setting.harm**TOGETHER
            following[spent:] = np.minimum(following[spent:], moved)
        best = following
    assert found.harm == pytest.approx(best.min() ** (1 / TOGETHER), rel=1e-3)
    more = allocate(rows, [limit("size", 1.01 * limit_size)])
    assert found.binding == "size"
    assert found.price == pytest.approx(found.harm - more.harm, rel=0.4)  # choices come in steps
