"""What the solver, the files and the network do with the factors of one structure.

A weight ``(C_out, C_in, k, …)`` is read as a target, which a :class:`Subproblem` writes as matrices, one a
factor. ``Factors`` keep these in shapes of their own where that is the field's habit; links hold them as
weights of small layers. An algebra goes between the three forms.

Legend: ``I = C_out``, ``J = C_in``, ``K`` kernel positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from qaf_core.factorization.structures import Rank, Structure
from qaf_core.factorization.subproblem import Subproblem

Shape = tuple[int, ...]


class Algebra(ABC):
    """The tensors of one structure; it has no state.

    Attributes:
        structure: Its descriptor.
    """

    structure: ClassVar[Structure]

    def target(self, weight: Tensor) -> Tensor:
        """The weight as the solver sees it: ``(I, J, K)``, unless a structure says otherwise."""
        return weight.reshape(weight.shape[0], weight.shape[1], -1)

    @abstractmethod
    def subproblem(
        self, target: Tensor, rank: Rank, moment: Tensor | None, weight_shape: Shape
    ) -> Subproblem:
        """What the joint solver solves.

        Args:
            target: As ``target`` reads the weight.
            rank: Of the structure's kind.
            moment: Second moment of the input channels ``(J, J)``, or None.
            weight_shape: Of the weight.
        """

    def stored(self, matrices: Sequence[Tensor], weight_shape: Shape) -> list[Tensor]:
        """The solver's matrices as ``Factors`` keep them."""
        del weight_shape
        return list(matrices)

    def stored_scales(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Scales of the solver's matrices, broadcastable to the factors."""
        return list(scales)

    def matrices(self, values: Sequence[Tensor], weight_shape: Shape) -> list[Tensor]:
        """What undoes ``stored``."""
        del weight_shape
        return list(values)

    @abstractmethod
    def reconstruct(self, values: Sequence[Tensor], weight_shape: Shape) -> Tensor:
        """The tensor the factors stand for, of ``weight_shape``."""

    @abstractmethod
    def exact(self, weight: Tensor) -> list[Tensor]:
        """Factors, as ``Factors`` keep them, whose product is the weight to the last bit, at full rank."""

    @abstractmethod
    def rest_of_chain(self, values: Sequence[Tensor], weight_shape: Shape) -> Tensor:
        """All factors but the first as one matrix ``(P, J·K)``; factor 0, as ``(I, P)``, times it is W."""

    @abstractmethod
    def link_weights(
        self, codes: Sequence[Tensor], scales: Sequence[Tensor], weight_shape: Shape
    ) -> list[tuple[Tensor, Tensor]]:
        """Codes and scales of the links in the order they run, one scale per output channel.

        Scales of columns move to the link before; those of rows of factor 0 stay on the last.

        Args:
            codes, scales: As ``Factors`` keep them.
            weight_shape: Of the weight.

        Returns:
            Codes in the order of a weight ``(outputs, inputs, k, …)``, of any shape that begins with the
            outputs, and as many scales.
        """


def identity(values: Tensor, mode: int) -> Tensor:
    """The identity of a dimension's size."""
    return torch.eye(values.shape[mode], dtype=values.dtype, device=values.device)


def row_and_column(scales: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of a factor ``(N, P)``, an outer product, as per-row ``(N, 1)`` times per-column ``(1, P)``."""
    if scales.shape[0] == 1:
        return scales.new_ones(codes.shape[0], 1), scales.expand(1, codes.shape[1])
    return scales[:, :1] / scales[:1, :1], scales[:1].expand(1, codes.shape[1])
