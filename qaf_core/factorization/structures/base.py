"""What a structure is: the factors a weight becomes, the links that hold them, their shapes and ranks.

Free of torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from qaf_core.errors import PlanError

Rank = int | tuple[int, int] | None
Shape = tuple[int, ...]


class Kernel(Enum):
    """Which dimensions of the layer's kernel a link has, with their stride, padding and dilation."""

    NONE = "none"
    WHOLE = "whole"
    FIRST = "first"
    LAST = "last"

    def dims(self, count: int) -> tuple[int, ...]:
        """The dimensions, of so many."""
        return {"none": (), "whole": tuple(range(count)), "first": (0,), "last": (count - 1,)}[self.value]

    def of(self, sizes: Sequence[Any], neutral: Any) -> tuple[Any, ...]:
        """The layer's sizes in the dimensions a link has, ``neutral`` in the others."""
        own = self.dims(len(sizes))
        return tuple(size if index in own else neutral for index, size in enumerate(sizes))


@dataclass(frozen=True)
class LinkForm:
    """One link of a chain.

    Attributes:
        factor: Which of the structure's factors it holds.
        kernel: What of the layer's kernel it has.
        depthwise: Each channel is filtered by itself.
    """

    factor: int
    kernel: Kernel = Kernel.NONE
    depthwise: bool = False


class Structure(ABC):
    """A way to write a weight ``(C_out, C_in, k, …)`` as a chain of small layers.

    Attributes:
        name: In plans and files.
        label: For people.
        factors: Their letters; factor 0 is on the output side.
        links: In the order they run; a link with a kernel takes the layer's geometry there.
        dims: How many dimensions its weights have.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    factors: ClassVar[tuple[str, ...]]
    links: ClassVar[tuple[LinkForm, ...]]
    dims: ClassVar[range] = range(2, 6)

    @property
    def factorizes(self) -> bool:
        """Whether the weight becomes more than one factor."""
        return len(self.factors) > 1

    def takes(self, weight_shape: Sequence[int]) -> bool:
        """Whether a weight by rows can have the structure, in a layer of one group.

        Args:
            weight_shape: ``(C_out, C_in, k, …)`` or ``(out, in)``.
        """
        return len(weight_shape) >= 2

    def can_write(self, weight_shape: Sequence[int]) -> bool:
        """Whether such a weight can be written so at all, also where it is of no use."""
        return len(weight_shape) in self.dims

    def published(self, weight_shape: Sequence[int]) -> bool:
        """Whether the method ``paper`` (arXiv 2308.04595) has it for such a weight."""
        del weight_shape
        return False

    @abstractmethod
    def widths(self, rank: Rank) -> Shape:
        """Channels between the links, in order."""

    def rank_of(self, widths: Sequence[int]) -> Rank:
        """What undoes ``widths``."""
        return widths[0]

    @abstractmethod
    def factor_shapes(self, weight_shape: Sequence[int], rank: Rank) -> tuple[Shape, ...]:
        """Shapes of the factors as matrices (of a core as three dimensions).

        Args:
            weight_shape: ``(C_out, C_in, k, …)`` or ``(out, in)``.
            rank: Of the structure's kind, see ``has_kind``.
        """

    def has_kind(self, rank: Rank) -> bool:
        """Whether a rank is of the kind this structure has: one number, unless it says otherwise."""
        return isinstance(rank, int) and not isinstance(rank, bool)

    def rank_for_ratio(self, weight_shape: Sequence[int], ratio: float) -> Rank:
        """The rank at which the factors hold the weight's numbers divided by ``ratio``, at least 1.

        ``int(numel / (numbers of one component) / ratio)``, for CP as in arXiv 2308.04595.
        """
        component = sum(map(math.prod, self.factor_shapes(weight_shape, 1)))
        return max(1, int(math.prod(weight_shape) / component / ratio))

    @abstractmethod
    def largest_rank(self, weight_shape: Sequence[int]) -> Rank:
        """The rank at which any such weight is met exactly; neither a plan nor the solver takes a larger one.

        Whether a smaller one pays is no question of how many numbers the factors hold (they may be of fewer
        bits than the layer's would be): the cost of a plan answers it.
        """

    def rank_in(self, factor_shapes: Sequence[Sequence[int]]) -> Rank:
        """The rank that factors of such shapes have: what undoes ``factor_shapes``."""
        return factor_shapes[0][1]

    def by_factor(self, by_link: Sequence[int]) -> Shape:
        """Numbers of the links in the order of the factors."""
        values = {link.factor: value for link, value in zip(self.links, by_link, strict=True)}
        return tuple(values[factor] for factor in range(len(self.factors)))

    def outputs(self, weight_shape: Sequence[int], rank: Rank) -> Shape:
        """Output channels of each factor's link: the scales it holds."""
        return self.by_factor((*self.widths(rank), weight_shape[0]))


def check_ratio(ratio: Any) -> None:
    """Raise PlanError unless ``ratio`` is a finite number of at least 1."""
    if (
        isinstance(ratio, bool)
        or not isinstance(ratio, (int, float))
        or not (math.isfinite(ratio) and ratio >= 1)
    ):
        raise PlanError(
            "ratio out of range",
            got=repr(ratio),
            expected="a number of at least 1 (parameters before over after)",
        )


def one_number(rank: Rank) -> int:
    """The rank of a structure that has one.

    Raises:
        PlanError: If it is a pair, or none.
    """
    if not isinstance(rank, int):
        raise PlanError("the structure has one rank", got=rank, expected="a whole number")
    return rank
