"""What layers may become where time counts: forms with their times and the harm expected of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.network.plan.cost import layer_cost
from qaf_core.network.plan.layer_info import LayerInfo, first_convolution, output_layers
from qaf_core.network.plan.types import LayerPlan
from qaf_core.search.budget.allocate import Choice
from qaf_core.search.selection import DENSE, Step
from qaf_core.search.sensitivity.settings import Sensitivity, Setting
from qaf_core.text.said import say

TIMED_KINDS = ("conv2d", "linear")  # that the table of latencies knows
TIE = 0.02  # of the dense layer's time: of forms as fast as that the least harmful counts
LATENCY = "latency"


@dataclass(frozen=True, kw_only=True)
class Form:
    """A structure and rank of a layer, with its time alone and what it is expected to harm."""

    step: Step
    latency_ms: float
    choice: Choice

    @property
    def harm(self) -> float:
        """Expected divergence if only this layer is changed."""
        return self.choice.setting.harm


Forms = Mapping[str, Sequence[Form]]


def list_forms(
    inventory: Sequence[LayerInfo],
    table: Sequence[Mapping[str, Any]],
    sensitivity: Sensitivity,
    *,
    bits: int,
    activation_bits: int,
) -> dict[str, list[Form]]:
    """What each layer that has a choice may become, ``dense`` first, the others in the order of the table.

    The first convolution and the classifier have none, as in every plan made by rule.

    Args:
        inventory: The network.
        table: Rows with layer, structure, rank and median_ms.
        sensitivity: Of the network.
        bits: Weight bits of every factor; codes of fewer bits run as fast as those of 8.
        activation_bits: Of the plan.

    Raises:
        PlanError: If the table lacks a layer.
    """
    edges = {info.name for info in (first_convolution(inventory), *output_layers(inventory)) if info}
    found: dict[str, list[Form]] = {}
    for info in inventory:
        if info.kind not in TIMED_KINDS or not info.calls or not info.eligible or info.name in edges:
            continue
        forms: dict[Step, Form] = {}
        for timed in table:
            if timed["layer"] != info.name or timed["structure"] not in info.structures:
                continue
            rank = tuple(timed["rank"]) if isinstance(timed["rank"], list | tuple) else timed["rank"]
            row = LayerPlan(name=info.name, structure=timed["structure"], rank=rank, bits=bits)
            harm = sensitivity.harm_of(row)
            if harm is None and (row.structure, rank) != DENSE:
                continue  # nothing is known of such a structure
            cost, latency_ms = layer_cost(info, row, activation_bits), float(timed["median_ms"])
            setting = Setting(row=row, harm=harm or 0.0, size_bytes=cost.size_bytes, bops=cost.bops)
            choice = Choice(setting=setting, costs={LATENCY: latency_ms})
            forms[row.structure, rank] = Form(
                step=(row.structure, rank), latency_ms=latency_ms, choice=choice
            )
        if DENSE not in forms:
            raise PlanError(
                "the latency table lacks a layer",
                got=say("no dense row of {info}", info=info.name),
                remedy="measure it again",
            )
        found[info.name] = [forms.pop(DENSE), *forms.values()]
    return found


def distinct(rows: Sequence[Form]) -> list[Form]:
    """The forms, least harmful first, without those that are hardly faster than one that harms less: for a
    difference no measurement tells, no harm is to be spent.
    """
    kept: list[Form] = []
    tie = TIE * rows[0].latency_ms
    for form in sorted(rows, key=lambda form: (form.harm, form.choice.costs[LATENCY])):
        if not kept or form.choice.costs[LATENCY] < kept[-1].choice.costs[LATENCY] - tie:
            kept.append(form)
    return kept


def before(form: Form, known: Form, share: float) -> bool:
    """Whether a form is the better representative of its structure."""
    if (form.harm <= share) != (known.harm <= share):
        return form.harm <= share
    return form.latency_ms < known.latency_ms if form.harm <= share else form.harm < known.harm
