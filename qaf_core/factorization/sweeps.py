"""Sweeps over the factors of one layer, and the state that they change.

Each kind of sweep is a function of the state and the number of the step:

1. *start*: alternating least squares that expects the rounding to come. A grid of ``b`` bits adds relative
   noise ``ε²`` to each factor; in expectation that raises the diagonal of every Gram by ``Π(1 + ε²) - 1``
   over the other factors. Solving with the raised Gram steers away from large components that cancel each
   other, which rounding would break. The raise begins high and falls to its final value, which also finds
   better floating-point minima. At the end the signs of columns are turned to where the grid reaches further.
2. *admm*: the alternating direction method of multipliers of arXiv 2308.04595, §3, with one scale per rank
   component: ``Ã = (F + ρ(A + U))(G + ρI)⁻¹``, ``A = Q(Ã - U)``, ``U += A - Ã``, ``ρ = tr(G)/R``, duals kept
   warm.
3. *rounding*: each factor in turn is rounded with error feedback around its least-squares solution, every
   step taken, scales fitted anew. The error may rise for a sweep before it falls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.rounding import (
    cholesky_with_lift,
    coordinate_descent,
    gptq_round,
    solve_gram,
)
from qaf_core.factorization.subproblem import Quadratic, Subproblem
from qaf_core.quantization.grid import Grid
from qaf_core.quantization.spec import QuantSpec

NOISE_FACTOR = (
    1.75  # error feedback leaves a smaller error but moves more than plain rounding; flat between 1.5 and 2.5
)
FIRST_DAMPING = 0.6  # the raise of the Gram's diagonal at the first start sweep; it falls geometrically
FALL_SHARE = 0.6  # share of the start sweeps over which it falls
# What rounding to 8 bits adds to a component, relative to its power: measured 2e-4 to 1.2e-3, of which first
# layers feel several times as much. At fewer bits narrower ranges are chosen, so that it grows with the step
# and not with its square. (Real ResNet-20, A8, divergence with 0: W8 0.0227 at ratio 2, 0.0160 with this.)
ACTIVATION_NOISE = 4e-3


@dataclass(kw_only=True)
class Best:
    """The best quantized iterate so far."""

    error: float = math.inf
    codes: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class State:
    """Everything a sweep reads and changes.

    ``values`` holds the factors as they enter the next quadratic problem: floating-point during the start, on
    the grid afterwards. ``float_values`` are the factors of the last start sweep. Errors are relative.
    """

    subproblem: Subproblem
    spec: QuantSpec
    options: SolverOptions
    values: list[Tensor]
    codes: list[Tensor]
    scales: list[Tensor]
    duals: list[Tensor]
    best: Best = field(default_factory=Best)
    float_values: list[Tensor] = field(default_factory=list)
    float_error: float = math.inf
    quantized_error: float = math.inf
    primal_residual: float = 0.0
    dual_residual: float = 0.0
    rho: float = 0.0
    iteration: int = 0

    @classmethod
    def begin(
        cls,
        subproblem: Subproblem,
        spec: QuantSpec,
        options: SolverOptions,
        values: Sequence[Tensor],
    ) -> State:
        """Before the first sweep, at floating-point factors."""
        return cls(
            subproblem=subproblem, spec=spec, options=options, values=list(values),
            codes=[torch.zeros_like(v) for v in values], scales=[torch.ones_like(v[:1]) for v in values],
            duals=[torch.zeros_like(v) for v in values],
        )  # fmt: skip

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-width of each factor."""
        return self.spec.bits_of(len(self.values))

    def problem(self, values: Sequence[Tensor], mode: int) -> Quadratic:
        """The problem of one factor, with the noise that rounded activations are expected to bring."""
        noise = [activation_noise(self.spec.activation_bits)] * len(values)
        return self.subproblem.quadratic(values, mode).raised(self.subproblem.damping(noise, mode))

    def fit_scales(self, values: Tensor, mode: int) -> Tensor:
        """Scales of factor ``mode`` for such values, of the granularity asked for."""
        return fit_factor_scales(
            values, self.bits[mode], self.spec.granularity, mode, self.subproblem.shared_rows
        )

    def relative(self, squared: float) -> float:
        """A squared error as a relative norm."""
        return math.sqrt(squared / self.subproblem.target_norm_squared)

    def note_quantized(self, error: float) -> bool:
        """Record the error of the current codes; True if it is the best so far."""
        self.quantized_error = error
        if not error < self.best.error:
            return False
        self.best = Best(
            error=error, codes=[c.clone() for c in self.codes], scales=[s.clone() for s in self.scales]
        )
        return True


def activation_noise(bits: int) -> float:
    """Relative noise that rounding what passes from link to link is expected to add to each component."""
    return 0.0 if Grid.of(bits).is_float else ACTIVATION_NOISE * 2.0 ** (8 - bits)


def start_sweep(limit: int, *, warm: bool) -> Callable[[State, int], None]:
    """A least-squares sweep with Grams raised for the rounding to come; the raise falls over
    ``FALL_SHARE·limit`` sweeps.
    """

    def sweep(state: State, step: int) -> None:
        noise = [NOISE_FACTOR * Grid.of(b).relative_noise for b in state.bits]
        progress = 1.0 if warm else min(1.0, step / (FALL_SHARE * limit))
        for mode in state.subproblem.order:
            final = max(state.subproblem.damping(noise, mode), 1e-7)
            damping = FIRST_DAMPING ** (1.0 - progress) * final**progress if final < FIRST_DAMPING else final
            problem = state.problem(state.values, mode)
            state.values[mode] = problem.solution(damping)
        # The last factor visited is A: its rows are never coupled, so the error costs no further product.
        norm_squared = state.subproblem.target_norm_squared
        squared = problem.squared_error_at_solution(state.values[0], damping, norm_squared)
        state.values = state.subproblem.balance(state.values)
        state.float_error = state.relative(squared)
        state.float_values = list(state.values)
        state.quantized_error = math.inf

    return sweep


def align_signs(subproblem: Subproblem, values: Sequence[Tensor], bits: Sequence[int]) -> list[Tensor]:
    """Turn the signs of columns, two factors at a time, to where plain rounding loses least.

    A grid reaches one step further below zero than above it: a quarter of its levels at two bits.
    """
    losses = [
        [column_losses(sign * values[mode], bits[mode]) for sign in (1, -1)] for mode in subproblem.paired
    ]
    turns = [turn for turn in itertools.product((0, 1), repeat=len(losses)) if sum(turn) % 2 == 0]
    totals = [sum(loss[turned] for loss, turned in zip(losses, turn, strict=True)) for turn in turns]
    chosen = torch.stack([torch.as_tensor(total) for total in totals]).argmin(dim=0).tolist()
    oriented = list(values)
    for position, mode in enumerate(subproblem.paired):
        signs = [1.0 - 2.0 * turns[choice][position] for choice in chosen]
        oriented[mode] = values[mode] * values[mode].new_tensor(signs)
    return oriented


def column_losses(values: Tensor, bits: int) -> Tensor:
    """Squared error of rounding each column at its own scale, relative to the column, ``(P,)``."""
    grid = Grid.of(bits)
    if grid.is_float:
        return torch.zeros_like(values[0])
    scales = grid.fit_scales(values, dims=(0,))
    lost = (grid.round(values, scales) * scales - values).square().sum(dim=0)
    return lost / values.square().sum(dim=0).clamp_min(torch.finfo(values.dtype).tiny)


def round_to_nearest(state: State) -> None:
    """Round each factor to its own grid, without feedback: the quantized error of a floating-point
    iterate.
    """
    for mode, (values, bits) in enumerate(zip(state.values, state.bits, strict=True)):
        state.scales[mode] = state.fit_scales(values, mode)
        state.codes[mode] = Grid.of(bits).round(values, state.scales[mode])
    rounded = [codes * scales for codes, scales in zip(state.codes, state.scales, strict=True)]
    problem = state.problem(rounded, 0)
    state.note_quantized(
        state.relative(problem.squared_error(rounded[0], state.subproblem.target_norm_squared))
    )


def fit_factor_scales(values: Tensor, bits: int, granularity: str, mode: int, shared_rows: int = 1) -> Tensor:
    """Scales of factor ``mode``: ``(1, 1)`` by ``tensor``, ``(1, P)`` by ``rank``.

    By ``rank_row`` factor 0 has a scale per output channel, ``shared_rows`` rows of it, besides: ``(N, P)``,
    an outer product.
    """
    grid = Grid.of(bits)
    if granularity == "tensor":
        return grid.fit_scales(values, dims=(0, 1))
    by_column = grid.fit_scales(values, dims=(0,))
    if granularity == "rank" or mode != 0 or grid.is_float:
        return by_column
    by_channel = (values / by_column).reshape(len(values) // shared_rows, -1)
    by_row = grid.fit_scales(by_channel, dims=(1,)).repeat_interleave(shared_rows, dim=0)
    return by_column * by_row


def admm_sweep(
    fit: Callable[[Tensor, int], Tensor] | None = None, inner_tolerance: float = 0.0
) -> Callable[[State, int], None]:
    """Inner ADMM steps on every factor in turn (arXiv 2308.04595, algorithm 1), with projection to the grid.

    Args:
        fit: Scales for the values of a factor, by its number; None: as the state has them.
        inner_tolerance: The inner steps end once the squared residuals, relative to the factor, are below it.
    """

    def sweep(state: State, step: int) -> None:
        del step
        primal = dual = size = 0.0
        for mode in state.subproblem.order:
            problem = state.problem(state.values, mode)
            gram, grid = problem.gram, Grid.of(state.bits[mode])
            rho = float(gram.diagonal().mean())
            shifted = cholesky_with_lift(
                gram + rho * torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            )
            target = problem.solve_rows(problem.linear)
            for _ in range(state.options.inner_iterations):
                before = state.values[mode]
                smooth = torch.cholesky_solve((target + rho * (before + state.duals[mode])).mT, shifted).mT
                aim = smooth - state.duals[mode]
                state.scales[mode] = (fit or state.fit_scales)(aim, mode)
                state.codes[mode] = grid.round(aim, state.scales[mode])
                state.values[mode] = state.codes[mode] * state.scales[mode]
                state.duals[mode] = state.duals[mode] + state.values[mode] - smooth
                if inner_tolerance and max(_changes(state.values[mode], smooth, before)) < inner_tolerance:
                    break
            primal += float((state.values[mode] - smooth).square().sum())
            dual += float((state.values[mode] - before).square().sum())
            size += float(state.values[mode].square().sum())
            state.rho = rho
        norm = state.subproblem.target_norm_squared
        state.float_error = state.relative(problem.squared_error(smooth, norm))
        state.primal_residual, state.dual_residual = (
            math.sqrt(primal / max(size, 1e-30)),
            math.sqrt(dual / max(size, 1e-30)),
        )
        state.note_quantized(state.relative(problem.squared_error(state.values[mode], norm)))

    return sweep


def _changes(values: Tensor, *others: Tensor) -> list[float]:
    """Squared distances, relative to the values."""
    size = max(float(values.square().sum()), 1e-30)
    return [float((values - other).square().sum()) / size for other in others]


def rounding_sweep(state: State, step: int) -> None:
    """Error-feedback rounding of every factor in turn around its least-squares solution, each step taken."""
    if step == 0:  # from the best point on the grid, which need not be ADMM's last
        state.values = [
            codes * scales for codes, scales in zip(state.best.codes, state.best.scales, strict=True)
        ]
    primal = dual = size = squared = 0.0
    for mode in state.subproblem.order:
        problem = state.problem(state.values, mode)
        before, bits = state.values[mode], state.bits[mode]
        target = problem.solution()
        scales = state.fit_scales(target, mode)
        codes = gptq_round(target, problem.gram, scales, bits)
        sweeps = state.options.descent_sweeps
        codes = coordinate_descent(codes, target, problem.gram, scales, bits, sweeps=sweeps)
        state.codes[mode], state.scales[mode], state.values[mode] = codes, scales, codes * scales
        primal += float((state.values[mode] - target).square().sum())
        dual += float((state.values[mode] - before).square().sum())
        size += float(state.values[mode].square().sum())
    state.float_error = state.relative(
        problem.squared_error_at_solution(target, 0.0, state.subproblem.target_norm_squared)
    )
    refit_column_scales(state, problem)
    squared = problem.squared_error(state.values[0], state.subproblem.target_norm_squared)
    state.primal_residual, state.dual_residual = (
        math.sqrt(primal / max(size, 1e-30)),
        math.sqrt(dual / max(size, 1e-30)),
    )
    state.rho = 0.0
    state.note_quantized(state.relative(squared))


def refit_column_scales(state: State, problem: Quadratic) -> None:
    """Scale the columns of factor 0 to least squares: ``(G ∘ AᵀA) d = diag(AᵀF)``; codes stay. One scale
    for all has no such freedom.
    """
    factor = state.values[0]
    if state.spec.granularity == "tensor":
        return
    inner = factor.mT @ problem.couple_rows(factor)
    linear = (factor * problem.linear).sum(dim=0, keepdim=True)
    multipliers = solve_gram(problem.gram * inner, linear).clamp(0.25, 4.0)
    state.scales[0] = state.scales[0] * multipliers
    state.values[0] = factor * multipliers
