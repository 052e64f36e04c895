"""What is wrong with a plan, in words fit for a cell of the screen or a line on stderr. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.factorization.options import METHODS, Method
from qaf_core.factorization.structures import FACTORIZED, STRUCTURES
from qaf_core.network.plan.chains import holds_too_much, max_useful_rank
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan, is_integer
from qaf_core.quantization.grid import ACTIVATION_GRID, BITS_ACCEPTED, FLOAT, GRIDS
from qaf_core.text.said import Said, listing, say


def check_layer_plan(info: LayerInfo, row: LayerPlan) -> list[tuple[str, Said]]:
    """What is wrong with one row, for people.

    Returns:
        (field, message) pairs, the field one of ``structure``, ``rank``, ``bits``; empty for a good row.
    """
    if row.structure not in (*STRUCTURES, KEEP):
        return [("structure", _say(say("unknown structure"), row.structure, ", ".join(info.structures)))]
    if row.structure not in info.structures:
        what = say("{structure} does not fit this layer", structure=row.structure)
        return [
            (
                "structure",
                _say(
                    what,
                    row.structure,
                    ", ".join(info.structures),
                    info.skip_reason and Said(info.skip_reason),
                ),
            )
        ]
    problems = (("rank", _rank_problem(info, row)), ("bits", _row_bits_problem(row)))
    return [(field, message) for field, message in problems if message is not None]


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
        raise PlanError(
            "the plan is for another model",
            got=plan.model,
            expected=model,
            remedy="make a plan for this model",
        )
    check_bits(say("activation bits"), plan.activation_bits)
    infos = {info.name: info for info in inventory if info.planned}
    _check_names(plan, infos)
    for row in plan.layers:
        for field, message in check_layer_plan(infos[row.name], row):
            raise PlanError(
                say("layer {row}, {field}: {message}", row=row.name, field=field, message=message)
            )


def check_method(method: str, structures: Iterable[str]) -> None:
    """Raise PlanError unless a plan of such structures can be solved by a method.

    Args:
        method: One of ``METHODS``.
        structures: Of its layers.
    """
    if method not in METHODS:
        raise PlanError("unknown method", got=method, expected=", ".join(METHODS))
    factorized = sorted(set(FACTORIZED).intersection(structures))
    if method == Method.DENSE and factorized:
        raise PlanError(
            "the method dense rounds weights as they are, and the plan factorizes some",
            got=", ".join(factorized),
            expected="dense or keep in every row",
            remedy="choose another method, or make the plan for dense",
        )


def check_activations(bits: int) -> None:
    """Raise PlanError unless networks can be compressed with activations of so many bits."""
    if bits not in (ACTIVATION_GRID.bits, FLOAT.bits):
        raise PlanError(
            "activations are quantized to 8 bits or not at all",
            got=say("{bits} bits", bits=bits),
            expected=say("{one} or {other}", one=ACTIVATION_GRID.bits, other=FLOAT.bits),
        )


def oversized_ranks(plan: Plan, inventory: Sequence[LayerInfo]) -> tuple[Said, ...]:
    """Warnings, one for each layer whose factors hold more numbers than its weight: allowed, and no gain."""
    infos = {info.name: info for info in inventory}
    return tuple(
        say(
            "rank {rank} of layer {layer} holds more numbers than the layer itself",
            rank=_listed(row.rank),
            layer=row.name,
        )
        for row in plan.layers
        if row.rank is not None and holds_too_much(infos[row.name], row.structure, row.rank)
    )


def check_bits(what: Said, bits: Any) -> None:
    """Raise PlanError unless ``bits`` is 2 to 8 or 32.

    Args:
        what: Name of the field, for the message.
        bits: Its value.
    """
    if not _known_bits(bits):
        raise PlanError(say("{name} out of range", name=what), got=bits, expected=BITS_ACCEPTED)


def _check_names(plan: Plan, infos: Mapping[str, LayerInfo]) -> None:
    """Every planned layer of the network once, and no other."""
    names = [row.name for row in plan.layers]
    listed = set(names)
    unknown = [name for name in names if name not in infos]
    missing = [name for name in infos if name not in listed]
    if unknown and (missing or len(unknown) == len(names)):
        raise PlanError(
            say("the plan, made for {model}, does not fit this network", model=plan.model),
            got=say("unknown layers {unknown}", unknown=listing(unknown)),
            expected=say("layers {infos}", infos=listing(infos)),
            remedy="make a plan for this model",
        )
    if unknown:
        raise PlanError(
            "the plan names layers this network does not plan",
            got=listing(unknown),
            expected=listing(infos),
            remedy="remove them",
        )
    if len(listed) < len(names):
        repeated = sorted(name for name in listed if names.count(name) > 1)
        raise PlanError(
            "the plan names a layer more than once", got=listing(repeated), expected="each layer once"
        )
    if missing:
        raise PlanError(
            "the plan leaves out layers",
            got=say("no row for {layer}", layer=listing(missing)),
            expected="one row for each convolution and linear layer",
            remedy="add them with structure keep",
        )


def _rank_problem(info: LayerInfo, row: LayerPlan) -> Said | None:
    largest, rank = max_useful_rank(info, row.structure), row.rank
    if largest is None:
        return (
            None
            if rank is None
            else _say(say("{structure} has no rank", structure=row.structure), rank, say("none"))
        )
    if isinstance(largest, tuple):
        return _pair_problem(row.structure, rank, largest)
    accepted = say("a whole number from 1 to {largest}", largest=largest)
    if not isinstance(rank, int) or isinstance(rank, bool):
        return _say(say("rank missing") if rank is None else say("not a rank"), rank, accepted)
    if 1 <= rank <= largest:
        return None
    exact = say("with {largest} any weight of this shape is met exactly", largest=largest)
    return _say(say("rank out of range"), rank, accepted, exact if rank > largest else None)


def _pair_problem(structure: str, rank: Any, largest: tuple[int, int]) -> Said | None:
    accepted = say(
        "R_out from 1 to {outputs}, R_in from 1 to {inputs}", outputs=largest[0], inputs=largest[1]
    )
    if not (isinstance(rank, tuple) and len(rank) == 2 and all(is_integer(part) for part in rank)):
        return _say(say("{structure} needs two ranks", structure=structure), rank, accepted)
    within = all(1 <= part <= limit for part, limit in zip(rank, largest, strict=True))
    return None if within else _say(say("rank out of range"), rank, accepted)


def _row_bits_problem(row: LayerPlan) -> Said | None:
    if row.structure == KEEP:
        return (
            None
            if row.bits is None
            else _say(say("a kept layer has no bits"), row.bits, say("none"), say("dense quantizes it"))
        )
    if row.bits is None:
        return _say(say("bits missing"), None, Said(BITS_ACCEPTED))
    values = row.bits if isinstance(row.bits, tuple) else (row.bits,)
    count = len(STRUCTURES[row.structure].factors)
    if isinstance(row.bits, tuple) and len(values) != count:
        return _say(
            say("one bit-width per factor is needed"),
            row.bits,
            say("one number, or {count} of them", count=count),
        )
    if all(_known_bits(value) for value in values):
        return None
    return _say(say("bits out of range"), row.bits, Said(BITS_ACCEPTED))


def _known_bits(bits: Any) -> bool:
    return is_integer(bits) and bits in GRIDS


def _say(what: Said, got: Any, expected: Said | str, why: Said | str | None = None) -> Said:
    value = say("none") if got is None else _listed(got)
    if not why:
        return say("{what}: got {got}, expected {expected}", what=what, got=value, expected=expected)
    return say(
        "{what}: got {got}, expected {expected} ({why})", what=what, got=value, expected=expected, why=why
    )


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
