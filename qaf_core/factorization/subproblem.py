"""What the joint solver needs of a structure: the quadratic problem of each factor with the others fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from qaf_core.factorization.rounding import GRAM_FLOOR, cholesky_with_lift, solve_gram


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """The error as a function of one factor ``A (N, P)``: ``tr(H A G Aᵀ) - 2·tr(A Fᵀ) + const``.

    Attributes:
        gram: ``G (P, P)``.
        linear: ``F (N, P)``, the matricized-tensor-times-Khatri-Rao product of the target.
        row_gram: ``H (M, M)`` where rows are coupled, in consecutive groups of ``M``; None for the identity.
    """

    gram: Tensor
    linear: Tensor
    row_gram: Tensor | None = None

    def raised(self, share: float) -> Quadratic:
        """With the Gram's diagonal raised by a share: components with relative noise of that power."""
        if not share:
            return self
        return replace(self, gram=self.gram + torch.diag(share * self.gram.diagonal()))

    def solution(self, damping: float = 0.0) -> Tensor:
        """The least-squares factor ``H⁻¹ F (G + damping·diag G)⁻¹``, ``(N, P)``."""
        return self.solve_rows(solve_gram(self.raised(damping).gram, self.linear))

    def solve_rows(self, factor: Tensor) -> Tensor:
        """``H⁻¹`` applied to the rows of ``factor (N, P)``."""
        if self.row_gram is None:
            return factor
        groups = factor.reshape(-1, len(self.row_gram), factor.shape[1])
        triangular = cholesky_with_lift(self.row_gram).expand(len(groups), -1, -1)
        return torch.cholesky_solve(groups, triangular).reshape_as(factor)

    def couple_rows(self, factor: Tensor) -> Tensor:
        """``H`` applied to the rows of ``factor (N, P)``."""
        if self.row_gram is None:
            return factor
        return (self.row_gram @ factor.reshape(-1, len(self.row_gram), factor.shape[1])).reshape_as(factor)

    def squared_error(self, factor: Tensor, constant: float) -> float:
        """The squared error at ``factor``, summed in float64; ``constant``: the target's squared norm."""
        image = self.couple_rows(factor @ self.gram)
        change = (factor * (image - 2.0 * self.linear)).sum(dtype=torch.float64)
        return max(constant + float(change), 0.0)

    def squared_error_at_solution(self, factor: Tensor, damping: float, constant: float) -> float:
        """The squared error at ``solution(damping)``, at no product: ``A (G + damping·diag G) = F`` there."""
        diagonal = self.gram.diagonal()
        raise_by = damping * diagonal + GRAM_FLOOR * (1 + damping) * diagonal.mean()
        raised = (factor.square().sum(dim=0, dtype=torch.float64) * raise_by).sum()
        return max(constant - float((factor * self.linear).sum(dtype=torch.float64) + raised), 0.0)


class Subproblem(Protocol):
    """A way to write a tensor as factors; every factor is seen as a matrix.

    Attributes:
        shared_rows: Consecutive rows of factor 0 that belong to one output channel, and share its scale.
    """

    shared_rows: int
    target: Tensor
    target_norm_squared: float
    device: torch.device
    dtype: torch.dtype

    @property
    def order(self) -> tuple[int, ...]:
        """The factors in the order in which a sweep visits them; the last is the output side, factor 0."""

    @property
    def draws_start(self) -> bool:
        """Whether ``random_start`` draws anything, so that another seed gives another start."""

    def random_start(self, generator: torch.Generator) -> list[Tensor]:
        """Factors to start alternating least squares from."""

    def quadratic(self, factors: Sequence[Tensor], mode: int) -> Quadratic:
        """The problem of factor ``mode`` with the others fixed."""

    def balance(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensor with the norms of its components spread evenly over the factors."""

    @property
    def paired(self) -> tuple[int, ...]:
        """Factors of which two may turn the sign of a column together, and the tensor stays."""

    @property
    def sweep_operations(self) -> float:
        """Floating-point operations of one sweep over the factors, roughly."""

    def damping(self, noise: Sequence[float], mode: int) -> float:
        """Relative raise of the Gram's diagonal when the *other* factors carry relative noise ``noise``."""

    def resume(self, values: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Factors to start from, out of those of another solve; ``seed`` of what has to be added.

        Raises:
            SolverError: If they are of another weight shape, or of a rank that cannot be changed.
        """

    def decompose(self, seed: int, deadline: float) -> list[Tensor]:
        """Floating-point factors by TensorLy.

        Args:
            seed: Of a random start.
            deadline: Reading of ``time.monotonic`` after which it ends soon.

        Raises:
            SolverError: If TensorLy cannot factorize the tensor.
        """
