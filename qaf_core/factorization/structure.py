"""What the joint solver needs to know of a structure: the quadratic problem of each factor with the others fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qaf_core.factorization.rounding import solve_gram


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """The error as a function of one factor ``A (N, P)``: ``tr(H A G Aᵀ) - 2·tr(A Fᵀ) + const``.

    Attributes:
        gram: ``G (P, P)``.
        linear: ``F (N, P)``, the matricized-tensor-times-Khatri-Rao product of the target.
        row_gram: ``H (N, N)`` where rows are coupled, None for the identity.
    """

    gram: Tensor
    linear: Tensor
    row_gram: Tensor | None = None

    def solution(self, lift: float = 0.0) -> Tensor:
        """The least-squares factor ``H⁻¹ F (G + lift·diag G)⁻¹``, ``(N, P)``."""
        gram = self.gram + torch.diag(lift * self.gram.diagonal()) if lift > 0 else self.gram
        solved = solve_gram(gram, self.linear)
        return solved if self.row_gram is None else solve_gram(self.row_gram, solved.mT).mT

    def squared_error(self, factor: Tensor, constant: float) -> float:
        """The squared error at ``factor``, summed in float64; ``constant`` is the squared norm of the target."""
        image = factor @ self.gram
        if self.row_gram is not None:
            image = self.row_gram @ image
        change = (factor * (image - 2.0 * self.linear)).sum(dtype=torch.float64)
        return max(constant + float(change), 0.0)


class Structure(Protocol):
    """A way to write a tensor as factors; every factor is seen as a matrix."""

    name: str
    target_norm_squared: float
    device: torch.device
    dtype: torch.dtype

    @property
    def order(self) -> tuple[int, ...]:
        """The factors in the order in which a sweep visits them; the last is the output side, factor 0."""

    def random_start(self, generator: torch.Generator) -> list[Tensor]:
        """Factors to start alternating least squares from."""

    def quadratic(self, factors: Sequence[Tensor], mode: int) -> Quadratic:
        """The problem of factor ``mode`` with the others fixed."""

    def balance(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensor with the norms of its components spread evenly over the factors."""

    def lift(self, noise: Sequence[float], mode: int) -> float:
        """Relative raise of the Gram's diagonal when the *other* factors carry relative noise ``noise``."""
