"""Better plans around an exact choice: what layers harm together, measured instead of added up.

The sum of harms of single layers leaves out what they do together. So all planned weights are put in place
at once, and each layer in turn is taken back: how much less the network then diverges, against what the
layer was expected to harm, scales that layer's harms for the next choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qaf_core.network.plan.layer_info import KEEP
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import Progress
from qaf_core.search.budget.allocate import Allocation, Choice
from qaf_core.search.sensitivity.measure import MeasuredNetwork
from qaf_core.text.said import say

ROUNDS = 4
LARGEST_SCALE = 4.0
TRUST = 0.7  # of a measured scale's logarithm

Choices = Mapping[str, Sequence[Choice]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A plan that was looked at.

    Attributes:
        plan: The plan.
        allocation: What it came from.
        divergence: Of all its weights put in place together.
    """

    plan: Plan
    allocation: Allocation
    divergence: float


def improve(
    network: MeasuredNetwork,
    choices: Choices,
    allocation: Allocation,
    plan_of: Callable[[Allocation], Plan],
    choose: Callable[[Choices], Allocation],
    progress: Progress,
    *,
    seconds: float,
) -> list[Step]:
    """Plans around an allocation, best first.

    Args:
        network: Puts weights in place.
        choices: Of each layer.
        allocation: The first choice.
        plan_of: The plan of an allocation.
        choose: Chooses anew under the same limits, among choices with other harms.
        progress: Told how far it is (stage ``refining``), and asked whether to stop.
        seconds: After which no further round begins.
    """
    until = progress.elapsed_seconds + seconds
    plan = plan_of(allocation)
    steps = [Step(plan=plan, allocation=allocation, divergence=network.rehearse(plan))]
    scales = dict.fromkeys(choices, 0.0)
    for number in range(ROUNDS):
        if progress.elapsed_seconds > until or not math.isfinite(steps[-1].divergence):
            break
        last = steps[-1]
        for index, row in enumerate(last.plan.layers):
            progress.step(
                "refining",
                say("Taking layers back, round {number}", number=number + 1),
                index / len(last.plan.layers),
            )
            setting = last.allocation.settings[row.name]
            if row.structure == KEEP or setting.harm <= 0:
                continue
            gained = last.divergence - network.rehearse(last.plan, without=row.name)
            shift = math.log(max(gained, 0.05 * setting.harm) / setting.harm)
            scales[row.name] += TRUST * shift
            scales[row.name] = min(max(scales[row.name], -math.log(LARGEST_SCALE)), math.log(LARGEST_SCALE))
        chosen = choose({name: _scaled(rows, math.exp(scales[name])) for name, rows in choices.items()})
        plan = plan_of(chosen)
        if any(plan == step.plan for step in steps):
            break
        steps.append(Step(plan=plan, allocation=chosen, divergence=network.rehearse(plan)))
    return sorted(steps, key=lambda step: step.divergence)


def _scaled(rows: Sequence[Choice], factor: float) -> list[Choice]:
    return [replace(row, setting=replace(row.setting, harm=row.setting.harm * factor)) for row in rows]
