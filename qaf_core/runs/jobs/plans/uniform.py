"""The plan that a uniform choice would come to: one ratio and one bit-width for all layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qaf_core.errors import PlanError
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.runs.store.request import FOUND, SearchRequest
from qaf_core.search.budget.budgets import Budget
from qaf_core.search.budget.predict import Predictor
from qaf_core.text.said import say

RATIOS = tuple(np.geomspace(1.1, 8.0, 30).tolist())
BITS = (2, 3, 4, 5, 6, 8)
LIMITED = {"size": "size_bytes", "bops": "bops"}


def check_uniform(request: SearchRequest, budgets: Sequence[Budget]) -> None:
    """Raise PlanError if layers are locked, or a budget is one of neither size nor bit operations."""
    for budget in budgets:
        if budget.kind not in LIMITED:
            raise PlanError(
                "a uniform plan is not sought under this budget", got=budget.text, expected="size or bops"
            )
    if request.locks:
        raise PlanError(
            "a uniform plan has no locked layers",
            got=", ".join(request.locks),
            remedy=say("leave the locks out, or search by the method {found}", found=FOUND),
        )


def best_uniform(
    request: SearchRequest, inventory: Sequence[LayerInfo], budgets: Sequence[Budget], predictor: Predictor
) -> Plan:
    """Of all plans of one ratio and one bit-width within the budgets the one of least expected harm.

    Its first convolution and classifier have 8 bits, as such plans are made.

    Raises:
        PlanError: If none is within them.
    """
    before, plans = original_cost(inventory), []
    for bits in BITS:
        for ratio in RATIOS:
            plan = plan_for_ratio(
                inventory, model=request.model, ratio=ratio, bits=bits, seed=request.seed,
                activation_bits=request.activation_bits,
            )  # fmt: skip
            cost = plan_cost(inventory, plan)
            if all(
                getattr(cost, LIMITED[budget.kind]) <= budget.limit(getattr(before, LIMITED[budget.kind]))
                for budget in budgets
            ):
                plans.append(plan)
                break
    if not plans:
        raise PlanError("no uniform plan meets the budget", got=", ".join(budget.text for budget in budgets))
    return min(plans, key=predictor.harm)
