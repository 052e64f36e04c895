"""Canonical polyadic structure of a matrix or a three-way tensor.

Legend: ``X (I, J, K)`` is the target, ``A (I, R)``, ``B (J, R)``, ``C (K, R)`` the factors,
``X ≈ Σ_r a_r ∘ b_r ∘ c_r``; ``G`` is the Hadamard product of the other factors' Grams, ``F`` the matricized
tensor times their Khatri-Rao product. A matrix (no ``C``) gives the two-factor forms; its columns are
``(·, J)``, the channels of one kernel position beside each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.admm import solve_joint
from qaf_core.factorization.algebra.base import Algebra, LinkWeight, identity, row_and_column
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.structures import Rank
from qaf_core.factorization.structures import cp as descriptor
from qaf_core.factorization.structures.base import one_number
from qaf_core.factorization.subproblem import Quadratic
from qaf_core.quantization.grid import FLOAT
from qaf_core.quantization.spec import QuantSpec
from qaf_core.text.said import say

NEW_COMPONENT_SIZE = 0.1
TENSORLY_ITERATIONS = 50
TENSORLY_RIDGES = (0.0, 1e-6, 1e-3)


def khatri_rao(left: Tensor, right: Tensor) -> Tensor:
    """Column-wise Kronecker product of ``(M, R)`` and ``(N, R)``: ``(M·N, R)``, rows of ``right`` fastest."""
    return (left[:, None, :] * right[None, :, :]).reshape(-1, left.shape[1])


class Canonical:
    """CP of ``target`` at a fixed rank, optionally under a second moment of the inputs.

    Args:
        target: ``(I, J, K)``, or a matrix of columns ``(·, J)``.
        rank: R ≥ 1.
        moment: ``S (J, J)`` or None; the error is then ``‖(X - X̂) ×_J S^½‖``, for all kernel positions alike.
        shared_rows: Consecutive rows of A that belong to one output channel.
    """

    draws_start = True

    def __init__(self, target: Tensor, rank: int, moment: Tensor | None = None, shared_rows: int = 1) -> None:
        self.target = target
        self.shared_rows = shared_rows
        self.rank = rank
        self.moment = moment
        self.device, self.dtype = target.device, target.dtype
        weighted = target
        if moment is not None:
            weighted = self._couple(target.movedim(1, 0).reshape(target.shape[1], -1))
            weighted = weighted.reshape(target.movedim(1, 0).shape).movedim(0, 1)
        self.target_norm_squared = float((target * weighted).sum(dtype=torch.float64))
        self._rows = target.reshape(len(target), -1)  # X_(1) (I, J·K)
        self._weighted_rows = self._rows if moment is None else weighted.reshape(len(target), -1).contiguous()
        self._projected: tuple[Tensor, Tensor] | None = None
        self._grams: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def order(self) -> tuple[int, ...]:
        """The output side, factor 0, comes last."""
        return (1, 2, 0) if self.target.ndim == 3 else (1, 0)

    def random_start(self, generator: torch.Generator) -> list[Tensor]:
        """Gaussian factors of the target's norm; the draws do not depend on device or dtype."""
        draws = [
            torch.randn(size, self.rank, generator=generator, dtype=torch.float64)
            for size in self.target.shape
        ]
        norm = max(float(self.target.norm()), torch.finfo(self.dtype).tiny)
        size = norm / math.sqrt(self.target.numel() * self.rank)
        return [draw.to(self.device, self.dtype) * size ** (1 / self.target.ndim) for draw in draws]

    def _gram(self, factors: Sequence[Tensor], mode: int) -> Tensor:
        """The Gram of one factor ``(R, R)``, under the moment for B; kept until the factor changes."""
        factor = factors[mode]
        kept = self._grams.get(mode)
        if kept is None or kept[0] is not factor:
            weighted = self._couple(factor) if mode == 1 else factor
            kept = self._grams[mode] = (factor, factor.mT @ weighted)
        return kept[1]

    def quadratic(self, factors: Sequence[Tensor], mode: int) -> Quadratic:
        """``G`` and ``F`` of factor ``mode``; rows of B are coupled by the moment."""
        others = [other for other in range(len(factors)) if other != mode]
        gram = self._gram(factors, others[0])
        for other in others[1:]:
            gram = gram * self._gram(factors, other)
        linear = self._linear(factors, mode)
        if mode == 1 and self.moment is not None:
            return Quadratic(gram=gram, linear=self._couple(linear), row_gram=self.moment)
        return Quadratic(gram=gram, linear=linear)

    def _couple(self, rows: Tensor) -> Tensor:
        """The moment applied to rows of channels ``(J, P)``, or ``(K·J, P)`` position by position."""
        if self.moment is None:
            return rows
        groups = rows.reshape(-1, len(self.moment), rows.shape[1])
        return (self.moment @ groups).reshape_as(rows)

    def _linear(self, factors: Sequence[Tensor], mode: int) -> Tensor:
        """The MTTKRP of a factor; for B that of the unweighted target.

        B and C share the product ``X_(1)ᵀ A`` while A stands still (a dimension tree; Phan et al. 2013,
        doi:10.1109/TSP.2013.2269903), so that a sweep over three factors needs two large products, not three.
        """
        if mode == 0:
            joined = factors[1] if len(factors) == 2 else khatri_rao(factors[1], factors[2])
            return self._weighted_rows @ joined
        projection = self._project(factors[0])
        if len(factors) == 2:
            return projection
        cube = projection.reshape(*self.target.shape[1:], -1)  # (J, K, R)
        if mode == 1:
            return (cube * factors[2]).sum(dim=1)
        return (cube * self._couple(factors[1])[:, None, :]).sum(dim=0)

    def _project(self, outer: Tensor) -> Tensor:
        """``X_(1)ᵀ A (J·K, R)``, kept until A is another tensor."""
        if self._projected is None or self._projected[0] is not outer:
            self._projected = (outer, self._rows.mT @ outer)
        return self._projected[1]

    def balance(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Columns of equal norm across the factors, component by component."""
        tiny = torch.finfo(self.dtype).tiny ** 0.25
        norms = [factor.norm(dim=0).clamp_min(tiny) for factor in factors]
        mean = torch.stack(norms).log().mean(dim=0).exp()
        return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]

    @property
    def paired(self) -> tuple[int, ...]:
        """All factors: a component is the product of its columns."""
        return tuple(range(self.target.ndim))

    @property
    def sweep_operations(self) -> float:
        """Two for each of the target's numbers, components and factors."""
        return 2.0 * self.target.ndim * self.target.numel() * self.rank

    def damping(self, noise: Sequence[float], mode: int) -> float:
        """The raise that independent relative noise of the other factors means: ``Π(1 + noise) - 1``."""
        return math.prod(1.0 + noise[other] for other in range(len(noise)) if other != mode) - 1.0

    def resume(self, values: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Factors of this rank out of others: the largest components stay, small random ones are added."""
        if [len(value) for value in values] != list(self.target.shape):
            raise SolverError(
                "the start is of another weight shape",
                got=[len(value) for value in values],
                expected=list(self.target.shape),
            )
        values = self.balance(values)
        strength = torch.stack([value.norm(dim=0) for value in values]).prod(dim=0)
        kept = torch.argsort(strength, descending=True)[: self.rank].sort()[0]
        values = [value[:, kept] for value in values]
        missing = self.rank - len(kept)
        if missing:
            fresh = self.random_start(torch.Generator().manual_seed(seed))
            values = [
                torch.cat([value, NEW_COMPONENT_SIZE * new[:, :missing]], dim=1)
                for value, new in zip(values, fresh, strict=True)
            ]
        return [value.contiguous() for value in values]

    def decompose(self, seed: int, deadline: float) -> list[Tensor]:
        """By TensorLy: a truncated SVD of a matrix; CP from the start that the joint solver would make.

        TensorLy's own random start leaves components so large that even 8 bits cannot hold how they cancel:
        that would measure the start, not the rounding. A ridge is added where its equations are singular.
        """
        import tensorly
        from tensorly.decomposition import parafac

        if self.target.ndim == 2:
            left, values, right = tensorly.truncated_svd(self.target, n_eigenvecs=self.rank)
            return [left * values, right.mT.contiguous()]
        limit = None if math.isinf(deadline) else max(deadline - time.monotonic(), 1e-3)
        options = SolverOptions(time_limit_seconds=limit)
        start, _ = solve_joint(self, QuantSpec(bits=FLOAT.bits), options=options, seed=seed)
        for ridge in TENSORLY_RIDGES:
            try:
                weights, factors = parafac(
                    self.target,
                    self.rank,
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
        raise SolverError(
            "TensorLy cannot factorize this tensor",
            got=say("rank {rank}", rank=self.rank),
            remedy="use a lower rank",
        )


class CanonicalAlgebra(Algebra):
    """A ``(I, R)``, B ``(J, R)``, C ``(K, R)``, stored as they are solved."""

    structure = descriptor.Canonical()

    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Canonical:
        """CP of the cube."""
        return Canonical(target, one_number(rank), moment)

    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """``A (B ⊙ C)ᵀ``."""
        return (values[0] @ khatri_rao(values[1], values[2]).mT).reshape(-1, *self.weight_shape[1:])

    def exact(self, weight: Tensor) -> list[Tensor]:
        """One component for each pair of indices of the two smaller dimensions."""
        cube = self.target(weight)
        free = max(range(3), key=lambda mode: cube.shape[mode])
        first, second = (mode for mode in range(3) if mode != free)
        factors = {
            first: identity(cube, first).repeat_interleave(cube.shape[second], dim=1),
            second: identity(cube, second).repeat(1, cube.shape[first]),
            free: cube.movedim(free, 0).flatten(1),
        }
        return [factors[mode] for mode in range(3)]

    def noise_before_last(self, values: Sequence[Tensor], moment: Tensor) -> Tensor | None:
        """The depthwise link keeps components apart, each of like range."""
        _, inner, kernel = values
        powers = ((moment @ inner) * inner).sum(dim=0) * kernel.square().sum(dim=0)
        return torch.diag(powers.clamp_min(0.0).sqrt())

    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """The depthwise link holds all column scales."""
        row, column = row_and_column(scales[0], codes[0])
        column = column * scales[1].expand_as(column)
        middle = scales[2].expand_as(column) * column
        return [
            (codes[1].mT.contiguous(), torch.ones_like(column)),
            (codes[2].mT.contiguous(), middle),
            (codes[0], row),
        ]

    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Outer, inner, depthwise."""
        inner, middle, outer = (weight.flatten(1) for weight in weights)
        return [outer, inner.mT.contiguous(), middle.mT.contiguous()]
