"""The best setting of every layer under budgets, exactly: a multiple-choice program solved by HiGHS.

What layers' harms come to together is a root of a sum of powers (``harm_together``): the program adds up the
powers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import PlanError
from qaf_core.search.sensitivity.settings import TOGETHER, Setting, harm_together
from qaf_core.text.said import say

SECONDS = 20.0
GAP = 1e-4
REACHED = 1e3  # what the objective comes to in the units that the solver is given
MOST_UNITS, SMALLEST_UNIT = 4, 1e-10  # tries to find these units; of the largest coefficient
HARM = "harm"
TIGHT = 1e-6  # what a hundredth of a limit is worth at least, in the solver's units
SMALLEST = 1e-12
Floats = NDArray[np.float64]
_STDOUT = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting with what it takes of every budget, by name."""

    setting: Setting
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What all layers together may take.

    Attributes:
        name: Of a cost, or ``harm``.
        limit: The most that is allowed.
        fixed: What is taken whatever is chosen.
        text: The limit for people.
        to_text: An amount for people; None for the way of its kind.
    """

    name: str
    limit: float
    fixed: float
    text: str
    to_text: Callable[[float], str] | None = None

    @property
    def left(self) -> float:
        """What the program may spend."""
        left = self.limit - self.fixed
        return max(left, 0.0) ** TOGETHER if self.name == HARM else left

    def total(self, spent: float) -> float:
        """All that is taken where the program spends so much."""
        return self.fixed + (spent ** (1.0 / TOGETHER) if self.name == HARM else spent)

    def amount_text(self, total: float) -> str:
        """An amount for people."""
        if self.to_text is not None:
            return self.to_text(total)
        if self.name == "size":
            return f"size={total / 1e3:.4g}kB"
        return f"{self.name}={total:.4g}" + ("ms" if self.name == "latency" else "")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A setting for every layer.

    Attributes:
        settings: By layer.
        harm: What their expected harms come to.
        totals: What they take of each limit, what is fixed included.
        binding: The limit that holds the choice back most, or None where none does.
        price: How much of the objective a hundredth more of the binding limit is worth.
    """

    settings: Mapping[str, Setting]
    harm: float
    totals: Mapping[str, float]
    binding: str | None
    price: float


def allocate(
    choices: Mapping[str, Sequence[Choice]], limits: Sequence[Limit], *, minimise: str = HARM
) -> Allocation:
    """One setting for each layer, their harm together (or a cost) as small as can be within the limits.

    Args:
        choices: Of each layer, at least one.
        limits: At least one.
        minimise: ``harm``, or the name of a cost.

    Raises:
        PlanError: If nothing meets the limits; it names the nearest that can be met, and what is in the way.
    """
    kept = {name: undominated(rows) for name, rows in choices.items()}
    table = _Table(kept, limits, minimise)
    for limit in limits:
        _check_reachable(kept, limit)
    chosen = table.solve()
    if chosen is None:
        raise _together_unmeetable(table, limits)
    settings = {name: kept[name][index].setting for name, index in zip(kept, chosen, strict=True)}
    totals = {
        limit.name: limit.total(
            sum(_cost(kept[name][index], limit.name) for name, index in zip(kept, chosen, strict=True))
        )
        for limit in limits
    }
    harm = harm_together(row.harm for row in settings.values())
    binding, price = table.price(limits)
    if minimise == HARM:  # of the sum of powers: of its root
        price *= max(harm, SMALLEST) ** (1.0 - TOGETHER) / TOGETHER
    return Allocation(settings=settings, harm=harm, totals=totals, binding=binding, price=price)


def undominated(rows: Sequence[Choice]) -> list[Choice]:
    """The choices to which no other is equal or better in harm and all costs; of equal ones the first."""
    numbers = np.array([[row.setting.harm, *row.costs.values()] for row in rows])
    kept = []
    for index, own in enumerate(numbers):
        as_good = (numbers <= own).all(axis=1)
        better = as_good & (numbers < own).any(axis=1)
        if not better.any() and not as_good[:index].any():
            kept.append(rows[index])
    return kept


class _Table:
    """The program's numbers: one column a choice, layer after layer."""

    def __init__(
        self, choices: Mapping[str, Sequence[Choice]], limits: Sequence[Limit], minimise: str
    ) -> None:
        rows = [(layer, row) for layer, settings in enumerate(choices.values()) for row in settings]
        self.layers = np.array([layer for layer, _ in rows])
        self.objective = np.array([_cost(row, minimise) for _, row in rows])
        self.takes = np.array([[_cost(row, limit.name) for _, row in rows] for limit in limits])
        self.allowed = np.array([limit.left for limit in limits])
        self.count = len(choices)

    def solve(self) -> list[int] | None:
        """The number of each layer's choice; None where nothing meets the limits."""
        solution = self._program(self.objective / self._unit, self.takes, self.allowed)
        return None if solution is None else self._read(solution)

    def _read(self, solution: Floats) -> list[int]:
        return [int(solution[self.layers == layer].argmax()) for layer in range(self.count)]

    @cached_property
    def _unit(self) -> float:
        """What the solver is given the objective in: a thousandth of what it comes to.

        The solver is content with a millionth of what it is given. The harms of two bits are a million times
        those of eight: in units of the largest, most differences would be below that.
        """
        largest = max(float(np.abs(self.objective).max()), 1e-300)
        unit = largest
        for _ in range(MOST_UNITS):
            result = self._relaxed(unit)
            finer = float(result.fun) * unit / REACHED if result.status == 0 else unit
            finer = max(finer, SMALLEST_UNIT * largest)
            if finer > 0.5 * unit:
                break
            unit = finer
        return unit

    def _relaxed(self, unit: float) -> Any:
        """The program with shares of choices, by ``scipy.optimize.linprog``."""
        from scipy.optimize import linprog

        sizes = _sizes(self.allowed)
        return linprog(
            self.objective / unit,
            A_ub=self.takes / sizes[:, None],
            b_ub=self.allowed / sizes,
            A_eq=self._one_each(0),
            b_eq=np.ones(self.count),
            bounds=(0, 1),
            method="highs",
        )

    def _one_each(self, extra: int) -> Any:
        """The equations that each layer has one choice, with columns of other unknowns behind."""
        from scipy.sparse import csr_array

        columns = len(self.layers)
        return csr_array(
            (np.ones(columns), (self.layers, np.arange(columns))), shape=(self.count, columns + extra)
        )

    def _program(self, objective: Floats, takes: Floats, allowed: Floats) -> Floats | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        extra, sizes = len(objective) - len(self.layers), _sizes(allowed)
        with _nothing_on_stdout():
            result = milp(
                objective,
                integrality=np.r_[np.ones(len(self.layers)), np.zeros(extra)],
                bounds=Bounds(0.0, np.r_[np.ones(len(self.layers)), np.full(extra, np.inf)]),
                constraints=[
                    LinearConstraint(self._one_each(extra), 1.0, 1.0),
                    LinearConstraint(takes / sizes[:, None], -np.inf, allowed / sizes),
                ],
                options={"time_limit": SECONDS, "mip_rel_gap": GAP},
            )
        solution: Floats | None = result.x
        return solution

    def nearest(self) -> float:
        """The smallest factor by which all limits together would have to grow."""
        shares = self.takes / np.maximum(self.allowed, 1e-300)[:, None]
        takes = np.c_[shares, np.full(len(shares), -1.0)]
        objective = np.r_[np.zeros(len(self.layers)), 1.0]
        solution = self._program(objective, takes, np.zeros(len(self.allowed)))
        return float("inf") if solution is None else float(solution[-1])

    def price(self, limits: Sequence[Limit]) -> tuple[str | None, float]:
        """The limit whose hundredth is worth most of the objective, by the program's relaxation."""
        result = self._relaxed(self._unit)
        if result.status != 0:
            return None, 0.0
        worth = -result.ineqlin.marginals * 0.01
        best = int(worth.argmax())
        return (limits[best].name, float(worth[best]) * self._unit) if worth[best] > TIGHT else (None, 0.0)


def _sizes(allowed: Floats) -> Floats:
    """What constraints are divided by: harms are small, and the solver's tolerances are meant for ones."""
    return np.where(allowed > 0.0, allowed, 1.0)


@contextlib.contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """HiGHS prints a line where it repairs a solution, which would stand beside a command's JSON.

    The descriptor belongs to the process: one thread at a time sets it aside, or another would bring back
    what was no longer the output.
    """
    library = ctypes.CDLL(None)
    with _STDOUT:
        kept = os.dup(1)
        library.fflush(None)
        try:
            os.dup2(2, 1)
            yield
            library.fflush(None)
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _cost(row: Choice, name: str) -> float:
    return row.setting.harm**TOGETHER if name == HARM else row.costs[name]


def _check_reachable(choices: Mapping[str, Sequence[Choice]], limit: Limit) -> None:
    """Raise PlanError where a limit alone cannot be met."""
    least = {name: min(_cost(row, limit.name) for row in rows) for name, rows in choices.items()}
    nearest = limit.total(sum(least.values()))
    if nearest <= limit.limit * (1 + 1e-12):
        return
    worst = max(least, key=lambda name: least[name])
    layer = say("{layer} (locked)", layer=worst) if len(choices[worst]) == 1 else worst
    remedy = say("{layer} is most in the way", layer=layer)
    if limit.to_text is None:
        need = limit.amount_text(least[worst])
        remedy = say("{layer} is most in the way: it takes {least} at least", layer=layer, least=need)
    raise PlanError(
        "nothing meets the budget",
        got=limit.text,
        expected=say("at least {least}", least=limit.amount_text(nearest)),
        remedy=remedy,
    )


def _together_unmeetable(table: _Table, limits: Sequence[Limit]) -> PlanError:
    factor = table.nearest()
    return PlanError(
        "each budget can be met, but not all together",
        got=", ".join(limit.text for limit in limits),
        expected=say(
            "about {amounts}",
            amounts=", ".join(limit.amount_text(limit.total(limit.left * factor)) for limit in limits),
        ),
        remedy="loosen one of them",
    )
