"""The description of an integer grid, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from qaf_core.errors import SolverError
from qaf_core.quantization.grid import BITS_ACCEPTED, FLOAT, GRIDS
from qaf_core.text.said import say

GRANULARITIES = ("tensor", "rank", "rank_row")


def whole_number(value: object) -> int | None:
    """A whole number of any library as Python's own; None where it is none (True and False are none)."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The grid every factor is solved on.

    Attributes:
        bits: 2 to 8, or 32 for floating point, see :class:`Grid`; one number for all factors or one each.
        granularity: ``tensor`` (one scale per factor), ``rank`` (one per rank component) or ``rank_row``
            (per rank component, and on the output side one per row besides: the output channel's own scale).
        symmetric: The zero point is code 0. The only kind the solver takes.
        activation_bits: Of what passes from link to link of a chain: the joint solver then keeps away from
            components that cancel each other, which rounded activations break. 32: nothing is rounded there.

    Raises:
        SolverError: If a field is out of range.
    """

    bits: int | tuple[int, ...] = 4
    granularity: str = "rank"
    symmetric: bool = True
    activation_bits: int = FLOAT.bits

    def __post_init__(self) -> None:
        values = self.bits if isinstance(self.bits, tuple) else (self.bits,)
        for bits in (*values, self.activation_bits):
            if whole_number(bits) not in GRIDS:
                raise SolverError("bit-width out of range", got=bits, expected=BITS_ACCEPTED)
        widths = tuple(int(bits) for bits in values)
        object.__setattr__(self, "bits", widths if isinstance(self.bits, tuple) else widths[0])
        if self.granularity not in GRANULARITIES:
            raise SolverError(
                "unknown scale granularity", got=self.granularity, expected=", ".join(GRANULARITIES)
            )
        if not self.symmetric:
            raise SolverError("grids with a zero point are not solved", expected="symmetric=True")

    def bits_of(self, factor_count: int) -> tuple[int, ...]:
        """The bit-width of each of ``factor_count`` factors.

        Raises:
            SolverError: If ``bits`` is a tuple of another length.
        """
        if isinstance(self.bits, tuple):
            if len(self.bits) != factor_count:
                raise SolverError(
                    "one bit-width per factor is needed",
                    got=say(
                        "{count} for {factor_count} factors", count=len(self.bits), factor_count=factor_count
                    ),
                    remedy="give one number, or as many as there are factors",
                )
            return self.bits
        return (self.bits,) * factor_count
