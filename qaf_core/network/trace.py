"""The forward pass behind the inventory: what each layer of a network takes in and puts out."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from qaf_core.errors import ModelError
from qaf_core.network.attention import ComputesProducts
from qaf_core.network.choices import is_choice, keep_everything
from qaf_core.network.inventory import LayerInfo
from qaf_core.network.rows import Seen, macs_of_call, make_row


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        layers: The convolutions and linear layers nearest before it.
        chosen: It follows from a choice by value.
    """

    layers: frozenset[str]
    chosen: bool


NOWHERE = Origin(frozenset(), False)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What the hooks saw, in order, and what became of the tensors between the layers.

    Attributes:
        seen: Name of a module -> what it did.
        feeds: Name of a BatchNorm -> (layer, id of the tensor) whose output it took in.
        made_by: Id of a layer's output -> the layer. The tensors are kept alive, so that no id is given
            twice.
        reads: Id of a layer's output -> operations that took it in.
        origins: Tensor -> where it comes from.
        passed_on: Layers whose output another layer depends on.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, Seen] = {}
        self.feeds: dict[str, tuple[str, int]] = {}
        self.made_by: dict[int, str] = {}
        self.reads: Counter[int] = Counter()
        self.origins: MutableMapping[torch.Tensor, Origin] = WeakTensorKeyDictionary()
        self.passed_on: set[str] = set()
        self._alive: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = _tensors((args, kwargs))
        self.reads.update({id(tensor) for tensor in taken} & self.made_by.keys())
        output = keep_everything(func, args, kwargs or {})
        origin = self.origin_of(taken)
        if is_choice(func, args):
            origin = replace(origin, chosen=True)
        if origin != NOWHERE:
            for tensor in _tensors(output):
                self.origins[tensor] = origin
                if tensor._base is not None and any(tensor is given for given in taken):
                    self.origins[tensor._base] = self.origin_of(
                        [tensor._base, tensor]
                    )  # written through a view
        return output

    def origin_of(self, tensors: Iterable[torch.Tensor]) -> Origin:
        """Where several tensors come from, together."""
        found = [origin for tensor in tensors if (origin := self.origins.get(tensor)) is not None]
        if not found:
            return NOWHERE
        return Origin(frozenset().union(*(o.layers for o in found)), any(o.chosen for o in found))

    def made(self, name: str, taken: list[torch.Tensor], given: list[torch.Tensor]) -> None:
        """Remember what a layer put out, and what it came from."""
        origin = self.origin_of(taken)
        self.passed_on |= origin.layers
        self.made_by[id(given[0])] = name
        self._alive.append(given[0])
        for tensor in given:
            self.origins[tensor] = Origin(frozenset({name}), origin.chosen)


class _OutsideReads(TorchFunctionMode):
    """Notes where a layer's weight or bias is read while the layer itself does not run.

    Such a layer cannot be exchanged: what reads its weight would find none.
    """

    def __init__(self, watch: _Watch, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.watch = watch
        layers = {n: module for n, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))}
        self.owners = {
            id(parameter): name
            for name, layer in reversed(layers.items())
            for parameter in layer._parameters.values()
            if parameter is not None
        }
        self.running: Counter[int] = Counter()  # ids of the parameters of running layers
        self.uses: dict[str, list[tuple[int, int, int]]] = {}

    def enter(self, module: nn.Module, _inputs: Any) -> None:
        """A layer starts: what it reads of its own is no read from outside."""
        self.running.update(map(id, module._parameters.values()))

    def leave(self, module: nn.Module) -> None:
        """A layer ends."""
        self.running.subtract(map(id, module._parameters.values()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for key in {id(value) for value in (*args, *(kwargs or {}).values())} & self.owners.keys():
            if self.running[key] > 0:
                continue
            name = self.owners[key]
            self.watch.seen.setdefault(name, Seen()).outside = True  # here, to keep the forward order
            if func in (functional.linear, functional.conv2d) and len(args) > 1 and key == id(args[1]):
                use = (args[0].numel(), output.numel(), output.numel() * prod(args[1].shape[1:]))
                self.uses.setdefault(name, []).append(use)
        return output

    def settle(self) -> None:
        """Count the operations of those layers that no hook saw."""
        for name, uses in self.uses.items():
            seen = self.watch.seen[name]
            if not seen.calls:
                seen.calls = len(uses)
                seen.input_elements, seen.output_elements, seen.macs = map(sum, zip(*uses, strict=True))


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
        make_row(name, modules[name], watch.seen.get(name, Seen()), folds, shared, counted) for name in order
    )


def _weight_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters of their own, BatchNorm, and attention with all that it packs."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside.update(module.modules())
        own = any(parameter is not None for parameter in module._parameters.values())
        if own or isinstance(module, (_BatchNorm, ComputesProducts)):
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
    reads = _OutsideReads(watch, modules)
    image = image.to(dtype=next(model.parameters(), image).dtype)
    handles = [module.register_forward_pre_hook(reads.enter) for module in modules.values()]
    handles += [
        module.register_forward_hook(_hook(watch, reads, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with _inference(model), reads, watch:
            output = model(image)
    finally:
        for handle in handles:
            handle.remove()
    results = _tensors(output)
    watch.reads.update(map(id, results))
    for name in watch.origin_of(results).layers - watch.passed_on:
        watch.seen[name].final = True
    reads.settle()
    return watch


def _hook(watch: _Watch, reads: _OutsideReads, name: str) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        taken = _tensors((args, kwargs))
        given = _tensors(output)
        seen = watch.seen.setdefault(name, Seen())
        seen.calls += 1
        if taken and given:
            _note_call(watch, seen, name, module, taken, given)
        reads.leave(module)

    return note


def _note_call(
    watch: _Watch,
    seen: Seen,
    name: str,
    module: nn.Module,
    taken: list[torch.Tensor],
    given: list[torch.Tensor],
) -> None:
    x, y = taken[0], given[0]
    seen.macs += macs_of_call(module, taken, y)
    seen.input_elements += x.numel()
    seen.output_elements += y.numel()
    seen.after_choice |= watch.origin_of([x]).chosen
    if isinstance(module, nn.Conv2d) and prod(y.shape[-2:]) >= prod(seen.output_hw or (0,)):
        seen.input_hw = (int(x.shape[-2]), int(x.shape[-1]))
        seen.output_hw = (int(y.shape[-2]), int(y.shape[-1]))
    if isinstance(module, _BatchNorm):
        if id(x) in watch.made_by:
            watch.feeds[name] = (watch.made_by[id(x)], id(x))
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        watch.made(name, taken, given)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


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
