"""BatchNorm joined to the layer before it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from qaf_core.network.modules.quantized import BatchNorm, Folded, Layer, swap_layer
from qaf_core.network.plan.layer_info import LayerInfo


def fold_batchnorm(model: nn.Module, inventory: Sequence[LayerInfo]) -> nn.Module:
    """A copy in evaluation mode with every BatchNorm that can be folded joined to the layer before it.

    Args:
        model: Captured, its layers as they were; not changed.
        inventory: Its rows, which tell what folds into what.
    """
    folded = copy.deepcopy(model).eval()
    for info in inventory:
        if info.folded_into is None:
            continue
        layer, norm = folded.get_submodule(info.folded_into), folded.get_submodule(info.name)
        if isinstance(layer, Layer) and isinstance(norm, BatchNorm):
            swap_layer(folded, info.folded_into, _joined(layer, norm))
            swap_layer(folded, info.name, Folded())
    return folded


def _joined(layer: Layer, norm: BatchNorm) -> Layer:
    factor, shift = norm.factor_and_shift()
    bias: Tensor = shift if layer.bias is None else shift + layer.bias.detach().double() * factor
    rows = scaled_rows(layer.rows.detach(), factor)
    weight = layer.operation.as_stored(rows).contiguous()
    return Layer(weight, bias.to(layer.weight.dtype), layer.operations)


def scaled_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """A weight by rows, each row times its factor, computed in float64."""
    scaled = rows.double() * factor.reshape(-1, *(1,) * (rows.ndim - 1))
    return scaled.to(rows.dtype)
