"""The chains of small layers a weight can become: shapes, operations and ranks of each. Free of torch.

A k×k convolution (C_out, C_in, k, k) under ``cp`` becomes 1×1 (C_in → R, at the input's resolution),
depthwise k×k (the stride is here), 1×1 (R → C_out); under ``tucker2`` 1×1 (C_in → R_in), k×k (R_in → R_out),
1×1 (R_out → C_out); under ``svd`` k×k (C_in → R) and 1×1 (R → C_out): the truncated SVD of the weight seen as
a matrix (Zhang et al. 2015, arXiv 1505.06798). A 1×1 convolution or linear layer under ``svd`` becomes two of
its kind; a stride goes into the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qaf_core.errors import PlanError
from qaf_core.network.plan.layer_info import LayerInfo

Rank = int | tuple[int, int] | None

FACTOR_COUNT = {"cp": 3, "tucker2": 3, "svd": 2, "dense": 1, "keep": 0}


def factor_shapes(info: LayerInfo, structure: str, rank: Rank) -> tuple[tuple[int, ...], ...]:
    """Shapes of a layer's factors, see :func:`weight_factor_shapes`; the weight's if it has none."""
    return weight_factor_shapes(info.weight_shape, structure, rank) or (info.weight_shape,)


def weight_factor_shapes(
    weight_shape: Sequence[int], structure: str, rank: Rank
) -> tuple[tuple[int, ...], ...]:
    """Shapes of a weight's factors, the output side first; none for what is not factorized.

    ``cp``: A (C_out, R), B (C_in, R), C (k·k, R). ``svd``: A (C_out, R), B (C_in·k·k, R). ``tucker2``: U_out
    (C_out, R_out), core (R_out, R_in, k·k), U_in (C_in, R_in).

    Args:
        weight_shape: ``(C_out, C_in, k, k)`` or ``(out, in)``.
        structure, rank: As in a plan.
    """
    outputs, inputs, *kernel = weight_shape
    positions = math.prod(kernel)
    if structure == "cp" and isinstance(rank, int):
        return (outputs, rank), (inputs, rank), (positions, rank)
    if structure == "svd" and isinstance(rank, int):
        return (outputs, rank), (inputs * positions, rank)
    if structure == "tucker2" and isinstance(rank, tuple):
        return (outputs, rank[0]), (rank[0], rank[1], positions), (inputs, rank[1])
    return ()


def factor_macs(info: LayerInfo, structure: str, rank: Rank) -> tuple[int, ...]:
    """Multiply-accumulates per image of each factor's link, all calls, in the order of ``factor_shapes``."""
    before, after = input_positions(info), output_positions(info)
    shapes = factor_shapes(info, structure, rank)
    if len(shapes) == 1:
        return (info.macs,)
    # The first link of CP and Tucker-2 runs at the input's resolution, the last at the output's. The kernel
    # is applied once for each output, or of a transposed convolution for each input.
    applied = info.macs // max(1, info.weight_numel)
    positions = {"cp": (after, before, applied), "svd": (after, applied), "tucker2": (after, applied, before)}
    return tuple(math.prod(shape) * count for shape, count in zip(shapes, positions[structure], strict=True))


def link_activations(info: LayerInfo, structure: str, rank: Rank) -> tuple[tuple[int, int], ...]:
    """(input, output) elements per image of each link, in the order the chain runs, in the largest call."""
    calls = max(1, info.calls)
    given = max(info.input_elements // calls, info.in_channels * math.prod(info.input_hw or (0,)))
    made = max(info.output_elements // calls, info.out_channels * math.prod(info.output_hw or (0,)))
    inputs, outputs = given // max(1, info.in_channels), made // max(1, info.out_channels)
    if structure == "cp" and isinstance(rank, int):
        return (given, rank * inputs), (rank * inputs, rank * outputs), (rank * outputs, made)
    if structure == "svd" and isinstance(rank, int):
        return (given, rank * outputs), (rank * outputs, made)
    if structure == "tucker2" and isinstance(rank, tuple):
        return (given, rank[1] * inputs), (rank[1] * inputs, rank[0] * outputs), (rank[0] * outputs, made)
    return ((given, made),)


def input_positions(info: LayerInfo) -> int:
    """Pixels (or rows, of a linear layer) the layer reads per image, over all calls."""
    return info.input_elements // max(1, info.in_channels)


def output_positions(info: LayerInfo) -> int:
    """Pixels (or rows, of a linear layer) the layer writes per image, over all calls."""
    return info.output_elements // max(1, info.out_channels)


def rank_for_ratio(info: LayerInfo, structure: str, ratio: float) -> Rank:
    """The rank at which the factors hold the layer's weights divided by ``ratio``, at least 1.

    ``cp``: int(numel / (C_out + C_in + k·k) / ratio), as in arXiv 2308.04595. ``svd``: int(numel / (C_out +
    C_in·k·k) / ratio). ``tucker2``: the largest pair (R_out, R_in) proportional to (C_out, C_in) within
    numel / ratio.

    Args:
        info: The layer.
        structure: Any structure; the rank of ``dense`` and ``keep`` is None.
        ratio: Parameters before over parameters after, at least 1.

    Raises:
        PlanError: If the ratio is below 1 or not finite.
    """
    check_ratio(ratio)
    if structure == "cp":
        dimensions = info.out_channels + info.in_channels + info.kernel_elements
        return max(1, int(info.weight_numel / dimensions / ratio))
    if structure == "svd":
        dimensions = info.out_channels + info.in_channels * info.kernel_elements
        return max(1, int(info.weight_numel / dimensions / ratio))
    if structure == "tucker2":
        return _tucker_pair(
            info.out_channels, info.in_channels, info.kernel_elements, info.weight_numel / ratio
        )
    return None


def max_useful_rank(info: LayerInfo, structure: str) -> Rank:
    """The rank at which the factors hold as many numbers as the layer, at least 1; more is of no use."""
    return rank_for_ratio(info, structure, 1.0)


def check_ratio(ratio: Any) -> None:
    """Raise PlanError unless ``ratio`` is a finite number of at least 1."""
    if (
        isinstance(ratio, bool)
        or not isinstance(ratio, (int, float))
        or not (math.isfinite(ratio) and ratio >= 1)
    ):
        raise PlanError(
            "ratio out of range", got=ratio, expected="a number of at least 1 (parameters before over after)"
        )


@lru_cache(maxsize=4096)
def _tucker_pair(outputs: int, inputs: int, kernel: int, budget: float) -> tuple[int, int]:
    """Largest pair in the channels' proportion with R_out·C_out + R_in·C_in + R_out·R_in·k² ≤ budget."""
    larger = max(outputs, inputs)

    def pair(step: int) -> tuple[int, int]:
        return max(1, outputs * step // larger), max(1, inputs * step // larger)

    low, high = 1, larger
    while low < high:
        middle = (low + high + 1) // 2
        rank_out, rank_in = pair(middle)
        if rank_out * outputs + rank_in * inputs + rank_out * rank_in * kernel <= budget:
            low = middle
        else:
            high = middle - 1
    return pair(low)
