"""Factors that stand for a weight exactly: constructed, not fitted."""

from __future__ import annotations

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.quantization.grid import FLOAT


def exact_factors(weight: Tensor, structure: str) -> Factors:
    """Floating-point factors whose product is the weight to the last bit, at the full rank that takes.

    One factor holds the weight itself, the others are identities or columns with a single one: ``cp`` keeps
    the largest of its three dimensions free and runs through all pairs of the other two, ``svd`` has the
    rank of the smaller side, ``tucker2`` both sides whole. Nothing is saved by them; they prove that a chain
    computes what the layer it replaces computed.

    Args:
        weight: ``(C_out, C_in, k, …)``; for ``svd`` and ``dense`` also ``(out, in)``; floating point.
        structure: ``cp``, ``svd``, ``tucker2`` or ``dense``.

    Returns:
        The factors; those that hold the weight share its memory.

    Raises:
        SolverError: If the structure is unknown or does not take such a weight.
    """
    values = weight.detach()
    _check(values, structure)
    if structure == "dense":
        factors = [values.reshape(values.shape[0], -1)]
    elif structure == "svd":
        factors = _two(values.reshape(values.shape[0], -1))
    else:
        cube = values.reshape(*values.shape[:2], -1)
        factors = _tucker(cube) if structure == "tucker2" else _canonical(cube)
    return Factors(
        structure=structure,
        weight_shape=tuple(weight.shape),
        codes=tuple(factors),
        scales=tuple(values.new_ones((1,) * factor.ndim) for factor in factors),
        bits=(FLOAT.bits,) * len(factors),
    )


def _two(matrix: Tensor) -> list[Tensor]:
    if matrix.shape[0] < matrix.shape[1]:
        return [_identity(matrix, 0), matrix.mT]
    return [matrix, _identity(matrix, 1)]


def _tucker(cube: Tensor) -> list[Tensor]:
    return [_identity(cube, 0), cube, _identity(cube, 1)]


def _canonical(cube: Tensor) -> list[Tensor]:
    """One component for each pair of indices of the two smaller dimensions."""
    free = max(range(3), key=lambda mode: cube.shape[mode])
    first, second = (mode for mode in range(3) if mode != free)
    ones = {mode: _identity(cube, mode) for mode in (first, second)}
    factors = {
        first: ones[first].repeat_interleave(cube.shape[second], dim=1),
        second: ones[second].repeat(1, cube.shape[first]),
        free: cube.movedim(free, 0).flatten(1),
    }
    return [factors[mode] for mode in range(3)]


def _identity(values: Tensor, mode: int) -> Tensor:
    return torch.eye(values.shape[mode], dtype=values.dtype, device=values.device)


def _check(values: Tensor, structure: str) -> None:
    if structure not in STRUCTURES:
        raise SolverError("unknown structure", got=structure, expected=", ".join(STRUCTURES))
    least = 3 if structure in ("cp", "tucker2") else 2
    if not values.is_floating_point() or not values.numel() or not least <= values.ndim <= 5:
        raise SolverError(
            f"structure {structure} does not take such a weight",
            got=f"{tuple(values.shape)} of {values.dtype}",
            expected="a convolution's, not empty" + (", or a linear layer's" if structure == "svd" else ""),
        )
