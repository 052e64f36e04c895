"""Quantized factors: integer codes, their scales, and the tensor they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qaf_core.factorization.structures import STRUCTURES
from qaf_core.quantization.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of one weight tensor.

    Legend, for a weight ``(C_out, C_in, k, …)`` of any kernel dimensions read as ``(I, J, K)``:
    ``cp``: A ``(I, R)``, B ``(J, R)``, C ``(K, R)``; ``svd``: A ``(I, R)``, B ``(J·K, R)``;
    ``tucker2``: U_out ``(I, R_out)``, core ``(R_out, R_in, K)``, U_in ``(J, R_in)``;
    ``dense``: W ``(I, J·K)``.

    Attributes:
        structure: ``cp``, ``svd``, ``tucker2`` or ``dense``.
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
        """R, for ``tucker2`` the pair (R_out, R_in), for ``dense`` None."""
        if self.structure == "dense":
            return None
        if self.structure == "tucker2":
            return int(self.codes[0].shape[1]), int(self.codes[2].shape[1])
        return int(self.codes[0].shape[1])

    def values(self) -> tuple[Tensor, ...]:
        """Codes times scales, one floating-point tensor per factor."""
        return tuple(
            codes.to(scales.dtype) * scales for codes, scales in zip(self.codes, self.scales, strict=True)
        )

    def reconstruct(self) -> Tensor:
        """The tensor the factors stand for, in ``weight_shape`` and in the dtype of the scales."""
        values = self.values()
        if self.structure == "dense":
            return values[0].reshape(self.weight_shape)
        if self.structure == "svd":
            return (values[0] @ values[1].mT).reshape(self.weight_shape)
        rows, columns = self.weight_shape[0], self.weight_shape[1]
        if self.structure == "cp":
            joined = (values[1][:, None, :] * values[2][None, :, :]).reshape(-1, values[0].shape[1])
            return (values[0] @ joined.mT).reshape(self.weight_shape)
        left = torch.tensordot(values[0], values[1], dims=1)  # (I, R_in, K)
        full = torch.einsum("ijk,lj->ilk", left, values[2])
        return full.reshape(rows, columns, *self.weight_shape[2:])


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
