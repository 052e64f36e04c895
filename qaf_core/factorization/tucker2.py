"""Tucker-2 structure of a convolution weight: both channel modes are reduced, the kernel is not.

Legend: ``X (I, J, K)`` is the target, ``U (I, P)`` and ``V (J, Q)`` the output- and input-side factors,
``D_k (P, Q)`` the core at kernel position ``k``; ``X_k ≈ U D_k Vᵀ``. Inside the solver the core is the matrix
of all ``D_k`` stacked, ``(K·P, Q)``: its Gram over columns is ``VᵀV``, and its rows are coupled by ``UᵀU``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qaf_core.factorization.subproblem import Quadratic


class Tucker2:
    """Tucker-2 of ``target (I, J, K)`` at ranks ``(P, Q)``, optionally under a second moment of the inputs.

    Args:
        target: ``(I, J, K)``.
        ranks: ``P ≤ I`` and ``Q ≤ J``.
        moment: ``S (J, J)`` or None; the error is then ``‖(X - X̂) ×_J S^½‖``.
    """

    name = "tucker2"
    draws_start = False
    order = (2, 1, 0)
    paired = (1, 2)  # the core's columns and those of V

    def __init__(self, target: Tensor, ranks: tuple[int, int], moment: Tensor | None = None) -> None:
        self.target = target
        self.ranks = ranks
        self.moment = moment
        self.device, self.dtype = target.device, target.dtype
        self._slices = target.permute(2, 0, 1).contiguous()  # (K, I, J)
        self._weighted = self._slices if moment is None else self._slices @ moment
        self.target_norm_squared = float((self._slices * self._weighted).sum(dtype=torch.float64))

    @property
    def sweep_operations(self) -> float:
        """Floating-point operations of one sweep over the factors, roughly."""
        rows, columns, positions = self.target.shape
        return 4.0 * positions * rows * columns * sum(self.ranks)

    def random_start(self, generator: torch.Generator) -> list[Tensor]:
        """Leading eigenvectors of both channel modes (HOSVD) and their least-squares core; no draws."""
        del generator
        rank_out, rank_in = self.ranks
        outer = torch.linalg.eigh((self._slices @ self._weighted.mT).sum(dim=0))[1][:, -rank_out:].flip(1)
        inner = torch.linalg.eigh((self._slices.mT @ self._slices).sum(dim=0))[1][:, -rank_in:].flip(1)
        factors = [
            outer.contiguous(),
            outer.new_zeros(len(self._slices) * rank_out, rank_in),
            inner.contiguous(),
        ]
        factors[1] = self.quadratic(factors, 1).solution()
        return factors

    def _core(self, factors: Sequence[Tensor]) -> Tensor:
        return factors[1].reshape(len(self._slices), *self.ranks)

    def quadratic(self, factors: Sequence[Tensor], mode: int) -> Quadratic:
        """``G`` and ``F`` of a factor; rows of the core are coupled by ``UᵀU``, rows of V by the moment."""
        outer, inner = factors[0], factors[2]
        if mode == 0:
            maps = self._core(factors) @ inner.mT  # (K, P, J)
            weighted = maps if self.moment is None else maps @ self.moment
            return Quadratic(
                gram=torch.einsum("kpj,kqj->pq", weighted, maps),
                linear=torch.einsum("kij,kpj->ip", self._weighted, maps),
            )
        if mode == 1:
            projected = inner if self.moment is None else self.moment @ inner
            linear = outer.mT @ (self._weighted @ inner)  # (K, P, Q)
            return Quadratic(
                gram=projected.mT @ inner, linear=linear.reshape(-1, self.ranks[1]), row_gram=outer.mT @ outer
            )
        maps = outer @ self._core(factors)  # (K, I, Q)
        gram = torch.einsum("kip,kiq->pq", maps, maps)
        linear = torch.einsum("kij,kiq->jq", self._slices, maps)
        if self.moment is None:
            return Quadratic(gram=gram, linear=linear)
        return Quadratic(gram=gram, linear=self.moment @ linear, row_gram=self.moment)

    def balance(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Columns of U and V of unit norm; the core carries the size."""
        tiny = torch.finfo(self.dtype).tiny ** 0.5
        outer_norm, inner_norm = (factors[i].norm(dim=0).clamp_min(tiny) for i in (0, 2))
        core = self._core(factors) * outer_norm[:, None] * inner_norm
        return [factors[0] / outer_norm, core.reshape(-1, self.ranks[1]), factors[2] / inner_norm]

    def lift(self, noise: Sequence[float], mode: int) -> float:
        """The raise that independent noise of the other factors means: about ``Π(1 + noise) - 1``."""
        return math.prod(1.0 + noise[other] for other in range(len(noise)) if other != mode) - 1.0

    def as_stored(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Codes or scales as ``Factors`` keeps them: the core as ``(P, Q, K)``."""
        outer, core, inner = matrices
        if core.shape[0] == 1:  # scales shared by all rows
            return [outer, core.reshape(1, -1, 1), inner]
        return [outer, self._core([outer, core, inner]).permute(1, 2, 0).contiguous(), inner]
