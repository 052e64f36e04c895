"""Rewriting modules that hide their weight layers into equivalent ones that show them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.attention import OpenAttention
from qaf_core.network.layers import swap_layer

LEAST_EPSILON = 1e-12  # of a BatchNorm that was made with none: PyTorch trains it only with more than zero


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
    slices: dict[int, list[Tensor]] = {}
    packed = _packed_modules(model)
    for name, module in packed.items():
        if isinstance(module, nn.MultiheadAttention):
            swap_layer(model, name, OpenAttention(module, slices))
        elif type(module).__name__.startswith("ShiftedWindowAttention"):
            from qaf_core.network.window_attention import open_window_attention

            open_window_attention(module)
        else:
            swap_layer(model, name, _thawed(module))
    for module in model.modules() if packed else ():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors need the packed weights
    return tuple(packed)


def is_open(model: nn.Module) -> bool:
    """Whether ``open_network`` would find nothing to do."""
    return not _packed_modules(model)


def _packed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """What there is to open, by name."""
    swin = sys.modules.get("torchvision.models.swin_transformer")  # where not imported, no network holds one
    kinds = (
        getattr(swin, "ShiftedWindowAttention", None),
        getattr(swin, "ShiftedWindowAttentionV2", None),
        getattr(sys.modules.get("torchvision.ops.misc"), "FrozenBatchNorm2d", None),
    )
    return {
        name: module
        for name, module in model.named_modules()
        if name and (type(module) in kinds or (type(module) is nn.MultiheadAttention and _is_plain(module)))
    }


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
    epsilon = max(frozen.eps, LEAST_EPSILON)
    norm = nn.BatchNorm2d(frozen.weight.numel(), eps=epsilon, device="meta")
    norm.weight = nn.Parameter(frozen.weight, requires_grad=False)
    norm.bias = nn.Parameter(frozen.bias, requires_grad=False)
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=frozen.weight.device)
    return norm.eval()
