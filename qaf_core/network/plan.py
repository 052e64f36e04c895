"""What is to become of each layer: structure, rank and bits, checked in words and stored as versioned JSON. Free of torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.network.inventory import FACTORIZED, STRUCTURES, LayerInfo, classifier, first_convolution
from qaf_core.network.structures import (
    FACTOR_COUNT,
    Rank,
    check_ratio,
    factor_shapes,
    link_macs,
    max_useful_rank,
    rank_for_ratio,
)
from qaf_core.quantization.spec import BITS_FLOAT, BITS_INTEGER

__all__ = [
    "PRESETS", "SCHEMA_VERSION", "Bits", "LayerPlan", "Plan", "Rank", "check_layer_plan", "factor_shapes",
    "max_useful_rank", "paper_plan", "plan_for_ratio", "plan_layer", "rank_for_ratio", "replace_layer", "validate_plan",
]  # fmt: skip

SCHEMA_VERSION = 1
WIDE_STRUCTURES = ("cp", "tucker2", "auto")
DENSE_BITS = 8

_LAYER_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "structure": (str,), "rank": (int, list, type(None)), "bits": (int, list, type(None)),
}  # fmt: skip
_PLAN_FIELDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,), "model": (str,), "layers": (list,), "activation_bits": (int,), "options": (dict,),
    "seed": (int,),
}  # fmt: skip
_TYPE_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", type(None): "null"}

# name -> (parameter ratio, weight bits)
PRESETS: dict[str, tuple[float, int]] = {"gentle": (1.5, 6), "balanced": (2.0, 4), "aggressive": (3.0, 3)}

Bits = int | tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer becomes.

    Attributes:
        name: The layer, as in the inventory.
        structure: ``cp``, ``tucker2``, ``svd``, ``dense`` (quantized, not factorized) or ``keep`` (as it is).
        rank: R for ``cp`` and ``svd``, (R_out, R_in) for ``tucker2``, None otherwise.
        bits: Weight bits, 2 to 8 or 32 for floating point; a tuple gives one per factor; None for ``keep``.
    """

    name: str
    structure: str
    rank: Rank = None
    bits: Bits = None

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        return {
            "name": self.name,
            "structure": self.structure,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "bits": list(self.bits) if isinstance(self.bits, tuple) else self.bits,
        }

    @classmethod
    def from_dict(cls, data: Any) -> LayerPlan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If a field is missing, unknown, or of the wrong type.
        """
        named = data.get("name") if isinstance(data, dict) else None
        where = f"layer {named} of the plan" if isinstance(named, str) else "a layer of the plan"
        fields = _read_fields(where, data, _LAYER_FIELDS, required=("name", "structure"))
        for key in ("rank", "bits"):
            value = fields.get(key)
            if isinstance(value, list):
                fields[key] = value = tuple(value)
            parts = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(_whole(part) for part in parts):
                raise PlanError(f"{where}: {key} is of the wrong type", got=value, expected="whole numbers or null")
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a whole network becomes.

    Attributes:
        model: Id of the model it was made for.
        layers: One row for every 2-d convolution and linear layer of the inventory.
        activation_bits: Bits of the input of every convolution and linear layer: 2 to 8, or 32 for none.
        options: Solver options by name; checked where the solver starts.
        seed: Of every random start.
        schema_version: Of the JSON form.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    layers: tuple[LayerPlan, ...]
    activation_bits: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def layer(self, name: str) -> LayerPlan:
        """The row of one layer.

        Raises:
            PlanError: If there is none.
        """
        for row in self.layers:
            if row.name == name:
                return row
        raise PlanError("the plan has no such layer", got=name, expected=_names(row.name for row in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON types."""
        return {
            "schema_version": self.schema_version,
            "model": self.model,
            "activation_bits": self.activation_bits,
            "seed": self.seed,
            "options": dict(self.options),
            "layers": [row.to_dict() for row in self.layers],
        }

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If a field is missing, unknown, of the wrong type, or of a newer version.
        """
        fields = _read_fields("the plan", data, _PLAN_FIELDS, required=("model", "layers"))
        version = fields.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            newer = "update this tool" if version > SCHEMA_VERSION else "make a new plan"
            raise PlanError("the plan has another version", got=version, expected=SCHEMA_VERSION, remedy=newer)
        return cls(**{**fields, "layers": tuple(LayerPlan.from_dict(row) for row in fields["layers"])})

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read what ``to_json`` wrote.

        Raises:
            PlanError: If the text is no JSON, or as in ``from_dict``.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError("the plan is not valid JSON", got=str(error), remedy="give a file written by this tool") from error
        return cls.from_dict(data)


def plan_layer(info: LayerInfo, structure: str, *, ratio: float, bits: int) -> LayerPlan:
    """The row that gives a layer this structure at a parameter ratio and bit-width.

    ``auto`` and structures the layer cannot have fall back to the nearest it can: another factorized one if there is
    one, else ``dense``, else ``keep``.

    Raises:
        PlanError: If the ratio is below 1.
    """
    structure = _nearest_structure(info, structure, ratio)
    if structure == "keep":
        return LayerPlan(name=info.name, structure="keep")
    return LayerPlan(name=info.name, structure=structure, rank=rank_for_ratio(info, structure, ratio), bits=bits)


def _nearest_structure(info: LayerInfo, structure: str, ratio: float) -> str:
    if structure == "auto" and "cp" in info.structures:
        return _auto_structure(info, ratio)
    if structure in info.structures:
        return structure
    if structure in (*FACTORIZED, "auto") and info.eligible:
        return info.default_structure
    return "dense" if "dense" in info.structures and structure != "keep" else "keep"


def _auto_structure(info: LayerInfo, ratio: float) -> str:
    """CP, the more accurate at low bits, unless it would need more operations than the layer and Tucker-2 would not."""
    needed = {s: sum(link_macs(info, s, rank_for_ratio(info, s, ratio))) for s in ("cp", "tucker2")}
    return "tucker2" if needed["cp"] > info.macs >= needed["tucker2"] else "cp"


def plan_for_ratio(
    inventory: Sequence[LayerInfo], *, model: str, ratio: float, bits: int, activation_bits: int = 8,
    structure: str = "cp", method: str = "joint", seed: int = 0,
) -> Plan:  # fmt: skip
    """One ratio and one bit-width for every eligible layer but the first convolution and the classifier.

    Those two, and convolution and linear layers that cannot be factorized, become ``dense`` at 8 bits when activations
    are quantized and ``keep`` otherwise.

    Args:
        inventory: The network.
        model: Its id.
        ratio: Parameters before over after, of each covered layer; at least 1.
        bits: Weight bits of the covered layers.
        activation_bits: 2 to 8, or 32 for none.
        structure: Of k×k convolutions: ``cp``, ``tucker2``, or ``auto`` (``cp`` unless that needs more operations than
            the layer and ``tucker2`` does not). 1×1 convolutions and linear layers take ``svd``.
        method: With ``dense``, the covered layers are quantized at ``bits`` and not factorized (the ratio is ignored).
        seed: Of the plan.

    Raises:
        PlanError: If an argument is out of range.
    """
    if structure not in WIDE_STRUCTURES:
        raise PlanError("unknown structure", got=structure, expected=", ".join(WIDE_STRUCTURES))
    check_ratio(ratio)
    for what, value in (("weight bits", bits), ("activation bits", activation_bits)):
        problem = _bits_problem(value)
        if problem:
            raise PlanError(f"{what} out of range", got=value, expected="2 to 8, or 32 for floating point")
    wanted = "dense" if method == "dense" else structure
    edges = {info.name for info in (first_convolution(inventory), classifier(inventory)) if info is not None}
    rows = []
    for info in inventory:
        if info.planned:
            covered = info.eligible and info.name not in edges
            spared = "dense" if activation_bits < BITS_FLOAT else "keep"
            rows.append(plan_layer(info, wanted if covered else spared, ratio=ratio, bits=bits if covered else DENSE_BITS))
    return Plan(model=model, layers=tuple(rows), activation_bits=activation_bits, seed=seed)


def paper_plan(
    inventory: Sequence[LayerInfo], *, model: str, ratio: float, bits: int, activation_bits: int = 8, seed: int = 0
) -> Plan:
    """The plan of arXiv 2308.04595: CP for k×k convolutions, 8-bit ``dense`` for all else (1×1 convolutions too).

    Raises:
        PlanError: If an argument is out of range.
    """
    plan = plan_for_ratio(
        inventory, model=model, ratio=ratio, bits=bits, activation_bits=activation_bits, structure="cp", seed=seed
    )
    spared = "dense" if activation_bits < BITS_FLOAT else "keep"
    infos = {info.name: info for info in inventory}
    rows = (
        plan_layer(infos[row.name], spared, ratio=ratio, bits=DENSE_BITS) if row.structure == "svd" else row
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


def check_layer_plan(info: LayerInfo, row: LayerPlan) -> list[tuple[str, str]]:
    """What is wrong with one row, for people.

    Returns:
        (field, message) pairs, the field one of ``structure``, ``rank``, ``bits``; empty when the row is good.
    """
    if row.structure not in STRUCTURES:
        return [("structure", _say("unknown structure", row.structure, _names(info.structures)))]
    if row.structure not in info.structures:
        why = f"this layer {info.skip_reason}" if info.skip_reason and not info.calls else info.skip_reason
        return [("structure", _say(f"{row.structure} does not fit this layer", row.structure, _names(info.structures), why))]
    found = [("rank", message) for message in [_rank_problem(info, row)] if message]
    return found + [("bits", message) for message in [_row_bits_problem(row)] if message]


def validate_plan(plan: Plan, inventory: Sequence[LayerInfo], *, model: str | None = None) -> None:
    """Check a plan against the network it is to be used on.

    Args:
        plan: The plan.
        inventory: The network.
        model: Its id, compared with the plan's when given.

    Raises:
        PlanError: If the plan is for another model, lacks or repeats a layer, or a row is out of range.
    """
    if model is not None and plan.model != model:
        raise PlanError("the plan is for another model", got=plan.model, expected=model, remedy="make a plan for this model")
    if _bits_problem(plan.activation_bits):
        raise PlanError(
            "activation bits out of range", got=plan.activation_bits, expected="2 to 8, or 32 for no quantization"
        )
    infos = {info.name: info for info in inventory if info.planned}
    names = [row.name for row in plan.layers]
    _check_names(plan, names, infos)
    for row in plan.layers:
        for what, message in check_layer_plan(infos[row.name], row):
            raise PlanError(f"layer {row.name}, {what}: {message}")


def _check_names(plan: Plan, names: list[str], infos: Mapping[str, LayerInfo]) -> None:
    unknown = [name for name in names if name not in infos]
    missing = [name for name in infos if name not in set(names)]
    if unknown and len(unknown) == len(names) or (unknown and missing):
        raise PlanError(
            f"the plan is for another network than this (its model is {plan.model})",
            got=f"unknown layers {_names(unknown)}", expected=f"layers {_names(infos)}",
            remedy="make a plan for this model",
        )
    if unknown:
        raise PlanError("the plan names layers this network lacks", got=_names(unknown), expected=_names(infos))
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise PlanError("the plan names layers more than once", got=_names(repeated), expected="each layer once")
    if missing:
        raise PlanError(
            "the plan leaves out layers", got=f"no row for {_names(missing)}", expected="a row for every layer",
            remedy="add them with structure keep",
        )


def _rank_problem(info: LayerInfo, row: LayerPlan) -> str | None:
    largest = max_useful_rank(info, row.structure)
    rank = row.rank
    if largest is None:
        return None if rank is None else _say(f"{row.structure} has no rank", rank, "none", "leave the rank empty")
    if isinstance(largest, int):
        if _whole(rank) and 1 <= rank <= largest:  # type: ignore[operator]
            return None
        too_large = _whole(rank) and rank > largest  # type: ignore[operator]
        why = f"above {largest} the factors hold more numbers than the layer itself" if too_large else None
        return _say("rank out of range", rank, f"a whole number from 1 to {largest}", why)
    wanted = f"a pair R_out, R_in of 1 to {info.out_channels} and 1 to {info.in_channels}"
    if not (isinstance(rank, tuple) and len(rank) == 2 and all(_whole(part) for part in rank)):
        return _say("tucker2 needs two ranks", rank, wanted)
    if not (1 <= rank[0] <= info.out_channels and 1 <= rank[1] <= info.in_channels):
        return _say("rank out of range", rank, wanted)
    numbers = sum(math.prod(shape) for shape in factor_shapes(info, "tucker2", rank))
    if numbers > info.weight_numel and rank != largest:
        why = "with larger ranks the factors hold more numbers than the layer itself"
        return _say("ranks larger than useful", rank, f"for example {largest[0]}, {largest[1]} or less", why)
    return None


def _row_bits_problem(row: LayerPlan) -> str | None:
    count = FACTOR_COUNT[row.structure]
    if row.structure == "keep":
        return None if row.bits is None else _say("kept layers have no bits", row.bits, "none", "choose dense to quantize")
    if isinstance(row.bits, tuple):
        if len(row.bits) != count:
            return _say("one bit-width per factor is needed", row.bits, f"one number, or {count} of them")
        return next((problem for problem in map(_bits_problem, row.bits) if problem), None)
    return _bits_problem(row.bits)


def _bits_problem(bits: Any) -> str | None:
    if _whole(bits) and bits in (*BITS_INTEGER, BITS_FLOAT):
        return None
    return _say("bits out of range", bits, "2 to 8, or 32 for floating point")


def _read_fields(
    where: str, data: Any, known: Mapping[str, tuple[type, ...]], required: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of a JSON object, checked by name and type."""
    if not isinstance(data, dict):
        raise PlanError(f"{where} is of the wrong type", got=type(data).__name__, expected="an object with named fields")
    if unknown := sorted(set(data) - set(known), key=str):
        raise PlanError(f"{where} has unknown fields", got=_names(map(str, unknown)), expected=", ".join(known))
    if missing := [key for key in required if key not in data]:
        raise PlanError(f"{where} lacks fields", got=f"no {_names(missing)}", expected=", ".join(required))
    for key, value in data.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in known[key])
            raise PlanError(f"{where}: {key} is of the wrong type", got=repr(value)[:60], expected=wanted)
    return dict(data)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _say(what: str, got: Any, expected: str, why: str | None = None) -> str:
    got = "none" if got is None else ", ".join(map(str, got)) if isinstance(got, tuple) else got
    return f"{what}: got {got}, expected {expected}" + (f" ({why})" if why else "")


def _names(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
