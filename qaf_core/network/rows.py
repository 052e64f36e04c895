"""From what one forward pass saw of a layer to its row of the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from qaf_core.network.attention import ComputesProducts
from qaf_core.network.inventory import LayerInfo, Pair

ROOT_NAME = "(model)"
NOT_RUN = "it does not run in a prediction: a head for training only, or a spare part"
DEPTHWISE = "depthwise: every output reads one channel only, so there is nothing to factorize"
GROUPED = "grouped: every output reads the few channels of its group only, which leaves little to factorize"
PACKED = "an attention that keeps its projections in one tensor, where no layer can be exchanged"
READ_OUTSIDE = "the network reads its weight or bias past the layer itself, so the layer must stay"

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.Linear: "linear",
    _BatchNorm: "batchnorm",
    nn.Conv1d: "conv1d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.LayerNorm: "layernorm",
    nn.GroupNorm: "groupnorm",
    nn.InstanceNorm1d: "instancenorm",
    nn.InstanceNorm2d: "instancenorm",
    nn.InstanceNorm3d: "instancenorm",
    nn.MultiheadAttention: "attention",
    nn.Embedding: "embedding",
    nn.EmbeddingBag: "embedding",
    nn.PReLU: "prelu",
    nn.RNNBase: "recurrent",
    nn.RNNCellBase: "recurrent",
    nn.Bilinear: "bilinear",
}


@dataclass
class Seen:
    """What the hooks saw of one module."""

    calls: int = 0
    macs: int = 0
    input_elements: int = 0
    output_elements: int = 0
    input_hw: Pair | None = None
    output_hw: Pair | None = None
    outside: bool = False  # its weight or bias is read past the layer
    after_choice: bool = False  # what reaches it was selected by value
    final: bool = False  # what it puts out reaches the network's output, and no other layer


def macs_of_call(module: nn.Module, taken: list[torch.Tensor], y: torch.Tensor) -> int:
    """Multiply-accumulates of one call; 2 per output element for normalisation, 0 for the rest."""
    x = taken[0]
    if isinstance(module, _ConvTransposeNd):
        return x.numel() * prod(module.weight.shape[1:])
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return y.numel() * prod(module.weight.shape[1:])
    if isinstance(module, nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, (_BatchNorm, *_NORMS)):
        return 2 * y.numel()
    if isinstance(module, ComputesProducts):
        return module.product_macs(taken)
    if isinstance(module, nn.MultiheadAttention):
        return _attention_macs(module, taken)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        steps = x.numel() // module.input_size
        return steps * sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))
    if isinstance(module, nn.Bilinear):
        return y.numel() * prod(module.weight.shape[1:])
    return 0


def _attention_macs(module: nn.MultiheadAttention, taken: list[torch.Tensor]) -> int:
    """Four projections, and the two products of queries, keys and values."""
    query, key, value = (*taken, taken[-1], taken[-1])[:3]
    width: int = module.embed_dim
    queries, keys = query.numel() // width, key.numel() // key.shape[-1]
    sequences = 1 if query.dim() == 2 else query.shape[0 if module.batch_first else 1]
    projections = 2 * queries * width * width + keys * width * (key.shape[-1] + value.shape[-1])
    return projections + 2 * width * queries * keys // sequences


def make_row(
    name: str,
    module: nn.Module,
    seen: Seen,
    folds: dict[str, str],
    shared: dict[str, str],
    counted: set[int],
) -> LayerInfo:
    """The row of one layer.

    Args:
        name: Its path.
        module: The layer.
        seen: What the forward pass saw of it.
        folds: BatchNorm -> the layer it can be folded into.
        shared: Layer -> another that holds the same weight.
        counted: Ids of parameters in earlier rows; those of this row are added.
    """
    kind = _kind_of(module)
    own = list(module.parameters(recurse=isinstance(module, nn.MultiheadAttention)))
    fresh = {id(parameter): parameter.numel() for parameter in own if id(parameter) not in counted}
    counted.update(fresh)
    weight = module._parameters.get("weight")
    if isinstance(module, nn.MultiheadAttention):
        weight = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
    if weight is None and own:
        weight = own[0]
    shape = tuple(weight.shape) if weight is not None else (getattr(module, "num_features", 0),)
    structures, reason = _structures(name, kind, module, seen, shared.get(name))
    if kind == "batchnorm":
        structures, reason = (), _batchnorm_reason(name, seen, folds)
    return LayerInfo(
        name=name or ROOT_NAME, kind=kind, weight_shape=shape, **_geometry(module),
        bias=module._parameters.get("bias") is not None, input_hw=seen.input_hw, output_hw=seen.output_hw,
        macs=seen.macs, params=sum(fresh.values()), structures=structures, skip_reason=reason,
        calls=seen.calls, output_elements=seen.output_elements, input_elements=seen.input_elements,
        folds_batchnorm=name in folds.values(), folded_into=folds.get(name),
        after_choice=seen.after_choice,
        final=seen.final,
    )  # fmt: skip


def _kind_of(module: nn.Module) -> str:
    if isinstance(module, ComputesProducts):
        return "attention"
    return next((name for base, name in _KINDS.items() if isinstance(module, base)), "parameter")


def _batchnorm_reason(name: str, seen: Seen, folds: dict[str, str]) -> str | None:
    if name in folds:
        return None
    return "it cannot be folded into a layer directly before it" if seen.calls else NOT_RUN


def _structures(
    name: str, kind: str, module: nn.Module, seen: Seen, shared_with: str | None
) -> tuple[tuple[str, ...], str | None]:
    """What a plan may make of a layer that is no BatchNorm, and why not more."""
    reason = _reason_to_keep(name, kind, module, seen, shared_with)
    if reason is not None:
        return ("keep",), reason
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        depthwise = module.groups == module.in_channels
        return ("dense", "keep"), DEPTHWISE if depthwise else GROUPED
    if isinstance(module, nn.Conv2d) and prod(module.kernel_size) > 1:
        return ("cp", "tucker2", "svd", "dense", "keep"), None
    return ("svd", "dense", "keep"), None


def _reason_to_keep(
    name: str, kind: str, module: nn.Module, seen: Seen, shared_with: str | None
) -> str | None:
    if kind == "parameter":
        return "parameters outside convolution and linear layers stay as they are"
    if seen.outside:
        return READ_OUTSIDE
    if not seen.calls:
        return NOT_RUN
    if isinstance(module, ComputesProducts):
        return "what is left of an attention beside its projections, which have rows of their own"
    if kind == "attention":
        return PACKED
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return f"{kind} layers stay as they are: only 2-d convolutions and linear layers are compressed"
    if not name:
        return "it is the whole network: wrap it in nn.Sequential to compress it"
    if "weight" not in module._parameters:
        return "its weight is computed by a parametrization: remove that first"
    if type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return f"{type(module).__name__} computes its output in its own way"
    if shared_with is not None:
        return f"it shares its weight with {shared_with}"
    return None


def _geometry(module: nn.Module) -> dict[str, Any]:
    """Kernel, stride, padding, dilation, groups and padding mode of a 2-d (transposed) convolution."""
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return {"groups": getattr(module, "groups", 1)} if isinstance(module, (nn.Conv1d, nn.Conv3d)) else {}
    if module.padding == "same":  # what is left over of an odd total goes to the bottom and the right
        padding = tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    else:
        padding = (0, 0) if isinstance(module.padding, str) else tuple(module.padding)
    return {
        "kernel": tuple(module.kernel_size), "stride": tuple(module.stride), "padding": padding,
        "dilation": tuple(module.dilation), "groups": module.groups, "padding_mode": module.padding_mode,
    }  # fmt: skip
