"""Quantized factors: integer codes, their scales, and the tensor they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra import ALGEBRAS, Algebra
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.text.said import say


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of one weight tensor.

    Attributes:
        structure: One of ``STRUCTURES``, whose descriptor says what the factors are.
        weight_shape: Shape of the tensor they stand for.
        codes: One ``int8`` tensor per factor (floating point where ``bits`` is 32).
        scales: One tensor per factor, broadcastable to its codes.
        bits: One bit-width per factor.
    """

    structure: str
    weight_shape: tuple[int, ...]
    codes: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    bits: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The factors' letters, in order."""
        return STRUCTURES[self.structure].factors

    @property
    def rank(self) -> int | tuple[int, int] | None:
        """R, a pair where the structure has two, or None."""
        return STRUCTURES[self.structure].rank_in([codes.shape for codes in self.codes])

    @property
    def algebra(self) -> Algebra:
        """What is done with factors of this structure."""
        return ALGEBRAS[self.structure](self.weight_shape)

    def values(self) -> tuple[Tensor, ...]:
        """Codes times scales, one floating-point tensor per factor."""
        return tuple(
            codes.to(scales.dtype) * scales for codes, scales in zip(self.codes, self.scales, strict=True)
        )

    def reconstruct(self) -> Tensor:
        """The tensor the factors stand for, in ``weight_shape`` and in the dtype of the scales."""
        return self.algebra.reconstruct(self.values())


def exact_factors(weight: Tensor, structure: str) -> Factors:
    """Floating-point factors whose product is the weight to the last bit, at the full rank that takes.

    One factor holds the weight itself, the others are identities or columns with a single one. Nothing is
    saved by them; they prove that a chain computes what the layer it replaces computed.

    Args:
        weight: ``(C_out, C_in, k, …)``, or ``(out, in)`` where the structure takes it; floating point.
        structure: One of ``STRUCTURES``.

    Returns:
        The factors; those that hold the weight share its memory.

    Raises:
        SolverError: If the structure is unknown or does not take such a weight.
    """
    values = weight.detach()
    if structure not in STRUCTURES:
        raise SolverError("unknown structure", got=structure, expected=", ".join(STRUCTURES))
    form = STRUCTURES[structure]
    linear = form.can_write((1, 1))
    if not values.is_floating_point() or not values.numel() or not form.can_write(values.shape):
        raise SolverError(
            say("structure {structure} does not take such a weight", structure=structure),
            got=f"{tuple(values.shape)} of {values.dtype}",
            expected="a convolution's, not empty, or a linear layer's"
            if linear
            else "a convolution's, not empty",
        )
    factors = ALGEBRAS[structure](values.shape).exact(values)
    return Factors(
        structure=structure,
        weight_shape=tuple(weight.shape),
        codes=tuple(factors),
        scales=tuple(values.new_ones((1,) * factor.ndim) for factor in factors),
        bits=(FLOAT.bits,) * len(factors),
    )


def as_stored_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes in the type they are kept in: ``int8``, or as they are where ``bits`` is 32."""
    return codes if Grid.of(bits).is_float else codes.to(torch.int8)


# ‖w - ŵ‖² = ‖w‖² - ‖ŵ‖² where ŵ is fitted to w: at this error half of the size is left.
LOST = math.sqrt(0.75)


@dataclass(frozen=True, kw_only=True)
class RowErrors:
    """Relative errors of one weight.

    Attributes:
        total: ‖W - Ŵ‖_F / ‖W‖_F; of a zero weight ‖Ŵ‖_F.
        worst: The largest ‖w - ŵ‖ / ‖w‖ of a row that is not zero; 0 where there is none.
        lost: Rows whose error is above ``LOST``.
    """

    total: float
    worst: float
    lost: int


def row_errors(weight: Tensor, factors: Factors) -> RowErrors:
    """The errors of factors, summed in float64; sizes near the ends of float64 are no matter.

    Args:
        weight: What the factors stand for; its first dimension are the output channels.
        factors: Of any structure.
    """
    exact = weight.detach().to(torch.float64).reshape(len(weight), -1)
    difference = exact - factors.reconstruct().to(exact).reshape_as(exact)
    sizes, errors = _norms(exact), _norms(difference)
    size, error = (float(_norms(norms[None, :])[0]) for norms in (sizes, errors))
    shares = (errors / sizes)[sizes > 0]
    return RowErrors(
        total=error / size if size > 0 else error,
        worst=float(shares.max()) if len(shares) else 0.0,
        lost=int((shares > LOST).sum()),
    )


def _norms(rows: Tensor) -> Tensor:
    """The norm of each row ``(N,)``; no square over- or underflows."""
    peaks = rows.abs().amax(dim=1, keepdim=True)
    usable = torch.where((peaks > 0) & peaks.isfinite(), peaks, torch.ones_like(peaks))
    norms: Tensor = (rows / usable).norm(dim=1) * usable[:, 0]
    return norms
