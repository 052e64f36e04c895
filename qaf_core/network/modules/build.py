"""From a layer and its factors to the chain of links that computes the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qaf_core.errors import ModelError
from qaf_core.factorization.factors import Factors
from qaf_core.network.modules.operation import Operation
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, Link


def build_chain(layer: Layer, factors: Factors) -> FactorizedLayer:
    """The chain that computes ``layer`` with the factors in place of its weight; bias and geometry are kept.

    The layer's own geometry (stride, padding, a transposed convolution) goes to the link that holds the
    kernel; all others mix channels only.

    Args:
        layer: The layer.
        factors: Factors of its weight by rows; per-row scales of factor 0 stay on the last link, all others
            move to the front.

    Raises:
        ModelError: If the layer's groups do not go with the structure.
    """
    if layer.operation.groups != 1 and factors.structure != "dense":
        got = f"groups={layer.operation.groups}"
        raise ModelError("a grouped convolution is not factorized as a whole", got=got)
    return FactorizedLayer(_links(layer, factors), factors.structure, layer.operations)


def _links(layer: Layer, factors: Factors) -> list[Link]:
    operations, bias = layer.operations, layer.bias
    mixing = [operation.pointwise() for operation in operations]
    kernel = tuple(factors.weight_shape[2:])
    ones = (1,) * len(kernel)
    if factors.structure == "dense":
        codes = factors.codes[0].reshape(factors.weight_shape)
        scales = factors.scales[0].reshape(-1, 1, *ones)
        return [Link(codes, scales, factors.bits[0], bias, operations)]
    if factors.structure == "tucker2":
        return _tucker_links(layer, factors, mixing)
    row, column = _split_scales(factors)
    outputs, rank = factors.codes[0].shape
    last = Link(
        factors.codes[0].reshape(outputs, rank, *ones), row.reshape(-1, 1, *ones), factors.bits[0], bias,
        mixing,
    )  # fmt: skip
    first_codes = factors.codes[1].mT.contiguous()
    column_scales = column.reshape(rank, 1, *ones)
    if factors.structure == "svd":
        first_codes = first_codes.reshape(rank, -1, *kernel)
        return [Link(first_codes, column_scales, factors.bits[1], operations=operations), last]
    middle_scales = factors.scales[2].expand(1, rank).reshape(rank, 1, *ones)
    middle_codes = factors.codes[2].mT.contiguous().reshape(rank, 1, *kernel)
    apart = [operation.with_groups(rank) for operation in operations]
    first = Link(
        first_codes.reshape(rank, -1, *ones), torch.ones_like(column_scales), factors.bits[1],
        operations=mixing,
    )  # fmt: skip
    middle = Link(middle_codes, middle_scales * column_scales, factors.bits[2], operations=apart)
    return [first, middle, last]


def _split_scales(factors: Factors) -> tuple[Tensor, Tensor]:
    """Row scales ``(I, 1)`` of factor 0, and its column scales times those of factor 1, ``(1, R)``."""
    row, column = _row_and_column(factors.scales[0], factors.codes[0])
    return row, column * factors.scales[1].expand_as(column)


def _tucker_links(layer: Layer, factors: Factors, mixing: Sequence[Operation]) -> list[Link]:
    """U_in's and the core's column scales go to the first link, U_out's column scales to the core."""
    outer, core, inner = factors.codes
    kernel = tuple(factors.weight_shape[2:])
    ones = (1,) * len(kernel)
    (rank_out, rank_in), core_scales = core.shape[:2], factors.scales[1]
    row, column = _row_and_column(factors.scales[0], outer)
    core_row, core_column = _row_and_column(core_scales.reshape(core_scales.shape[:2]), core[:, :, 0])
    first_scales = factors.scales[2].expand(1, rank_in) * core_column
    first = Link(
        inner.mT.contiguous().reshape(rank_in, -1, *ones), first_scales.reshape(-1, 1, *ones),
        factors.bits[2], operations=mixing,
    )  # fmt: skip
    middle_scales = (core_row * column.mT).reshape(rank_out, 1, *ones)
    middle = Link(
        core.reshape(rank_out, rank_in, *kernel), middle_scales, factors.bits[1], operations=layer.operations
    )
    last = Link(
        outer.reshape(-1, rank_out, *ones), row.reshape(-1, 1, *ones), factors.bits[0], layer.bias, mixing
    )
    return [first, middle, last]


def _row_and_column(scales: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of a factor ``(N, P)``, an outer product, as per-row ``(N, 1)`` times per-column ``(1, P)``."""
    if scales.shape[0] == 1:
        return scales.new_ones(codes.shape[0], 1), scales.expand(1, codes.shape[1])
    return scales[:, :1] / scales[:1, :1], scales[:1].expand(1, codes.shape[1])
