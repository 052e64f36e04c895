"""BatchNorm joined to the layer before it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qaf_core.network.inventory import LayerInfo
from qaf_core.network.layers import swap_layer


def fold_batchnorm(model: nn.Module, inventory: Sequence[LayerInfo]) -> nn.Module:
    """A copy in evaluation mode with every BatchNorm that can be folded joined to the layer before it.

    Args:
        model: Not changed; its outputs and the copy's are the same but for rounding.
        inventory: Its rows, which tell what folds into what.
    """
    folded = copy.deepcopy(model).eval()
    for info in inventory:
        if info.folded_into is None:
            continue
        layer, norm = folded.get_submodule(info.folded_into), folded.get_submodule(info.name)
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            swap_layer(folded, info.folded_into, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            swap_layer(folded, info.folded_into, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        swap_layer(folded, info.name, nn.Identity())
    return folded
