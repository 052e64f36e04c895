"""Predicted cost of a network, as it is and under a plan: size, operations, memory, energy. Free of torch.

Two conventions differ in what counts as an operation:

``uniform``: every layer at its own weight bits × activation bits, ``keep`` at 32 × 32; a BatchNorm that can
be folded into the layer before it counts nothing, before and after.

``paper`` (arXiv 2308.04595): BatchNorm counts 2 multiply-accumulates per output element, at 8-bit weights
where activations are quantized.

Parameters, size and memory are the same in both. The original counts 4 bytes per trainable parameter, those
of BatchNorm included (its running statistics are not). The compressed network counts the packed file (see
``storage``). A layer that has a bias or takes up a BatchNorm holds C_out biases; a BatchNorm that cannot be
folded holds 2·C numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qaf_core.errors import PlanError
from qaf_core.network.plan.chains import chain_structure, factor_macs, factor_shapes, link_activations
from qaf_core.network.plan.energy_model import activation_traffic_joules, mac_joules, weight_traffic_joules
from qaf_core.network.plan.file_size import (
    CONTAINER_BYTES_FIXED,
    HALF_BYTES,
    bias_count,
    chain_bytes,
    chain_index_bytes,
    kept_index_bytes,
)
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.rules import paper_plan, plan_for_ratio
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.records import Record
from qaf_core.text.said import say

CONVENTIONS = ("uniform", "paper")
FLOATS = (FLOAT.bits, FLOAT.bits)  # of weights and activations

FLOAT_BYTES = 4
BATCHNORM_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """What a layer or network costs, for one image.

    Attributes:
        params: Numbers stored: weights or factor elements, biases, kept tensors; scales not counted.
        size_bytes: Of the packed file (original: 4 bytes per parameter).
        macs: Multiply-accumulates.
        bops: Bit operations: Σ macs × weight bits × activation bits.
        peak_activation_bytes: Largest input plus output of any one link.
        energy_joules: Modelled (see ``energy``), never measured.
    """

    params: int
    size_bytes: int
    macs: int
    bops: int
    peak_activation_bytes: int
    energy_joules: float


def total_cost(costs: Iterable[Cost], *, container_bytes: int = 0) -> Cost:
    """Sum of costs; the peak is the largest of them."""
    rows = list(costs)
    return Cost(
        params=sum(row.params for row in rows),
        size_bytes=container_bytes + sum(row.size_bytes for row in rows),
        macs=sum(row.macs for row in rows),
        bops=sum(row.bops for row in rows),
        peak_activation_bytes=max((row.peak_activation_bytes for row in rows), default=0),
        energy_joules=math.fsum(row.energy_joules for row in rows),
    )


def plan_cost(inventory: Sequence[LayerInfo], plan: Plan, convention: str = "uniform") -> Cost:
    """Cost of the network a plan makes.

    Args:
        inventory: The network.
        plan: A plan for it; ranks and bits are taken as they are (``validate_plan`` checks them).
        convention: ``uniform`` or ``paper``.

    Raises:
        PlanError: If the plan lacks a layer, or the convention is unknown.
    """
    rows = {row.name: row for row in plan.layers}
    costs = []
    for info in inventory:
        if info.planned and info.name not in rows:
            raise PlanError(
                "the plan leaves out a layer",
                got=say("no row for {layer}", layer=info.name),
                remedy="add it, or make a new plan",
            )
        costs.append(layer_cost(info, rows.get(info.name), plan.activation_bits, convention))
    return total_cost(costs, container_bytes=CONTAINER_BYTES_FIXED)


def original_cost(inventory: Sequence[LayerInfo], convention: str = "uniform") -> Cost:
    """Cost of the network as it is, in 32-bit floating point."""
    return total_cost(original_layer_cost(info, convention) for info in inventory)


def ratio_cost(
    inventory: Sequence[LayerInfo],
    ratio: float,
    bits: int,
    activation_bits: int = 8,
    convention: str = "uniform",
) -> Cost:
    """Cost at one parameter ratio and weight bit-width.

    Under ``uniform`` of the plan ``plan_for_ratio`` makes; under ``paper`` of the paper's (``paper_plan``).

    Raises:
        PlanError: If an argument is out of range.
    """
    _check_convention(convention)
    make = paper_plan if convention == "paper" else plan_for_ratio
    plan = make(inventory, model="", ratio=ratio, bits=bits, activation_bits=activation_bits)
    return plan_cost(inventory, plan, convention)


def original_layer_cost(info: LayerInfo, convention: str = "uniform") -> Cost:
    """Cost of one layer as it is: 4 bytes a parameter, 32 × 32 bit operations."""
    _check_convention(convention)
    return _float_cost(info, params=info.params, bytes_each=FLOAT_BYTES, convention=convention)


def layer_cost(
    info: LayerInfo, layer_plan: LayerPlan | None, activation_bits: int, convention: str = "uniform"
) -> Cost:
    """Cost of what a plan makes of one layer, its share of the file's index included.

    Args:
        info: The layer.
        layer_plan: Its row; None for layers no plan lists (BatchNorm and other kinds).
        activation_bits: Of the plan.
        convention: ``uniform`` or ``paper``.

    Raises:
        PlanError: If the convention is unknown, or a factorized structure has a rank of another form.
    """
    _check_convention(convention)
    if layer_plan is None or layer_plan.structure == KEEP:
        return _kept_cost(info, activation_bits, convention)
    structure, rank = layer_plan.structure, layer_plan.rank
    shapes = factor_shapes(info, structure, rank)
    if chain_structure(structure, rank) is None:
        raise PlanError(
            say(
                "layer {info}: {structure} and its rank do not go together",
                info=info.name,
                structure=structure,
            ),
            got=say("rank {rank}", rank=rank),
        )
    bits = _factor_bits(info, layer_plan, len(shapes))
    macs = factor_macs(info, structure, rank)
    activation_bytes = [(x + y) * activation_bits / 8 for x, y in link_activations(info, structure, rank)]
    stored = chain_bytes(info, structure, rank, bits)
    energy = sum(count * mac_joules(b, activation_bits) for count, b in zip(macs, bits, strict=True))
    energy += weight_traffic_joules(stored) + activation_traffic_joules(sum(activation_bytes) * info.calls)
    return Cost(
        params=sum(map(math.prod, shapes)) + bias_count(info),
        size_bytes=stored + chain_index_bytes(info),
        macs=sum(macs),
        bops=sum(count * b * activation_bits for count, b in zip(macs, bits, strict=True)),
        peak_activation_bytes=math.ceil(max(activation_bytes)),
        energy_joules=energy,
    )


def _kept_cost(info: LayerInfo, activation_bits: int, convention: str) -> Cost:
    """Cost of a layer that stays floating point: stored in fp16, a BatchNorm as scale and shift or folded."""
    bits = FLOATS
    if info.kind == "batchnorm":
        params = 0 if info.folded_into is not None else 2 * info.out_channels
        if convention == "paper" and not Grid.of(activation_bits).is_float:
            bits = (BATCHNORM_BITS, activation_bits)
    else:
        params = info.params + (0 if info.bias else bias_count(info))
    cost = _float_cost(info, params=params, bytes_each=HALF_BYTES, convention=convention, bits=bits)
    return replace(cost, size_bytes=cost.size_bytes + kept_index_bytes(info))


def _float_cost(
    info: LayerInfo, *, params: int, bytes_each: int, convention: str, bits: tuple[int, int] = FLOATS
) -> Cost:
    folded = info.folded_into is not None
    macs = 0 if folded and convention == "uniform" else info.macs
    activations = 0 if folded or not macs else FLOAT_BYTES * sum(link_activations(info, KEEP, None)[0])
    energy = macs * mac_joules(*bits) + activation_traffic_joules(activations * info.calls)
    return Cost(
        params=params,
        size_bytes=bytes_each * params,
        macs=macs,
        bops=macs * bits[0] * bits[1],
        peak_activation_bytes=activations,
        energy_joules=energy + (weight_traffic_joules(bytes_each * params) if info.calls else 0.0),
    )


def _factor_bits(info: LayerInfo, layer_plan: LayerPlan, count: int) -> tuple[int, ...]:
    bits = layer_plan.bits if isinstance(layer_plan.bits, tuple) else (layer_plan.bits,) * count
    widths = tuple(value for value in bits if isinstance(value, int))
    if len(widths) != count:
        raise PlanError(
            say("layer {info}: bits missing", info=info.name),
            got=layer_plan.bits,
            expected=say("one number, or {count}", count=count),
        )
    return widths


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise PlanError("unknown cost convention", got=convention, expected=", ".join(CONVENTIONS))
