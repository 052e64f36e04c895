"""One dial for how hard the solver works: the options of each stop, free of heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from qaf_core.errors import SolverError


class Effort(StrEnum):
    """How hard the solver works on each layer."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


#: Fields of ``SolverOptions``; those of the standard stop are its defaults, some of them by a layer's size.
_OPTIONS: Mapping[Effort, Mapping[str, Any]] = MappingProxyType(
    {
        Effort.QUICK: {"starts": 1, "start_iterations": 60, "iterations": 4, "rounding_rounds": 8},
        Effort.STANDARD: {},
        # Does all that the standard stop does, and more of it: never worse where time suffices.
        Effort.THOROUGH: {
            "starts": 8, "rounding_rounds": 60, "patience": 20, "time_limit_seconds": 120.0,
        },
    }
)  # fmt: skip
#: Time of a solve against the standard one, about.
_WORK: Mapping[Effort, float] = MappingProxyType(
    {Effort.QUICK: 0.3, Effort.STANDARD: 1.0, Effort.THOROUGH: 5.0}
)
#: Seconds of refinement in a search.
REFINING_SECONDS: Mapping[Effort, float] = MappingProxyType(
    {Effort.QUICK: 0.0, Effort.STANDARD: 600.0, Effort.THOROUGH: 3600.0}
)


def read_effort(text: str) -> Effort:
    """The effort of that name.

    Raises:
        SolverError: If there is none.
    """
    try:
        return Effort(text)
    except ValueError as error:
        raise SolverError("unknown effort", got=text, expected=", ".join(Effort)) from error


def effort_options(effort: str) -> dict[str, Any]:
    """The solver's options at a stop of the dial, by name; none at the standard one.

    Raises:
        SolverError: If there is no such stop.
    """
    return dict(_OPTIONS[read_effort(effort)])


def effort_of(options: Mapping[str, Any]) -> Effort:
    """The stop of the dial that a plan's options are; the standard one where they are of none."""
    matches = (effort for effort, row in _OPTIONS.items() if row and row.items() <= options.items())
    return next(matches, Effort.STANDARD)


def work_share(options: Mapping[str, Any]) -> float:
    """About how long a solve with a plan's options takes, against one with none."""
    return _WORK[effort_of(options)]
