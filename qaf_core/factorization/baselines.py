"""The methods a user compares with: float factorization then rounding, and the published ADMM.

Letters as in :mod:`qaf_core.factorization.algebra.cp`.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.admm import OnEvent, Phase, iterate
from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.subproblem import Subproblem
from qaf_core.factorization.sweeps import Best, State, admm_sweep, fit_factor_scales
from qaf_core.quantization.grid import Grid
from qaf_core.quantization.spec import QuantSpec

PAPER_START_SWEEPS = 50
PAPER_SCALE_POINTS = 200
PAPER_OUTER_TOLERANCE = 1e-5
PAPER_INNER_TOLERANCE = 1e-8
PAPER_OUTER_LIMIT = 1000


def tensorly_factors(
    problem: Subproblem, seed: int, time_limit_seconds: float | None = None
) -> tuple[list[Tensor], Status]:
    """Floating-point factors by TensorLy: CP, truncated SVD or partial Tucker, as the structure solves them.

    Args:
        problem: The target and its algebra.
        seed: Of the start of CP.
        time_limit_seconds: Wall-clock limit, read by CP (the others are one decomposition); None for none.

    Returns:
        The factors, and whether the limit cut them short.

    Raises:
        SolverError: If TensorLy is not installed.
    """
    deadline = math.inf if time_limit_seconds is None else time.monotonic() + time_limit_seconds
    try:
        import tensorly
    except ImportError as error:
        raise SolverError("method sequential needs TensorLy", remedy="pip install tensorly") from error
    with tensorly.backend_context("pytorch"):
        factors = problem.decompose(seed, deadline)
    late = time.monotonic() > deadline
    return problem.balance(factors), Status.TIME_LIMIT if late else Status.CONVERGED


def round_factors(
    factors: list[Tensor], bits: tuple[int, ...], granularity: str, shared_rows: int = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """Codes and scales of floating-point factors, each rounded to its own grid of least squared error."""
    codes, scales = [], []
    for mode, (values, width) in enumerate(zip(factors, bits, strict=True)):
        if granularity == "tensor":
            scale = search_tensor_scale(values, width)
        else:
            scale = fit_factor_scales(values, width, granularity, mode, shared_rows)
        codes.append(Grid.of(width).round(values, scale))
        scales.append(scale)
    return codes, scales


def search_tensor_scale(values: Tensor, bits: int) -> Tensor:
    """One scale ``(1, 1)`` for a factor: the best of 200 clipping points over 0.2 to 1.2 of the peak."""
    grid = Grid.of(bits)
    if grid.is_float:
        return values.new_ones(1, 1)
    peak = values.abs().max()
    if float(peak) <= torch.finfo(values.dtype).tiny:
        return values.new_ones(1, 1)
    points = torch.linspace(0.2, 1.2, PAPER_SCALE_POINTS, device=values.device, dtype=values.dtype)
    candidates = (points * peak / grid.high).reshape(-1, 1)
    flat = values.reshape(1, -1)
    # In slices, so that 200 copies of a large factor never stand in memory at once.
    parts = torch.split(candidates, 20)
    errors = torch.cat([(grid.round(flat, part) * part - flat).square_().sum(dim=1) for part in parts])
    best: Tensor = candidates[errors.argmin()]
    return best.reshape(1, 1)


def correct_errors(
    problem: Subproblem, factors: list[Tensor], bound_squared: float, sweeps: int, deadline: float = math.inf
) -> list[Tensor]:
    """Error-preserving correction: least total size of the components within the given squared error.

    Per factor ``min Σ_r ‖a_r‖²‖b_r‖²‖c_r‖²`` within the bound has the solution ``F (G + μ·diag G)⁻¹``; ``μ``
    is found by bisection (Phan et al., "Stable low-rank tensor decomposition for compression of convolutional
    neural network", 2020).
    """
    for _ in range(sweeps):
        if time.monotonic() > deadline:
            break
        for mode in problem.order:
            part = problem.quadratic(factors, mode)
            low, high = -9.0, 3.0
            for _ in range(12):
                middle = (low + high) / 2
                trial = part.solution(10.0**middle)
                inside = part.squared_error(trial, problem.target_norm_squared) <= bound_squared
                low, high = (middle, high) if inside else (low, middle)
            factors[mode] = part.solution(10.0**low)
        factors = problem.balance(factors)
    return factors


def paper_start(problem: Subproblem, seed: int, deadline: float = math.inf) -> list[Tensor]:
    """50 sweeps of alternating least squares, then 50 of error-preserving correction, as published."""
    factors = problem.random_start(torch.Generator().manual_seed(seed))
    squared = math.inf
    for _ in range(PAPER_START_SWEEPS):
        if time.monotonic() > deadline:
            return factors
        for mode in problem.order:
            part = problem.quadratic(factors, mode)
            factors[mode] = part.solution(1e-7)
            squared = part.squared_error(factors[mode], problem.target_norm_squared)
        factors = problem.balance(factors)
    return correct_errors(problem, factors, squared * (1 + 1e-4), PAPER_START_SWEEPS, deadline)


def solve_paper(
    problem: Subproblem,
    bits: tuple[int, ...],
    *,
    options: SolverOptions,
    seed: int,
    layer: str,
    on_event: OnEvent | None,
) -> tuple[State, Status]:
    """AO-ADMM as published (arXiv 2308.04595): one symmetric scale per factor, searched in every inner step.

    Returns:
        The final state (codes and scales are in its ``best``, the start in its ``float_values``) and why it
        stopped.
    """
    began = time.monotonic()
    limit = options.time_limit_seconds
    start = paper_start(problem, seed, math.inf if limit is None else began + limit)
    state = State.begin(problem, QuantSpec(bits=bits, granularity="tensor"), options, start)
    state.float_values = start
    state.codes, state.scales = round_factors(start, bits, "tensor")
    state.best = Best(codes=list(state.codes), scales=list(state.scales))
    phase = Phase(
        name="paper",
        sweep=admm_sweep(lambda aim, mode: search_tensor_scale(aim, bits[mode]), PAPER_INNER_TOLERANCE),
        limit=PAPER_OUTER_LIMIT,
        watches_quantized=True,
        settled=lambda previous, current: abs(previous - current) < PAPER_OUTER_TOLERANCE,
    )
    return state, iterate(state, [phase], layer=layer, on_event=on_event, began=began)
