"""Rewriting modules that hide their weight layers into equivalent ones that show them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.attention import OpenAttention
from qaf_core.network.layers import swap_layer


def open_network(model: nn.Module) -> tuple[str, ...]:
    """Replace packed modules by equivalent ones whose layers can be compressed, in place.

    - ``nn.MultiheadAttention`` becomes four linear layers and the products between them;
    - torchvision's windowed attention calls its two linear layers instead of a function on their weights;
    - torchvision's frozen BatchNorm, a formula over buffers, becomes ``nn.BatchNorm2d``.

    The outputs stay the same up to rounding. Subclasses with a forward pass of their own, attention with
    extra keys (``add_bias_kv``, ``add_zero_attn``) and a network that is itself one such module stay as they
    are. A second call finds nothing to do.

    Args:
        model: The network; its names of modules stay, those of parameters inside attention change.

    Returns:
        The names of the modules replaced.
    """
    frozen = _loaded("torchvision.ops.misc", "FrozenBatchNorm2d")
    windowed = tuple(
        _loaded("torchvision.models.swin_transformer", name)
        for name in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    )
    opened = []
    slices: dict[int, list[Tensor]] = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention and name and _is_plain(module):
            swap_layer(model, name, OpenAttention(module, slices))
        elif type(module) in windowed:
            from qaf_core.network.window_attention import open_window_attention

            open_window_attention(module)
        elif type(module) is frozen and name:
            swap_layer(model, name, _thawed(module))
        else:
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # nested tensors need the packed weights
            continue
        opened.append(name)
    return tuple(opened)


def _loaded(module: str, name: str) -> Any:
    """A class of a module that has been imported; where it has not, no network holds one."""
    return getattr(sys.modules.get(module), name, None)


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Whether there are no keys beyond those given, and the weights are parameters and nothing computed."""
    projections = (module.in_proj_weight, module.q_proj_weight)
    computed = any(hasattr(part, "parametrizations") for part in (module, module.out_proj))
    return (
        module.bias_k is None
        and not module.add_zero_attn
        and not computed
        and any(isinstance(weight, nn.Parameter) for weight in projections)
    )


def _thawed(frozen: Any) -> nn.BatchNorm2d:
    """A frozen BatchNorm as an ordinary one, whose parameters no training changes."""
    norm = nn.BatchNorm2d(frozen.weight.numel(), eps=frozen.eps, device="meta")
    norm.weight = nn.Parameter(frozen.weight, requires_grad=False)
    norm.bias = nn.Parameter(frozen.bias, requires_grad=False)
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=frozen.weight.device)
    return norm.eval()
