"""Numbers of layers add up to the network's, and colours keep their order."""

from __future__ import annotations

import math

import pytest

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.review.network_graph import measures

INVENTORY = load_inventory(find_model("inspection/resnet20"))
DRAWN = [info.name for info in INVENTORY if info.planned]
PLAN = plan_for_ratio(INVENTORY, model="inspection/resnet20", ratio=2, bits=4)


@pytest.mark.parametrize("plan", [None, PLAN])
def test_costs_add_up_to_the_network(plan: object) -> None:
    whole = original_cost(INVENTORY) if plan is None else plan_cost(INVENTORY, PLAN)
    for made, expected in ((measures.params_of, whole.params), (measures.bops_of, whole.bops)):
        found = made(INVENTORY, plan, DRAWN)  # type: ignore[arg-type]
        assert math.fsum(found.values.values()) + found.elsewhere == pytest.approx(expected)
        assert found.of(DRAWN) == pytest.approx(expected - found.elsewhere)
    part = measures.params_of(INVENTORY, plan, DRAWN[1:])  # type: ignore[arg-type]
    assert part.elsewhere > 0


def test_a_block_has_the_largest_error() -> None:
    found = measures.harm_of({"a": 0.2, "b": 0.3, "c": math.nan, "d": None})
    assert (found.of(["a", "b", "c"]), found.of(["c", "d"]), found.of([])) == (0.3, None, None)
    assert measures.shares_of({"a": 0.2, "b": 0.3}).of(["a", "b"]) == pytest.approx(0.5)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_tell_numbers_apart(dark: bool) -> None:
    harm = measures.harm_of({"a": 0.1, "b": 0.5})
    scale = measures.scale_for(harm, [0.1, 0.5, None], dark)
    assert scale.top == 0.5
    assert len({scale.colour(value) for value in (0.0, 0.1, 0.5, None)}) == 4
    assert scale.colour(0.5) == measures.HARMS[dark][-1]
    assert scale.colour(9.0) == scale.colour(0.5)
    small = measures.scale_for(measures.harm_of({"a": 0.001}), [0.001], dark)
    assert small.top == measures.LEAST_HARM  # a small error does not look alarming
    for ramp in (measures.COSTS, measures.HARMS):
        for colour in ramp[dark]:
            assert measures.ink_on(colour) in ("#FFFFFF", "#111827")
