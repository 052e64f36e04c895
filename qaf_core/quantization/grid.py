"""The grids that numbers are rounded to, each known by its bits. Free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qaf_core.errors import SolverError

if TYPE_CHECKING:
    from torch import Tensor

Qparams = tuple[float, int]  # scale and zero point of a grid of activations

# Relative mean squared error of the best uniform quantizer of a unit Gaussian, by bits (J. Max, "Quantizing
# for minimum distortion", IRE Trans. Inf. Theory 6, 1960, table II).
_NOISE = {2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495, 6: 0.001041, 7: 0.0003035, 8: 0.0000869}

_SEARCH_FRACTIONS = (0.30, 1.15, 35)  # first, last and number of the clipping ranges tried
_SEARCH_NUMBERS = 500_000  # values that may stand in memory at once during a search


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Whole numbers from ``low`` to ``high``; a value is its code times a scale.

    Attributes:
        bits: Width of a packed code, and the grid's name in plans; 32 for floating point.
        low, high: The lowest and highest code; both 0 where nothing is rounded.
        relative_noise: Mean squared rounding error of a unit Gaussian at the best scale.
    """

    bits: int
    low: int = 0
    high: int = 0
    relative_noise: float = 0.0

    @staticmethod
    def of(bits: int) -> Grid:
        """The grid of weights that plans call ``bits``.

        Raises:
            SolverError: If there is none.
        """
        grid = GRIDS.get(bits)
        if grid is None:
            raise SolverError("bit-width out of range", got=bits, expected=BITS_ACCEPTED)
        return grid

    @property
    def is_float(self) -> bool:
        """Whether nothing is rounded."""
        return self.low == self.high

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.high - self.low + 1

    def packed_bytes(self, count: int) -> int:
        """Bytes that ``count`` codes fill when packed without gaps."""
        return (count * self.bits + 7) // 8

    def round(self, values: Tensor, scales: Tensor) -> Tensor:
        """Nearest codes, as whole numbers in the dtype of ``values``; the plain quotients without rounding.

        Args:
            values: Any shape.
            scales: Positive, broadcastable to ``values``.
        """
        steps = values / scales
        return steps if self.is_float else self.clip_(steps)

    def clip_(self, steps: Tensor, zero: int = 0) -> Tensor:
        """Numbers of steps as the whole ones that a code less ``zero`` can be; in place."""
        return steps.round_().clamp_(self.low - zero, self.high - zero)

    def fit_scales(
        self, values: Tensor, *, dims: tuple[int, ...], importance: Tensor | None = None
    ) -> Tensor:
        """Scales that minimise the squared rounding error, found by a search over clipping ranges.

        Args:
            values: The tensor to be rounded.
            dims: The dimensions that share a scale; they are kept with size one.
            importance: Non-negative weights of the squared errors, broadcastable to ``values``.

        Returns:
            Positive scales; one for a group of zeros, and without rounding.
        """
        import torch

        peak = values.abs().amax(dim=dims, keepdim=True)
        if self.is_float:
            return torch.ones_like(peak)
        reach = (self.high - self.low) / 2
        usable = peak > torch.finfo(values.dtype).tiny * self.levels
        largest = torch.where(usable, peak / reach, torch.ones_like(peak))
        # Besides, the scales that put the peak on the highest or lowest code: a grid stays as it is there.
        tried = [reach / abs(self.high), reach / abs(self.low), *torch.linspace(*_SEARCH_FRACTIONS).tolist()]
        fractions = torch.tensor(tried, device=values.device, dtype=values.dtype)
        shared = tuple(dim % values.ndim + 1 for dim in dims)
        best_error, best_scales = torch.full_like(peak, torch.inf), largest
        for part in torch.split(fractions, max(1, _SEARCH_NUMBERS // max(values.numel(), 1))):
            scales = largest * part.reshape(-1, *[1] * values.ndim)
            error = (self.round(values, scales) * scales).sub_(values).square_()
            if importance is not None:
                error.mul_(importance)
            least, where = error.sum(dim=shared, keepdim=True).min(dim=0)
            better = least < best_error
            best_error = torch.where(better, least, best_error)
            best_scales = torch.where(better, largest * part[where], best_scales)
        return torch.where(usable, best_scales, torch.ones_like(peak))


FLOAT = Grid(bits=32)
GRIDS = {
    bits: Grid(bits=bits, low=-(2 ** (bits - 1)), high=2 ** (bits - 1) - 1, relative_noise=noise)
    for bits, noise in _NOISE.items()
} | {FLOAT.bits: FLOAT}
ACTIVATION_GRID = Grid(bits=8, low=0, high=255)
BITS_ACCEPTED = f"{min(_NOISE)} to {max(_NOISE)}, or {FLOAT.bits} for floating point"
