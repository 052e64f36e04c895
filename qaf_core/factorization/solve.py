"""One weight tensor in, integer factors out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.admm import OnEvent
from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.baselines import round_factors, solve_paper, tensorly_factors
from qaf_core.factorization.factors import Factors, as_stored_codes, row_errors
from qaf_core.factorization.input_weighting import channel_moment, refit_output_side
from qaf_core.factorization.intake import (
    as_target,
    check_published,
    checked_covariance,
    checked_rank,
    checked_seed,
    checked_weight,
)
from qaf_core.factorization.multistart import ENDED_EARLY, solve_from_starts
from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.rounding import round_rows
from qaf_core.factorization.structures import STRUCTURES, Rank
from qaf_core.factorization.subproblem import Subproblem
from qaf_core.factorization.warm_start import warm_values
from qaf_core.quantization.grid import FLOAT
from qaf_core.quantization.spec import QuantSpec
from qaf_core.text.said import Said, say

#: From here on the error of the whole weight tells by itself that channels are lost.
HIDING_ERROR = 0.5
__all__ = ["STRUCTURES", "SolveResult", "relative_error", "solve_layer", "with_factors"]


@dataclass(frozen=True, kw_only=True)
class SolveResult:
    """The outcome of one solve.

    Attributes:
        factors: Integer codes and scales.
        relative_error: ‖W - Ŵ‖_F / ‖W‖_F of the quantized factors, recomputed from ``factors.reconstruct()``.
        float_relative_error: The same for the floating-point factors the rounding began from.
        status: Why the solve stopped.
        iterations: Sweeps over the factors.
        seconds: Wall-clock time.
        worst_row_error: ‖w - ŵ‖ / ‖w‖ of the output channel that is met worst; zero rows do not count.
        lost_rows: Output channels of which less than half of the size is left. The relative error of the
            whole weight does not show them where they are small beside the others.
    """

    factors: Factors
    relative_error: float
    float_relative_error: float
    status: Status
    iterations: int
    seconds: float
    worst_row_error: float = 0.0
    lost_rows: int = 0

    @property
    def finding(self) -> Said | None:
        """A sentence where output channels are lost and the whole weight's error hides it; else None."""
        if not self.lost_rows or self.relative_error >= HIDING_ERROR:
            return None
        rows = self.factors.weight_shape[0]
        return say(
            "{lost} of {rows} output channels lost more than half of their size: they are small beside the "
            "others, so that the error of the whole weight, {error:.2g} %, does not show it; dense keeps a "
            "scale for each channel",
            lost=self.lost_rows,
            rows=rows,
            error=100 * self.relative_error,
        )


def solve_layer(
    weight: Tensor,
    structure: str = "cp",
    rank: Rank = None,
    spec: QuantSpec | None = None,
    options: SolverOptions | None = None,
    method: str = "joint",
    seed: int = 0,
    input_covariance: Tensor | None = None,
    on_event: OnEvent | None = None,
    layer: str = "layer",
    start: Factors | None = None,
) -> SolveResult:
    """Write one weight tensor as factors on integer grids.

    Args:
        weight: A convolution's ``(C_out, C_in, k, …)`` over one, two or three dimensions, or a linear layer's
            ``(out, in)``; any floating-point dtype; half precision is computed in float32.
        structure: One of ``STRUCTURES``: ``cp`` and ``tucker2`` (weights with a kernel), ``svd`` (the weight
            as a matrix of ``C_out`` rows), ``dense`` (rounded only).
        rank: R; for ``tucker2`` the pair (R_out, R_in); not used by ``dense``. At most the structure's
            ``largest_rank``, the one limit that plans have too.
        spec: Bit-width and granularity of the grids (default: 4 bits, one scale per rank component).
        options: Limits and tolerances.
        method: ``joint``, ``paper`` (arXiv 2308.04595), ``sequential`` (TensorLy, then rounded) or ``dense``.
        seed: The same seed gives the same codes on the same machine.
        input_covariance: Second moment of the layer's input, ``(C_in·K,)*2`` with ``K`` kernel positions, or
            ``(C_in, C_in)`` read as Σ⊗I.
        on_event: Called with a ``SolveEvent`` as the solve goes on; it may raise ``RunCancelled`` to stop.
        layer: Name that the events carry.
        start: Factors to begin with instead of a random start (``joint`` only): those of the same weight at
            another bit-width or, for ``cp`` and ``svd``, another rank.

    Returns:
        A ``SolveResult``; a numerical failure is a ``Status`` there, not an exception.

    Raises:
        SolverError: For a tensor, rank, structure, method or covariance that cannot be taken.
    """
    began = time.monotonic()
    structure = "dense" if method == "dense" else structure
    weight, seed = checked_weight(weight), checked_seed(seed)
    target = as_target(weight, structure, method)
    task = _Task(
        weight=weight, structure=structure, rank=checked_rank(rank, structure, weight.shape),
        spec=spec or QuantSpec(), options=options or SolverOptions(), method=method, seed=seed, layer=layer,
        on_event=on_event, start=start,
    )  # fmt: skip
    if not bool(torch.isfinite(target).all()):
        return _trivial(task, target, Status.NONFINITE, began)
    if not bool(target.any()):
        return _trivial(task, target, Status.CONVERGED, began)
    covariance = checked_covariance(input_covariance, weight, target)
    # A power of two, so that the codes do not depend on the size and no square over- or underflows.
    size = 2.0 ** math.floor(math.log2(float(target.abs().max())))
    solve = _factorize if STRUCTURES[structure].factorizes else _round
    outcome, factors = solve(task, target / size, covariance, size)
    return _result(task, outcome, factors, size, began)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """How a weight is to be solved; all of it checked."""

    weight: Tensor
    structure: str
    rank: Rank
    spec: QuantSpec
    options: SolverOptions
    method: str
    seed: int
    layer: str
    on_event: OnEvent | None
    start: Factors | None

    def factors(self, codes: list[Tensor], scales: list[Tensor], spec: QuantSpec | None = None) -> Factors:
        """Factors of the weight, on grids as asked for unless others are given."""
        bits = (spec or self.spec).bits_of(len(codes))
        return Factors(
            structure=self.structure, weight_shape=tuple(self.weight.shape), bits=bits, scales=tuple(scales),
            codes=tuple(as_stored_codes(c, b) for c, b in zip(codes, bits, strict=True)),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a method leaves: ``floats`` are the factors the rounding began from."""

    codes: list[Tensor]
    scales: list[Tensor]
    floats: list[Tensor]
    status: Status
    iterations: int


def _factorize(
    task: _Task, target: Tensor, covariance: Tensor | None, size: float
) -> tuple[_Outcome, Factors]:
    """Factors of ``target``, the weight over ``size``."""
    shape = task.weight.shape
    check_published(task.structure, task.method, shape)
    moment = None
    if covariance is not None and task.method == "joint":
        moment = channel_moment(covariance, shape[1])
    algebra = ALGEBRAS[task.structure](shape)
    problem = algebra.subproblem(target, task.rank, moment)
    warm = None if task.start is None else warm_values(problem, task.structure, task.start, size, task.seed)
    outcome = _solve_factors(task, problem, warm)
    outcome = replace(
        outcome, codes=algebra.stored(outcome.codes), scales=algebra.stored_scales(outcome.scales),
        floats=algebra.stored(outcome.floats),
    )  # fmt: skip
    factors = task.factors(outcome.codes, outcome.scales)
    per_position = covariance is not None and moment is not None and len(moment) < len(covariance)
    if covariance is not None and per_position and outcome.status not in ENDED_EARLY:
        weight = task.weight.to(target) / size
        factors = refit_output_side(weight, covariance, factors, task.spec.granularity, problem.shared_rows)
    return outcome, factors


def _solve_factors(task: _Task, problem: Subproblem, start: list[Tensor] | None) -> _Outcome:
    bits = task.spec.bits_of(len(problem.order))
    common: dict[str, Any] = {
        "options": task.options, "seed": task.seed, "layer": task.layer, "on_event": task.on_event
    }  # fmt: skip
    if task.method == "paper":
        state, status = solve_paper(problem, bits, **common)
        iterations = state.iteration
    elif task.method == "sequential":
        floats, status = tensorly_factors(problem, task.seed, task.options.time_limit_seconds)
        codes, scales = round_factors(floats, bits, task.spec.granularity, problem.shared_rows)
        return _Outcome(codes=codes, scales=scales, floats=floats, status=status, iterations=0)
    else:
        state, status, iterations = solve_from_starts(problem, task.spec, start=start, **common)
    return _Outcome(
        codes=state.best.codes, scales=state.best.scales, floats=state.float_values, status=status,
        iterations=iterations,
    )  # fmt: skip


def _round(task: _Task, target: Tensor, covariance: Tensor | None, _size: float) -> tuple[_Outcome, Factors]:
    """The weight itself on the grid."""
    began = time.monotonic()
    (bits,) = task.spec.bits_of(1)
    matrix = target.reshape(target.shape[0], -1)
    if covariance is None or covariance.shape[0] == matrix.shape[1]:
        gram = covariance
    else:
        gram = torch.kron(covariance, torch.eye(target.shape[2], device=matrix.device, dtype=matrix.dtype))
    limit = task.options.time_limit_seconds
    codes, scales = round_rows(matrix, gram, bits, deadline=None if limit is None else began + limit)
    late = limit is not None and time.monotonic() > began + limit
    status = Status.TIME_LIMIT if late else Status.CONVERGED
    outcome = _Outcome(codes=[codes], scales=[scales], floats=[matrix], status=status, iterations=1)
    return outcome, task.factors(outcome.codes, outcome.scales)


def _result(task: _Task, outcome: _Outcome, factors: Factors, size: float, began: float) -> SolveResult:
    """The factors at the weight's own size, with what they lose."""
    factors = replace(factors, scales=(factors.scales[0] * size, *factors.scales[1:]))
    if not bool(torch.isfinite(factors.scales[0]).all()):
        kind = str(factors.scales[0].dtype).removeprefix("torch.")
        raise SolverError(
            say("the scales of weight are beyond {kind}", kind=kind),
            got=say("weights of {size:.0e}", size=size),
            remedy="divide the weight",
        )
    floats = [outcome.floats[0] * size, *outcome.floats[1:]]
    unrounded = task.factors(floats, [f.new_ones(1) for f in floats], QuantSpec(bits=FLOAT.bits))
    errors = row_errors(task.weight, factors)
    return SolveResult(
        factors=factors, relative_error=errors.total, worst_row_error=errors.worst, lost_rows=errors.lost,
        float_relative_error=relative_error(task.weight, unrounded), status=outcome.status,
        iterations=outcome.iterations, seconds=time.monotonic() - began,
    )  # fmt: skip


def relative_error(weight: Tensor, factors: Factors) -> float:
    """‖W - Ŵ‖_F / ‖W‖_F, summed in float64; 0 for a zero weight that is met exactly."""
    return row_errors(weight, factors).total


def _trivial(task: _Task, target: Tensor, status: Status, began: float) -> SolveResult:
    """Zero factors, for weights that are all zero or not finite."""
    form = STRUCTURES[task.structure]
    codes = [target.new_zeros(shape) for shape in form.factor_shapes(task.weight.shape, task.rank)]
    scales = [target.new_ones(1, part.shape[1], *[1] * (part.ndim - 2)) for part in codes]
    if not form.factorizes:
        scales = [target.new_ones(len(target), 1)]
    error = math.nan if status is Status.NONFINITE else 0.0
    return SolveResult(
        factors=task.factors(codes, scales), relative_error=error, float_relative_error=error, status=status,
        iterations=0, seconds=time.monotonic() - began,
    )  # fmt: skip


def with_factors(result: SolveResult, factors: Factors, weight: Tensor) -> SolveResult:
    """The result with other factors (after a fit to outputs), its errors computed anew."""
    errors = row_errors(weight, factors)
    return replace(
        result,
        factors=factors,
        relative_error=errors.total,
        worst_row_error=errors.worst,
        lost_rows=errors.lost,
    )
