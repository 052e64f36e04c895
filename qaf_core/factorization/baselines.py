"""The methods a user compares with: float factorization then rounding, and the published ADMM.

Letters as in :mod:`qaf_core.factorization.cp`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.errors import RunCancelled, SolverError
from qaf_core.factorization.admm import OnEvent, fit_factor_scales, solve_joint
from qaf_core.factorization.cp import Canonical
from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
from qaf_core.factorization.rounding import cholesky_with_lift
from qaf_core.factorization.tucker2 import Tucker2
from qaf_core.quantization.grid import FLOAT, Grid

TENSORLY_ITERATIONS = 50
TENSORLY_RIDGES = (0.0, 1e-6, 1e-3)
PAPER_START_SWEEPS = 50
PAPER_SCALE_POINTS = 200
PAPER_OUTER_TOLERANCE = 1e-5
PAPER_INNER_TOLERANCE = 1e-8
PAPER_OUTER_LIMIT = 1000


def tensorly_factors(
    structure: Canonical | Tucker2, seed: int, time_limit_seconds: float | None = None
) -> tuple[list[Tensor], Status]:
    """Floating-point factors by TensorLy: CP, truncated SVD or partial Tucker, as the structure solves them.

    Args:
        structure: The target and its algebra.
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
        from tensorly.decomposition import partial_tucker
    except ImportError as error:
        raise SolverError("method sequential needs TensorLy", remedy="pip install tensorly") from error
    target = structure.target
    with tensorly.backend_context("pytorch"):
        if isinstance(structure, Tucker2):
            (core, (outer, inner)), _ = partial_tucker(target, list(structure.ranks), modes=[0, 1])
            factors = [outer, core.permute(2, 0, 1).reshape(-1, structure.ranks[1]), inner]
        elif target.ndim == 2:
            left, values, right = tensorly.truncated_svd(target, n_eigenvecs=structure.rank)
            factors = [left * values, right.mT.contiguous()]
        else:
            factors = _tensorly_cp(structure, seed, deadline)
    late = time.monotonic() > deadline
    return structure.balance(factors), Status.TIME_LIMIT if late else Status.CONVERGED


def _tensorly_cp(structure: Canonical, seed: int, deadline: float) -> list[Tensor]:
    """CP by TensorLy from the floating-point start that the joint solver would make at 32 bits.

    TensorLy's own random start leaves components so large that even 8 bits cannot hold their cancellation:
    that would measure the start, not the rounding. A ridge is added where its equations are singular.
    """
    from tensorly.decomposition import parafac

    floating = (FLOAT.bits,) * structure.target.ndim
    limit = None if math.isinf(deadline) else max(deadline - time.monotonic(), 1e-3)
    options = SolverOptions(time_limit_seconds=limit)
    start, _ = solve_joint(structure, floating, granularity="rank", options=options, seed=seed)
    for ridge in TENSORLY_RIDGES:
        try:
            weights, factors = parafac(
                structure.target,
                structure.rank,
                n_iter_max=TENSORLY_ITERATIONS,
                init=(None, [values.clone() for values in start.float_values]),
                tol=1e-6,
                l2_reg=ridge,
                callback=lambda *_: time.monotonic() > deadline,
            )
        except RuntimeError as error:
            if "singular" not in str(error):
                raise
            continue
        return [factors[0] * weights, *factors[1:]]
    rank = f"rank {structure.rank}"
    raise SolverError("TensorLy cannot factorize this tensor", got=rank, remedy="use a lower rank")


def round_factors(
    factors: list[Tensor], bits: tuple[int, ...], granularity: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Codes and scales of floating-point factors, each rounded to its own grid of least squared error."""
    codes, scales = [], []
    for mode, (values, width) in enumerate(zip(factors, bits, strict=True)):
        if granularity == "tensor":
            scale = search_tensor_scale(values, width)
        else:
            scale = fit_factor_scales(values, width, granularity, mode)
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
    structure: Canonical, factors: list[Tensor], bound_squared: float, sweeps: int, deadline: float = math.inf
) -> list[Tensor]:
    """Error-preserving correction: least total size of the components within the given squared error.

    Per factor ``min Σ_r ‖a_r‖²‖b_r‖²‖c_r‖²`` within the bound has the solution ``F (G + μ·diag G)⁻¹``; ``μ``
    is found by bisection (Phan et al., "Stable low-rank tensor decomposition for compression of convolutional
    neural network", 2020).
    """
    for _ in range(sweeps):
        if time.monotonic() > deadline:
            break
        for mode in structure.order:
            problem = structure.quadratic(factors, mode)
            low, high = -9.0, 3.0
            for _ in range(12):
                middle = (low + high) / 2
                trial = problem.solution(10.0**middle)
                inside = problem.squared_error(trial, structure.target_norm_squared) <= bound_squared
                low, high = (middle, high) if inside else (low, middle)
            factors[mode] = problem.solution(10.0**low)
        factors = structure.balance(factors)
    return factors


def paper_start(structure: Canonical, seed: int, deadline: float = math.inf) -> list[Tensor]:
    """50 sweeps of alternating least squares, then 50 of error-preserving correction, as published."""
    factors = structure.random_start(torch.Generator().manual_seed(seed))
    squared = math.inf
    for _ in range(PAPER_START_SWEEPS):
        if time.monotonic() > deadline:
            return factors
        for mode in structure.order:
            problem = structure.quadratic(factors, mode)
            factors[mode] = problem.solution(1e-7)
            squared = problem.squared_error(factors[mode], structure.target_norm_squared)
        factors = structure.balance(factors)
    return correct_errors(structure, factors, squared * (1 + 1e-4), PAPER_START_SWEEPS, deadline)


def solve_paper(
    structure: Canonical,
    bits: tuple[int, ...],
    *,
    options: SolverOptions,
    seed: int,
    layer: str,
    on_event: OnEvent | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Status, int]:
    """AO-ADMM as published (arXiv 2308.04595): one symmetric scale per factor, searched in every inner step.

    Returns:
        Codes, scales, the floating-point start, status and outer iterations.
    """
    began = time.monotonic()
    norm = structure.target_norm_squared
    limit = options.time_limit_seconds
    deadline = math.inf if limit is None else began + limit
    start = paper_start(structure, seed, deadline)
    values = list(start)
    duals = [torch.zeros_like(v) for v in values]
    best_error, best, previous = math.inf, round_factors(values, bits, "tensor"), math.inf
    codes, scales = (list(part) for part in best)
    status, iteration = Status.MAX_ITERATIONS, 0
    try:
        for iteration in range(1, PAPER_OUTER_LIMIT + 1):
            for mode in structure.order:
                step = _paper_mode(structure, values, duals[mode], mode, bits[mode], options.inner_iterations)
                codes[mode], scales[mode] = step.codes, step.scale
                values[mode], duals[mode] = step.values, step.dual
            error = math.sqrt(step.squared_error / norm)
            if not math.isfinite(error):
                status = Status.DIVERGED
                break
            if error < best_error:
                best_error, best = error, (list(codes), list(scales))
            elapsed = time.monotonic() - began
            if on_event is not None:
                on_event(SolveEvent(
                    layer=layer, iteration=iteration, quantized_error=error, rho=step.rho,
                    float_error=math.sqrt(step.smooth_squared_error / norm), elapsed_seconds=elapsed,
                    primal_residual=step.primal_residual, dual_residual=step.dual_residual,
                ))  # fmt: skip
            if abs(previous - error) < PAPER_OUTER_TOLERANCE:
                status = Status.CONVERGED
                break
            if time.monotonic() > deadline:
                status = Status.TIME_LIMIT
                break
            previous = error
    except RunCancelled:
        status = Status.CANCELLED
    return *best, start, status, iteration


@dataclass(frozen=True, kw_only=True)
class _PaperStep:
    """What the inner iterations of one factor leave; ``dual`` is the scaled dual variable."""

    codes: Tensor
    scale: Tensor
    values: Tensor
    dual: Tensor
    rho: float
    primal_residual: float
    dual_residual: float
    smooth_squared_error: float
    squared_error: float


def _paper_mode(
    structure: Canonical, values: list[Tensor], dual: Tensor, mode: int, bits: int, inner_iterations: int
) -> _PaperStep:
    """The inner ADMM iterations of one factor."""
    problem = structure.quadratic(values, mode)
    gram = problem.gram
    rho = float(gram.diagonal().mean())
    factor = cholesky_with_lift(gram + rho * torch.eye(gram.shape[0], device=gram.device, dtype=gram.dtype))
    current = values[mode]
    codes, scale, smooth = current, current.new_ones(1, 1), current
    primal = dual_change = 0.0
    for _ in range(inner_iterations):
        before = current
        smooth = torch.cholesky_solve((problem.linear + rho * (current + dual)).mT, factor).mT
        scale = search_tensor_scale(smooth - dual, bits)
        codes = Grid.of(bits).round(smooth - dual, scale)
        current = codes * scale
        dual = dual + current - smooth
        size = max(float(current.square().sum()), 1e-30)
        primal = float((current - smooth).square().sum()) / size
        dual_change = float((current - before).square().sum()) / size
        if primal < PAPER_INNER_TOLERANCE and dual_change < PAPER_INNER_TOLERANCE:
            break
    norm = structure.target_norm_squared
    return _PaperStep(
        codes=codes, scale=scale, values=current, dual=dual, rho=rho, primal_residual=math.sqrt(primal),
        dual_residual=math.sqrt(dual_change), smooth_squared_error=problem.squared_error(smooth, norm),
        squared_error=problem.squared_error(current, norm),
    )  # fmt: skip
