"""What a user allows: ``size=60kB``, ``bops=0.02x``, ``drop=1pp``, ``latency=2ms``; and locks on layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import LayerPlan
from qaf_core.network.plan.validation import check_layer_plan
from qaf_core.text.said import listing, say

UNITS: Mapping[str, Mapping[str, float]] = {
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "bops": {"": 1.0, "M": 1e6, "G": 1e9, "T": 1e12},
    "drop": {"pp": 0.01, "%": 0.01},
    "latency": {"ms": 1.0},
}
SHARED = "x"  # of what the original takes
RELATIVE = ("size", "bops", "latency")
EXPECTED = "size=0.2x, size=60kB, bops=0.02x, drop=1pp, latency=0.5x or latency=2ms"
_FORM = re.compile(r"^(?P<kind>[a-z]+)=(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>[a-zA-Z%]*)$")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit.

    Attributes:
        kind: ``size``, ``bops``, ``latency`` or ``drop``.
        number: In bytes, bit operations, milliseconds or as a fraction of the metric; a share where relative.
        relative: Whether it is a share of the original.
        text: As the user wrote it.
    """

    kind: str
    number: float
    relative: bool
    text: str

    def limit(self, original: float) -> float:
        """The limit in the kind's own unit, with what the original takes."""
        return self.number * original if self.relative else self.number


def read_budget(text: str) -> Budget:
    """Read one budget.

    Raises:
        PlanError: If it is none.
    """
    match = _FORM.match(text.strip())
    kind, unit = (match["kind"], match["unit"]) if match else ("", "")
    relative = unit == SHARED and kind in RELATIVE
    if match is None or kind not in UNITS or not (relative or unit in UNITS[kind]):
        raise PlanError("not a budget", got=text, expected=EXPECTED)
    number = float(match["number"]) * (1.0 if relative else UNITS[kind][unit])
    if number <= 0:
        raise PlanError("a budget must be above 0", got=text, expected=EXPECTED)
    return Budget(kind=kind, number=number, relative=relative, text=text.strip())


def read_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Read all budgets of a search.

    Raises:
        PlanError: If there is none, one is none, or a kind comes twice.
    """
    budgets = tuple(read_budget(text) for text in texts)
    if not budgets:
        raise PlanError("no budget is given", expected=EXPECTED)
    kinds = [budget.kind for budget in budgets]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise PlanError("a kind of budget is given twice", got=", ".join(twice), expected="each kind once")
    return budgets


def read_locks(texts: Sequence[str], inventory: Sequence[LayerInfo]) -> dict[str, LayerPlan]:
    """Locks on layers: ``LAYER=keep``, ``LAYER=dense:4``, ``LAYER=cp:32:4``, ``LAYER=tucker2:8x8:4``.

    Raises:
        PlanError: If one cannot be read, does not fit its layer, or contradicts another.
    """
    infos = {info.name: info for info in inventory if info.planned}
    locks: dict[str, LayerPlan] = {}
    for text in texts:
        name, _, setting = text.rpartition("=")
        if name not in infos:
            raise PlanError("no such layer to lock", got=name or text, expected=listing(infos))
        row = _read_setting(name, setting)
        for field, message in check_layer_plan(infos[name], row):
            raise PlanError(
                say("lock on {name}, {field}: {message}", name=name, field=field, message=message)
            )
        if locks.get(name, row) != row:
            raise PlanError(
                "locks contradict each other",
                got=say("two settings for {name}", name=name),
                remedy="keep one of them",
            )
        locks[name] = row
    return locks


def lock_text(row: LayerPlan) -> str:
    """A row of a plan as a lock that :func:`read_locks` reads."""
    parts = [row.structure, *(_numbers(value) for value in (row.rank, row.bits) if value is not None)]
    return f"{row.name}={':'.join(parts)}"


def _numbers(value: int | tuple[int, ...]) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read_setting(name: str, text: str) -> LayerPlan:
    structure, *parts = text.split(":")
    try:
        numbers: list[Any] = [
            tuple(map(int, part.split("x"))) if "x" in part else int(part) for part in parts
        ]
    except ValueError:
        numbers = [None] * 9
    if structure == KEEP and not numbers:
        return LayerPlan(name=name, structure=KEEP)
    ranks = int(structure in STRUCTURES and STRUCTURES[structure].factorizes)
    if structure in STRUCTURES and len(numbers) == 1 + ranks and None not in numbers:
        return LayerPlan(name=name, structure=structure, rank=numbers[0] if ranks else None, bits=numbers[-1])
    raise PlanError(
        "not a setting of a layer", got=text, expected="keep, dense:BITS, or STRUCTURE:RANK:BITS as cp:32:4"
    )
