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

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra.base import Algebra, LinkWeight, identity, row_and_column
from qaf_core.factorization.structures import Rank
from qaf_core.factorization.structures import tucker2 as descriptor
from qaf_core.factorization.subproblem import Quadratic


class Tucker2:
    """Tucker-2 of ``target (I, J, K)`` at ranks ``(P, Q)``, optionally under a second moment of the inputs.

    Args:
        target: ``(I, J, K)``.
        ranks: ``P ≤ I`` and ``Q ≤ J``.
        moment: ``S (J, J)`` or None; the error is then ``‖(X - X̂) ×_J S^½‖``.
    """

    draws_start = False
    shared_rows = 1
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

    def damping(self, noise: Sequence[float], mode: int) -> float:
        """The raise that independent noise of the other factors means: about ``Π(1 + noise) - 1``."""
        return math.prod(1.0 + noise[other] for other in range(len(noise)) if other != mode) - 1.0

    def resume(self, values: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Factors of the same ranks at other bits."""
        del seed
        outer, _, inner = values
        ranks = (outer.shape[1], inner.shape[1])
        if ranks != self.ranks or [len(outer), len(inner)] != list(self.target.shape[:2]):
            raise SolverError("the start is of another shape or rank", got=ranks, expected=self.ranks)
        return self.balance(values)

    def decompose(self, seed: int, deadline: float) -> list[Tensor]:
        """Partial Tucker by TensorLy."""
        del seed, deadline
        from tensorly.decomposition import partial_tucker

        (core, (outer, inner)), _ = partial_tucker(self.target, list(self.ranks), modes=[0, 1])
        return [outer, core.permute(2, 0, 1).reshape(-1, self.ranks[1]), inner]


class Tucker2Algebra(Algebra):
    """U_out ``(I, P)``, core ``(P, Q, K)``, U_in ``(J, Q)``."""

    structure = descriptor.Tucker2()

    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Tucker2:
        """Tucker-2 of the cube."""
        return Tucker2(target, descriptor.pair_of(rank), moment)

    def stored(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """The core by ranks and kernel position."""
        outer, core, inner = matrices
        cube = core.reshape(-1, outer.shape[1], inner.shape[1])
        return [outer, cube.permute(1, 2, 0).contiguous(), inner]

    def stored_scales(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """All rows of the core share theirs."""
        outer, core, inner = scales
        return [outer, core.reshape(1, -1, 1), inner]

    def matrices(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The core's slices stacked."""
        outer, core, inner = values
        return [outer, core.permute(2, 0, 1).reshape(-1, core.shape[1]), inner]

    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """``U D_k Vᵀ`` at each position."""
        left = torch.tensordot(values[0], values[1], dims=1)  # (I, Q, K)
        return torch.einsum("ijk,lj->ilk", left, values[2]).reshape(-1, *self.weight_shape[1:])

    def exact(self, weight: Tensor) -> list[Tensor]:
        """Both sides whole."""
        cube = self.target(weight)
        return [identity(cube, 0), cube, identity(cube, 1)]

    def rest_of_chain(self, values: Sequence[Tensor]) -> Tensor:
        """Here the ``J·K`` of a row lie beside each other."""
        return super().rest_of_chain(values).contiguous()

    def noise_before_last(self, values: Sequence[Tensor], moment: Tensor) -> Tensor | None:
        """One range holds all of the core's inputs: each has the noise of the strongest."""
        _, core, inner = values
        power = ((moment @ inner) * inner).sum(dim=0).max()
        return core.flatten(1) * power.clamp_min(0.0).sqrt()

    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """U_in's and the core's column scales go to the first link, U_out's column scales to the core."""
        outer, core, inner = codes
        row, column = row_and_column(scales[0], outer)
        core_row, core_column = row_and_column(scales[1].reshape(scales[1].shape[:2]), core[:, :, 0])
        first = scales[2].expand_as(core_column) * core_column
        return [(inner.mT.contiguous(), first), (core, core_row * column.mT), (outer, row)]

    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """U_out, core, U_in."""
        inner, core, outer = weights
        return [outer.flatten(1), core.flatten(2), inner.flatten(1).mT.contiguous()]
