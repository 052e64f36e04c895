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

LinkWeight = tuple[Tensor, Tensor]  # codes and scales


class Algebra(ABC):
    """The tensors of one structure, for weights of one shape.

    Attributes:
        structure: Its descriptor.
    """

    structure: ClassVar[Structure]

    def __init__(self, weight_shape: Sequence[int]) -> None:
        self.weight_shape = tuple(weight_shape)

    def target(self, weight: Tensor) -> Tensor:
        """The weight as the solver sees it: ``(I, J, K)``, unless a structure says otherwise."""
        return weight.reshape(weight.shape[0], weight.shape[1], -1)

    @abstractmethod
    def subproblem(self, target: Tensor, rank: Rank, moment: Tensor | None) -> Subproblem:
        """What the joint solver solves.

        Args:
            target: As ``target`` reads the weight.
            rank: Of the structure's kind.
            moment: Second moment of the input channels ``(J, J)``, or None.
        """

    def stored(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """The solver's matrices as ``Factors`` keep them."""
        return list(matrices)

    def stored_scales(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Scales of the solver's matrices, broadcastable to the factors."""
        return list(scales)

    def matrices(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What undoes ``stored``."""
        return list(values)

    @abstractmethod
    def reconstruct(self, values: Sequence[Tensor]) -> Tensor:
        """The tensor the factors stand for, of the weight's shape, but with as many rows as factor 0 has."""

    @abstractmethod
    def exact(self, weight: Tensor) -> list[Tensor]:
        """Factors, as ``Factors`` keep them, whose product is the weight to the last bit, at full rank."""

    def rest_of_chain(self, values: Sequence[Tensor]) -> Tensor:
        """All factors but the first as one matrix ``(P, J·K)``; factor 0, as ``(I, P)``, times it is W."""
        outer, *others = values
        size = outer.numel() // self.weight_shape[0]
        unit = torch.eye(size, dtype=outer.dtype, device=outer.device).reshape(-1, outer.shape[1])
        rest = self.reconstruct([unit, *others]).reshape(size, -1)
        return rest.mT.contiguous().mT  # products round by how numbers lie: P lie beside each other

    def noise_before_last(self, values: Sequence[Tensor], moment: Tensor) -> Tensor | None:
        """What reaches the last link's inputs of the noise of rounding the first link's outputs.

        Args:
            values: Factors, as ``Factors`` keep them.
            moment: Second moment of the layer's inputs ``(J, J)``.

        Returns:
            ``(P, n)``, whose columns' outer products sum to the noise's covariance, for noise of the outputs'
            own power; None where no link lies between.
        """
        del values, moment
        return None

    @abstractmethod
    def link_weights(self, codes: Sequence[Tensor], scales: Sequence[Tensor]) -> list[LinkWeight]:
        """Codes and scales of the links in the order they run, one scale per output channel.

        Scales of columns move to the link before; those of rows of factor 0 stay on the last.

        Args:
            codes, scales: As ``Factors`` keep them.

        Returns:
            Codes in the order of a weight ``(outputs, inputs, k, …)``, of any shape that begins with the
            outputs, and as many scales.
        """

    @abstractmethod
    def of_links(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Factors, as ``Factors`` keep them, of the links' weights by rows, in the order they run.

        Scales that ``link_weights`` moved stay where they are: the product is the same.
        """


def identity(values: Tensor, mode: int) -> Tensor:
    """The identity of a dimension's size."""
    return torch.eye(values.shape[mode], dtype=values.dtype, device=values.device)


def row_and_column(scales: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of a factor ``(N, P)``, an outer product, as per-row ``(N, 1)`` times per-column ``(1, P)``."""
    if scales.shape[0] == 1:
        return scales.new_ones(codes.shape[0], 1), scales.expand(1, codes.shape[1])
    return scales[:, :1] / scales[:1, :1], scales[:1].expand(1, codes.shape[1])
