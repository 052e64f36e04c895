"""Rounding with error feedback: integer least squares, one column after another.

With every other factor fixed, the factor ``A (N, P)`` minimises ``tr((A - T) G (A - T)ᵀ)`` over the grid,
where ``T`` is the least-squares solution and ``G (P, P)`` the Gram. Columns are rounded one by one, and the
error of each is carried to the columns still open through the Cholesky factor of ``G⁻¹`` (Babai's nearest
plane; known from GPTQ, arXiv 2210.17323). Coordinate descent on the codes then mends what the greedy order
got wrong. Both work on blocks of columns: inside a block on a small slice, between blocks by one matrix
product.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from qaf_core.quantization.grid import Grid

BLOCK = 64
GRAM_FLOOR = 1e-6  # relative raise of every Gram that is solved with


def damped(gram: Tensor, relative: float = GRAM_FLOOR) -> Tensor:
    """``gram (P, P)``, its diagonal raised by ``relative`` of its mean: it factorizes even when singular."""
    diagonal = gram.diagonal()
    damping = relative * diagonal.mean().clamp_min(torch.finfo(gram.dtype).tiny ** 0.5)
    return gram + torch.diag(damping.expand_as(diagonal))


def cholesky_with_lift(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of ``gram (P, P)``, the diagonal raised tenfold until it succeeds."""
    relative = GRAM_FLOOR
    while True:
        factor: Tensor
        factor, fault = torch.linalg.cholesky_ex(damped(gram, relative))
        if int(fault) == 0 or relative > 1.0:
            return factor
        relative *= 10.0


def solve_gram(gram: Tensor, linear: Tensor) -> Tensor:
    """The least-squares factor ``linear G⁻¹``; ``gram (P, P)``, ``linear (N, P)``."""
    return torch.cholesky_solve(linear.mT, cholesky_with_lift(gram)).mT


def feedback_matrix(gram: Tensor) -> Tensor:
    """Upper Cholesky factor ``(P, P)`` of ``G⁻¹`` with each row divided by its diagonal element.

    With ``G = U Uᵀ``, ``U`` upper triangular, that factor is ``U⁻¹``: no inverse of ``G`` is formed.
    """
    upper = cholesky_with_lift(gram.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    factor: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return factor * upper.diagonal()[:, None]


def gptq_round(target: Tensor, gram: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes of ``target`` that keep ``tr((A - T) G (A - T)ᵀ)`` small, columns of most weight first.

    Args:
        target: ``T (N, P)``, the least-squares solution.
        gram: ``G (P, P)``, positive semi-definite.
        scales: Broadcastable to ``(N, P)``.
        bits: 2 to 8; 32 leaves the target as it is.

    Returns:
        Codes ``(N, P)``, whole numbers in the dtype of ``target``.
    """
    grid = Grid.of(bits)
    if grid.is_float:
        return target / scales
    full_scales = scales.expand_as(target)
    order = torch.argsort(gram.diagonal() * full_scales.square().mean(dim=0), descending=True)
    feedback = feedback_matrix(gram[order][:, order])
    open_values = target.mT[order].contiguous()  # (P, N): a column of the factor is one contiguous row here
    row_scales = full_scales.mT[order].contiguous()
    codes = torch.empty_like(open_values)
    columns = open_values.shape[0]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, block_scales = open_values[first:last], row_scales[first:last]
        carry = feedback[first:last, first:last]
        errors = torch.empty_like(block)
        for i in range(last - first):
            torch.div(block[i], block_scales[i], out=codes[first + i])
            grid.clip_(codes[first + i])
            torch.addcmul(block[i], codes[first + i], block_scales[i], value=-1.0, out=errors[i])
            block[i + 1 :].addr_(carry[i, i + 1 :], errors[i], alpha=-1.0)
        if last < columns:
            open_values[last:].addmm_(feedback[first:last, last:].mT, errors, alpha=-1.0)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.mT.contiguous()


def coordinate_descent(
    codes: Tensor, target: Tensor, gram: Tensor, scales: Tensor, bits: int, *, sweeps: int
) -> Tensor:
    """Coordinate descent on the codes: each moves to its best value with the others fixed.

    The error never rises.

    Args:
        codes: ``(N, P)`` whole numbers.
        target: ``T (N, P)``, the least-squares solution.
        gram: ``G (P, P)``.
        scales: Broadcastable to ``(N, P)``.
        bits: 2 to 8; 32 leaves the codes as they are.
        sweeps: Passes over the columns.
    """
    grid = Grid.of(bits)
    if grid.is_float or sweeps == 0:
        return codes
    full_scales = scales.expand_as(target).mT.contiguous()
    current = codes.mT.contiguous()
    slope = gram @ (current * full_scales - target.mT)  # (P, N): half the gradient by the values
    steepness = gram.diagonal()[:, None] * full_scales
    # A column of no weight has no best value: its codes stay.
    rate = torch.where(steepness > torch.finfo(gram.dtype).tiny, -1.0 / steepness, 0.0)
    columns = current.shape[0]
    for _ in range(sweeps):
        before = current.clone()
        for first in range(0, columns, BLOCK):
            last = min(first + BLOCK, columns)
            block_slope, inner = slope[first:last].clone(), gram[first:last, first:last]
            moves = torch.empty_like(block_slope)
            for i in range(last - first):
                j = first + i
                best = grid.clip_(torch.addcmul(current[j], block_slope[i], rate[j]))
                torch.mul(best - current[j], full_scales[j], out=moves[i])
                current[j] = best
                block_slope.addr_(inner[:, i], moves[i])
            slope.addmm_(gram[:, first:last], moves)
        if torch.equal(before, current):
            break
    return current.mT.contiguous()


def round_rows(
    target: Tensor,
    gram: Tensor | None,
    bits: int,
    *,
    rounds: int = 4,
    sweeps: int = 3,
    deadline: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Integer least squares with one scale per row: ``min Σ_n (s_n·q_n - t_n) G (s_n·q_n - t_n)ᵀ``.

    Codes are found by error feedback and coordinate descent at a fixed scale, the scale then by least squares
    at fixed codes, in turn; each row keeps its best, at worst its plain rounding.

    Args:
        target: ``T (N, P)``.
        gram: ``G (P, P)``; None for the identity, where every code is the nearest one.
        bits: 2 to 8, or 32 for no rounding.
        rounds: Turns of codes and scales.
        sweeps: Coordinate-descent sweeps per turn.
        deadline: Reading of ``time.monotonic`` after which no further turn begins, or None.

    Returns:
        Codes ``(N, P)`` and row scales ``(N, 1)``; the values are codes × row scales.
    """
    grid = Grid.of(bits)
    if grid.is_float:
        return target, target.new_ones(target.shape[0], 1)
    importance = target.new_ones(1, target.shape[1]) if gram is None else gram.diagonal()[None, :]
    best_scales = scales = grid.fit_scales(target, dims=(1,), importance=importance)
    best_codes = grid.round(target, scales)
    best_error = _row_errors(best_codes * scales - target, gram)
    for _ in range(rounds):
        if deadline is not None and time.monotonic() > deadline:
            break
        if gram is None:
            image = codes = grid.round(target, scales)
        else:
            codes = gptq_round(target, gram, scales, bits)
            codes = coordinate_descent(codes, target, gram, scales, bits, sweeps=sweeps)
            image = codes @ gram
        size = (image * codes).sum(dim=1, keepdim=True)
        fitted = (image * target).sum(dim=1, keepdim=True) / size.clamp_min(torch.finfo(target.dtype).tiny)
        scales = torch.where((size > 0) & (fitted > 0), fitted, scales)
        error = _row_errors(codes * scales - target, gram)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes = torch.where(better, codes, best_codes)
        best_scales = torch.where(better, scales, best_scales)
    return best_codes, best_scales


def _row_errors(difference: Tensor, gram: Tensor | None) -> Tensor:
    """``diag(D G Dᵀ)`` as a column ``(N, 1)``."""
    image = difference if gram is None else difference @ gram
    return (image * difference).sum(dim=1, keepdim=True)
