"""The forward pass behind the inventory: what each layer of a network takes in and puts out."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from qaf_core.errors import ModelError
from qaf_core.network.inventory import LayerInfo, Pair

ROOT_NAME = "(model)"

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
class _Seen:
    """What the hooks saw of one module."""

    calls: int = 0
    macs: int = 0
    input_elements: int = 0
    output_elements: int = 0
    input_hw: Pair | None = None
    output_hw: Pair | None = None
    outside: bool = False  # its weight is read, but the layer is not called


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What the hooks saw, in order, and how often each layer's output was read.

    Attributes:
        seen: Name of a module -> what it did.
        feeds: Name of a BatchNorm -> (layer, id of the tensor) whose output it took in.
        made_by: Id of a layer's output -> the layer. The tensors are kept alive, so that no id is given
            twice.
        reads: Id of a layer's output -> operations that took it in.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, _Seen] = {}
        self.feeds: dict[str, tuple[str, int]] = {}
        self.made_by: dict[int, str] = {}
        self.reads: Counter[int] = Counter()
        self._alive: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.update({id(tensor) for tensor in _tensors((args, kwargs))} & self.made_by.keys())
        return func(*args, **(kwargs or {}))

    def made(self, name: str, output: torch.Tensor) -> None:
        """Remember what a layer put out."""
        self.made_by[id(output)] = name
        self._alive.append(output)


class _LinearReads(TorchFunctionMode):
    """Notes where a linear layer's weight is used without the layer being called, as in Swin's attention."""

    def __init__(self, watch: _Watch, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.watch = watch
        layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
        self.names = {id(layer.weight): name for name, layer in reversed(layers.items())}
        self.widths = {name: layer.in_features for name, layer in layers.items()}
        self.uses: dict[str, list[tuple[int, int]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is functional.linear and len(args) > 1 and id(args[1]) in self.names:
            name = self.names[id(args[1])]
            self.watch.seen.setdefault(name, _Seen())  # here, to keep the forward order
            self.uses.setdefault(name, []).append((args[0].numel(), output.numel()))
        return output

    def settle(self) -> None:
        """Count the uses of those layers that no hook saw."""
        for name, uses in self.uses.items():
            seen = self.watch.seen[name]
            if not seen.calls:
                seen.outside, seen.calls = True, len(uses)
                seen.input_elements = sum(taken for taken, _ in uses)
                seen.output_elements = sum(made for _, made in uses)
                seen.macs = seen.output_elements * self.widths[name]


def trace_network(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[LayerInfo, ...]:
    """See ``take_inventory``, which this does the work of."""
    if not input_shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in input_shape):
        raise ModelError(
            "input shape out of range", got=input_shape, expected="whole numbers of at least 1: C, H, W"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "TorchScript networks cannot be taken apart", remedy="give the nn.Module it was made from"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ModelError(
            "the network holds lazy layers without a shape", remedy="run it once on an input first"
        )
    modules = dict(_weight_modules(model))
    watch = _watch_forward(model, modules, input_shape)
    folds = _foldable(watch, modules)
    order = [*watch.seen, *(name for name in modules if name not in watch.seen)]
    counted: set[int] = set()
    shared = _shared_weights(modules, order)
    return tuple(
        _row(name, modules[name], watch.seen.get(name, _Seen()), folds, shared, counted) for name in order
    )


def _weight_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters of their own, and BatchNorm; the layers inside an attention belong to it."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside.update(module.modules())
        if isinstance(module, _BatchNorm) or any(True for _ in module.parameters(recurse=False)):
            yield name, module


def _watch_forward(model: nn.Module, modules: dict[str, nn.Module], input_shape: tuple[int, ...]) -> _Watch:
    """Run the network once on zeros: weightless if it can, else as it is."""
    try:
        weightless = _weightless_copy(model)
        twins = dict(weightless.named_modules())
        return _run(
            weightless, {name: twins[name] for name in modules}, torch.zeros(1, *input_shape, device="meta")
        )
    except Exception:  # the network computes with values, or holds tensors no copy reaches: run it for real
        pass
    first = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
    try:
        return _run(model, modules, image)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"the network does not run on an input of shape {(1, *input_shape)}",
            got=f"{type(error).__name__}: {lines[0] if lines else 'no message'}",
            remedy="check the input shape (channels, height, width) and the network's forward()",
        ) from error


def _weightless_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device; no weight is copied, and shared tensors stay shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no fused attention (it would pass the hooks by); undone afterwards."""
    training = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the network warns of is told when it runs in earnest
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, was in training.items():
            module.training = was


def _run(model: nn.Module, modules: dict[str, nn.Module], image: torch.Tensor) -> _Watch:
    watch = _Watch()
    reads = _LinearReads(watch, modules)
    handles = [
        module.register_forward_hook(_hook(watch, name), with_kwargs=True) for name, module in modules.items()
    ]
    try:
        with _inference(model), reads, watch:
            output = model(image.to(dtype=next(model.parameters(), image).dtype))
    finally:
        for handle in handles:
            handle.remove()
    watch.reads.update(id(tensor) for tensor in _tensors(output))
    reads.settle()
    return watch


def _hook(watch: _Watch, name: str) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        taken = _tensors((args, kwargs))
        given = _tensors(output)
        seen = watch.seen.setdefault(name, _Seen())
        seen.calls += 1
        if not taken or not given:
            return
        x, y = taken[0], given[0]
        seen.macs += _macs(module, taken, y)
        seen.input_elements += x.numel()
        seen.output_elements += y.numel()
        if isinstance(module, nn.Conv2d) and prod(y.shape[-2:]) >= prod(seen.output_hw or (0,)):
            seen.input_hw = (int(x.shape[-2]), int(x.shape[-1]))
            seen.output_hw = (int(y.shape[-2]), int(y.shape[-1]))
        if isinstance(module, _BatchNorm):
            if id(x) in watch.made_by:
                watch.feeds[name] = (watch.made_by[id(x)], id(x))
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            watch.made(name, y)

    return note


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _macs(module: nn.Module, taken: list[torch.Tensor], y: torch.Tensor) -> int:
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


def _foldable(watch: _Watch, modules: dict[str, nn.Module]) -> dict[str, str]:
    """BatchNorm -> the layer it can be folded into: nothing else reads its output, and both run once."""
    folds: dict[str, str] = {}
    for name, (source, output) in watch.feeds.items():
        batchnorm, weight = modules[name], modules[source]._parameters.get("weight")
        if watch.reads[output] != 1 or watch.seen[name].calls != 1 or watch.seen[source].calls != 1:
            continue
        statistics = batchnorm.running_mean if isinstance(batchnorm, _BatchNorm) else None
        if statistics is not None and weight is not None and weight.shape[0] == statistics.numel():
            folds[name] = source
    return folds


def _shared_weights(modules: dict[str, nn.Module], order: list[str]) -> dict[str, str]:
    """Layer -> an earlier one that holds the very same weight tensor."""
    owner: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name in order:
        weight = modules[name]._parameters.get("weight")
        if weight is not None:
            first = owner.setdefault(id(weight), name)
            if first != name:
                shared[name] = first
                shared.setdefault(first, name)
    return shared


def _row(
    name: str,
    module: nn.Module,
    seen: _Seen,
    folds: dict[str, str],
    shared: dict[str, str],
    counted: set[int],
) -> LayerInfo:
    kind = next((name for base, name in _KINDS.items() if isinstance(module, base)), "parameter")
    own = list(module.parameters(recurse=kind == "attention"))
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
    )  # fmt: skip


def _batchnorm_reason(name: str, seen: _Seen, folds: dict[str, str]) -> str | None:
    if name in folds:
        return None
    if not seen.calls:
        return "it is never called as a layer in a forward pass"
    return "it cannot be folded into a layer directly before it"


def _structures(
    name: str, kind: str, module: nn.Module, seen: _Seen, shared_with: str | None
) -> tuple[tuple[str, ...], str | None]:
    """What a plan may make of a layer that is no BatchNorm, and why not more."""
    keep = ("keep",)
    if kind == "parameter":
        return keep, "parameters outside convolution and linear layers stay as they are"
    if not seen.calls:
        return keep, "it is never called as a layer in a forward pass"
    if seen.outside:
        return keep, "its weight is used without the layer being called"
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return keep, f"{kind} layers stay as they are: only 2-d convolutions and linear layers are compressed"
    if not name:
        return keep, "it is the whole network: wrap it in nn.Sequential to compress it"
    if "weight" not in module._parameters:
        return (
            keep,
            "its weight is computed by a parametrization: remove that first",
        )
    if type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return keep, f"{type(module).__name__} computes its output in its own way"
    if shared_with is not None:
        return keep, f"it shares its weight with {shared_with}"
    if isinstance(module, nn.Linear):
        return ("svd", "dense", "keep"), None
    if module.groups > 1:
        depthwise = module.groups == module.in_channels
        return ("dense", "keep"), f"{'depthwise' if depthwise else 'grouped'} convolutions are not factorized"
    if prod(module.kernel_size) == 1:
        return ("svd", "dense", "keep"), None
    return ("cp", "tucker2", "dense", "keep"), None


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
