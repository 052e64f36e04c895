"""What the solver is told and what it tells: options, events and stop reasons, free of heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real

from qaf_core.errors import SolverError
from qaf_core.quantization.spec import whole_number
from qaf_core.text.said import say

RHO_POLICIES = ("trace",)


class Method(StrEnum):
    """How a weight becomes factors on a grid; see ``solve_layer``."""

    JOINT = "joint"
    PAPER = "paper"
    SEQUENTIAL = "sequential"
    DENSE = "dense"


METHODS = tuple(Method)


class Status(StrEnum):
    """Why a solve stopped."""

    CONVERGED = "converged"
    STAGNATED = "stagnated"
    MAX_ITERATIONS = "max_iterations"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    DIVERGED = "diverged"
    NONFINITE = "nonfinite"

    @property
    def explanation(self) -> str:
        """One sentence for people."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Status.CONVERGED: "The error stopped changing: more iterations would not lower it.",
    Status.STAGNATED: "No better quantized iterate was found for many iterations; the best one is kept.",
    Status.MAX_ITERATIONS: (
        "The iteration limit was reached; the best iterate is kept, and more iterations may lower the error."
    ),
    Status.TIME_LIMIT: "The time limit was reached; the best iterate so far is kept.",
    Status.CANCELLED: "The solve was stopped on request; the best iterate so far is kept.",
    Status.DIVERGED: "The iteration grew without bound; the best iterate before that is kept.",
    Status.NONFINITE: "The weights hold NaN or infinite values: there is nothing to approximate.",
}

LARGEST_COUNT = 10_000_000
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class SolveEvent:
    """One iteration of one layer's solve; errors are relative Frobenius norms."""

    layer: str
    iteration: int
    float_error: float
    quantized_error: float
    primal_residual: float
    dual_residual: float
    rho: float
    elapsed_seconds: float


def _is_finite_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How long and how hard the joint solver works.

    Attributes:
        starts: Random starts, the best result kept; None: 1 to 3 by size (Tucker-2 begins from its leading
            eigenvectors, once).
        start_iterations: Sweeps of the floating-point alternating least squares that make the start; None: 60
            to 300 by size.
        iterations: ADMM sweeps over the modes.
        inner_iterations: ADMM steps per mode and sweep.
        rounding_rounds: Rounds of error-feedback rounding alternating over the modes, after ADMM (0: none);
            None: 10 to 30 by size.
        descent_sweeps: Coordinate-descent sweeps over a factor's codes after each rounding.
        tolerance: Relative change of the error below which a phase counts as converged.
        patience: Iterations without a better quantized iterate before a phase stops.
        rho_policy: ``trace`` (tr(G)/R, as in arXiv 2308.04595). Balancing the residuals changed no error.
        time_limit_seconds: Wall-clock limit of the solve, all its starts together, or None.

    Raises:
        SolverError: If a field is out of range.
    """

    starts: int | None = None
    start_iterations: int | None = None
    iterations: int = 10
    inner_iterations: int = 3
    rounding_rounds: int | None = None
    descent_sweeps: int = 2
    tolerance: float = 1e-5
    patience: int = 10
    rho_policy: str = "trace"
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        bounds = {
            "starts": (1, 1_000),
            "start_iterations": (1, LARGEST_COUNT),
            "iterations": (0, LARGEST_COUNT),
            "inner_iterations": (1, 100_000),
            "rounding_rounds": (0, LARGEST_COUNT),
            "descent_sweeps": (0, 10_000),
            "patience": (1, LARGEST_COUNT),
        }
        for field, (minimum, maximum) in bounds.items():
            value = getattr(self, field)
            if field in ("starts", "start_iterations", "rounding_rounds") and value is None:
                continue
            number = whole_number(value)
            if number is None or not minimum <= number <= maximum:
                raise SolverError(
                    say("solver option {field} out of range", field=field),
                    got=value,
                    expected=say(
                        "a whole number, at least {minimum}, at most {maximum:,}",
                        minimum=minimum,
                        maximum=maximum,
                    ),
                )
            object.__setattr__(self, field, number)
        if not (_is_finite_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise SolverError(
                "solver option tolerance out of range", got=self.tolerance, expected="0 up to 1"
            )
        if self.rho_policy not in RHO_POLICIES:
            raise SolverError(
                "unknown solver option rho_policy", got=self.rho_policy, expected=", ".join(RHO_POLICIES)
            )
        limit = self.time_limit_seconds
        if limit is not None and not (_is_finite_number(limit) and limit > 0):
            raise SolverError(
                "solver option time_limit_seconds out of range",
                got=limit,
                expected="a positive number or none",
            )
        for field in ("tolerance", "time_limit_seconds"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, int | float):
                object.__setattr__(self, field, float(value))
