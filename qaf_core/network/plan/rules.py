"""Making and editing plans: structure, rank and bits of every layer. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qaf_core.errors import PlanError
from qaf_core.factorization.options import Method
from qaf_core.factorization.structures import FACTORIZED, STRUCTURES, check_ratio
from qaf_core.network.plan.chains import factor_macs, rank_for_ratio
from qaf_core.network.plan.layer_info import KEEP, LayerInfo, first_convolution, output_layers
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.network.plan.validation import check_bits
from qaf_core.quantization.grid import Grid
from qaf_core.text.said import say

BY_OPERATIONS, TO_CHOOSE_FROM = "cp-or-tucker2", ("cp", "tucker2")
KERNEL_STRUCTURES = (*FACTORIZED, BY_OPERATIONS)
USUAL = "cp"
MEASURED = "auto"  # chosen by timing: no rule gives it, see ``search``
SPARED_BITS = 8

# name -> (parameter ratio, weight bits)
PRESETS: dict[str, tuple[float, int]] = {"gentle": (1.5, 6), "balanced": (2.0, 4), "aggressive": (3.0, 3)}


def plan_layer(info: LayerInfo, structure: str, *, ratio: float, bits: int) -> LayerPlan:
    """The row that gives a layer a structure, at a parameter ratio and bit-width.

    A structure the layer cannot have gives way to the nearest it can: to another factorized one, else to
    ``dense``, else to ``keep``. ``cp-or-tucker2`` is the first of the two that needs no more operations
    than the layer, or simply the first.

    Raises:
        PlanError: If the ratio is below 1.
    """
    check_ratio(ratio)
    structure = _nearest_structure(info, structure, ratio)
    if structure == KEEP:
        return LayerPlan(name=info.name, structure=KEEP)
    return LayerPlan(
        name=info.name, structure=structure, rank=rank_for_ratio(info, structure, ratio), bits=bits
    )


def _nearest_structure(info: LayerInfo, structure: str, ratio: float) -> str:
    if structure == BY_OPERATIONS and TO_CHOOSE_FROM[0] in info.structures:
        return _by_operations(info, ratio)
    if structure in info.structures:
        return structure
    if structure in KERNEL_STRUCTURES and info.eligible:
        return info.structures[0]
    rounded = (name for name in info.structures if name in STRUCTURES and name not in FACTORIZED)
    return KEEP if structure == KEEP else next(rounded, KEEP)


def _by_operations(info: LayerInfo, ratio: float) -> str:
    def macs(name: str) -> int:
        return sum(factor_macs(info, name, rank_for_ratio(info, name, ratio)))

    return next((name for name in TO_CHOOSE_FROM if macs(name) <= info.macs), TO_CHOOSE_FROM[0])


def plan_for_ratio(
    inventory: Sequence[LayerInfo],
    *,
    model: str,
    ratio: float,
    bits: int,
    activation_bits: int = 8,
    structure: str = USUAL,
    method: str = Method.JOINT,
    seed: int = 0,
) -> Plan:
    """One ratio and one bit-width for every eligible layer but the first convolution and the classifier.

    Those (of several heads the last layer of each), and convolution and linear layers that cannot be
    factorized, become ``dense`` at 8 bits when activations are quantized and ``keep`` otherwise.

    Args:
        inventory: The network.
        model: Its id.
        ratio: Parameters before over after, of each covered layer; at least 1.
        bits: Weight bits of the covered layers.
        activation_bits: 2 to 8, or 32 for none.
        structure: Of k×k convolutions: a factorized one or ``cp-or-tucker2`` (see ``plan_layer``). 1×1
            convolutions and linear layers take ``svd``.
        method: With ``dense`` the covered layers are quantized at ``bits`` and not factorized, and the ratio
            is of no account.
        seed: Of the plan.

    Raises:
        PlanError: If an argument is out of range.
    """
    if structure not in KERNEL_STRUCTURES:
        measured = say(
            "auto is measured, for the joint method: qaf plan --structure auto --out FILE, then --plan FILE"
        )
        raise PlanError(
            "unknown structure",
            got=structure,
            expected=", ".join(KERNEL_STRUCTURES),
            remedy=measured if structure == MEASURED else None,
        )
    check_ratio(ratio)
    check_bits(say("weight bits"), bits)
    check_bits(say("activation bits"), activation_bits)
    form = "dense" if method == Method.DENSE else structure
    spared = "dense" if not Grid.of(activation_bits).is_float else KEEP
    first = first_convolution(inventory)
    edges = {info.name for info in (first, *output_layers(inventory)) if info is not None}
    rows = []
    for info in inventory:
        if info.planned and info.eligible and info.name not in edges:
            rows.append(plan_layer(info, form, ratio=ratio, bits=bits))
        elif info.planned:
            rows.append(plan_layer(info, spared, ratio=ratio, bits=SPARED_BITS))
    return Plan(model=model, layers=tuple(rows), activation_bits=activation_bits, seed=seed)


def paper_plan(
    inventory: Sequence[LayerInfo],
    *,
    model: str,
    ratio: float,
    bits: int,
    activation_bits: int = 8,
    seed: int = 0,
) -> Plan:
    """The plan of arXiv 2308.04595: CP for k×k convolutions, 8-bit ``dense`` for all others, 1×1 too.

    Raises:
        PlanError: If an argument is out of range.
    """
    plan = plan_for_ratio(
        inventory, model=model, ratio=ratio, bits=bits, activation_bits=activation_bits, seed=seed
    )
    spared = "dense" if not Grid.of(activation_bits).is_float else KEEP
    infos = {info.name: info for info in inventory}
    rows = (
        plan_layer(infos[row.name], spared, ratio=ratio, bits=SPARED_BITS)
        if row.structure in FACTORIZED and infos[row.name].kernel_elements == 1
        else row
        for row in plan.layers
    )
    return replace(plan, layers=tuple(rows))


def replace_layer(plan: Plan, row: LayerPlan) -> Plan:
    """The plan with one row exchanged.

    Raises:
        PlanError: If the plan has no layer of that name.
    """
    plan.layer(row.name)
    return replace(plan, layers=tuple(row if row.name == old.name else old for old in plan.layers))


def plan_done(plan: Plan, names: Iterable[str]) -> Plan:
    """The plan as far as it was carried out: layers not among ``names`` stay as they were."""
    solved = set(names)
    rows = (row if row.name in solved else LayerPlan(name=row.name, structure=KEEP) for row in plan.layers)
    return replace(plan, layers=tuple(rows))


def read_plan(file: Path) -> Plan:
    """The plan in a file.

    Raises:
        PlanError: If it cannot be read, or is malformed.
    """
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise PlanError(
            "the plan cannot be read", got=f"{file} ({reason})", remedy="check the path"
        ) from error
