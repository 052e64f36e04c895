"""From a PyTorch network of any kind to a captured one.

The whole network becomes one graph where it can. A network that chooses by value, as a detector its boxes,
cannot: then its largest parts that can are captured, found by descending, and the rest stays Python. A
network of which nothing can be captured, that does not give the same answer twice or that changes itself is
refused.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_map

from qaf_core.errors import ModelError, QafError
from qaf_core.network.graph.canonical import CanonicalGraph
from qaf_core.network.graph.constants import LEAST_EPSILON
from qaf_core.network.graph.export import RefusedNetworkError, export_module, quiet
from qaf_core.network.graph.inference import example_images, inference
from qaf_core.network.graph.network import (
    GraphNetwork,
    is_captured,
    layers_in,
    norms_in,
    observed,
    signature,
)
from qaf_core.network.graph.program import Execution, Program
from qaf_core.network.graph.proof import prove_capture
from qaf_core.network.graph.value_choices import KeepEverything
from qaf_core.network.graph.wrappers import unwrapped
from qaf_core.network.modules.quantized import BatchNorm, Layer
from qaf_core.text.said import say

Result = TypeVar("Result")
EXAMPLE_IMAGES = 2  # of one, export would conclude that it is always just one
EXAMPLE_ROWS = 16  # of what a part is captured on, if the rows were chosen
_HALF = (torch.float16, torch.bfloat16)


def capture(model: nn.Module, input_shape: Sequence[int], *, prove: bool = True) -> nn.Module:
    """Capture a network.

    Args:
        model: In any mode; it is not changed. A captured one is given back as it is. One in half precision is
            captured as what it computes in single precision.
        input_shape: (C, H, W) of one image.
        prove: Compare what the two compute; of no use where the weights are random and only shapes count.

    Returns:
        A ``GraphNetwork`` in evaluation mode, or a copy of the network with such in place of its parts. Its
        tensors are the network's own, unless they were in half precision.

    Raises:
        ModelError: If the network does not run on such images, or cannot be captured.
    """
    if is_captured(model):
        return model
    _check(model, input_shape)
    original = _in_single_precision(unwrapped(model, input_shape))
    network = _prepared(original)
    example = example_images(network, input_shape, EXAMPLE_IMAGES)
    with inference(network):
        captured = _captured_somehow(network, example, input_shape, original)
        if prove:
            _prove(original, captured, input_shape)
        return captured


def _prove(original: nn.Module, captured: nn.Module, input_shape: Sequence[int]) -> None:
    try:
        prove_capture(original, captured, input_shape)
    except QafError:
        raise
    except Exception as error:  # of regions that export writes as graphs of their own, for one
        raise ModelError(
            "the network cannot be captured as a graph of operations", got=_reason(error)
        ) from error


def _captured_somehow(
    network: nn.Module, example: Tensor, input_shape: Sequence[int], original: nn.Module
) -> nn.Module:
    try:
        return _captured(network, (example,), {})
    except RefusedNetworkError:
        raise
    except Exception as error:  # export raises many kinds, and so does the network's own code
        failure = error
    try:
        rebuilt = _captured_in_parts(network, input_shape)
    except Exception:
        rebuilt = None
    if rebuilt is not None:
        return rebuilt
    with inference(original):  # the copy may have lost parts by now
        _check_runs(original, input_shape)
    raise ModelError(
        "the network cannot be captured as a graph of operations",
        got=_reason(failure),
        remedy="let its forward pass depend on the shapes of its inputs only, not on their values",
    ) from failure


def _check(model: nn.Module, input_shape: Sequence[int]) -> None:
    if not input_shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in input_shape):
        raise ModelError(
            "input shape out of range",
            got=tuple(input_shape),
            expected="whole numbers of at least 1: C, H, W",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "TorchScript networks cannot be taken apart", remedy="give the nn.Module it was made from"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ModelError(
            "the network holds lazy layers without a shape", remedy="run it once on an input first"
        )


def _in_single_precision(model: nn.Module) -> nn.Module:
    if not any(tensor.dtype in _HALF for tensor in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).float()


def _prepared(model: nn.Module) -> nn.Module:
    """A copy that shares its tensors, frozen BatchNorm as ordinary one."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        model = weightless_copy(model)  # what is not on the meta device goes there too
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo.update((id(tensor), tensor.detach()) for tensor in _results_in(model))
    try:
        network = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError("the network cannot be copied", got=_reason(error)) from error
    frozen = getattr(sys.modules.get("torchvision.ops.misc"), "FrozenBatchNorm2d", None)
    for owner in list(network.modules()):
        for name, child in list(owner._modules.items()):
            if frozen is not None and type(child) is frozen:
                owner._modules[name] = _thawed(child)
    return network


def _results_in(model: nn.Module) -> Iterator[Tensor]:
    """What earlier passes left on the modules with its history, which PyTorch does not copy."""
    for module in model.modules():
        for leaf in tree_flatten(list(vars(module).values()))[0]:
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                yield leaf


def _thawed(frozen: Any) -> nn.BatchNorm2d:
    """torchvision's frozen BatchNorm, a formula over buffers, as an ordinary one that no training changes."""
    norm = nn.BatchNorm2d(frozen.weight.numel(), eps=max(frozen.eps, LEAST_EPSILON), device="meta")
    norm.weight = nn.Parameter(frozen.weight, requires_grad=False)
    norm.bias = nn.Parameter(frozen.bias, requires_grad=False)
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=frozen.weight.device)
    return norm.eval()


# One graph


def _captured(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> GraphNetwork:
    """A module as a network of one program, for any number of images if it can be."""
    again = _Again(module)
    network = GraphNetwork(again)
    program = again.first(network, args, kwargs)
    leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    network.graph_programs[signature(leaves, spec, any_batch=program.any_batch)] = program
    ids = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    used = again.used
    network.absent_parameters = {
        name: tuple(tensor.shape)
        for name, tensor in module.named_parameters()
        if id(tensor) not in ids and (name not in used or name in network.taken_up_parameters)
    }
    owners = {
        name.rpartition(".")[0]
        for name in network.absent_parameters
        if name not in network.taken_up_parameters
    }
    kinds = {name: layer_kind(part) for name, part in module.named_modules() if name in owners}
    network.absent_layer_kinds = {name: kind for name, kind in kinds.items() if kind is not None}
    return network.eval()


def layer_kind(module: nn.Module) -> str | None:
    """What kind of layer a module of PyTorch that runs in no prediction would be, or None."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.modules.conv._ConvNd):
        return f"conv{'_transpose' if module.transposed else ''}{len(module.kernel_size)}d"
    return None


class _Again:
    """Captures a module for inputs of further sizes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._fixed = False
        self.used: set[str] = set()

    def first(self, network: GraphNetwork, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
        """Any number of images if the network takes it, else this one."""
        try:
            return self._capture(network, args, kwargs, any_batch=True)
        except RefusedNetworkError:
            raise
        except Exception as error:  # whatever the network does with the number of images
            if "DataDependent" in type(error).__name__:
                raise  # no fixed number would help
            self._fixed = True
            _clear(network)
            return self._capture(network, args, kwargs, any_batch=False)

    def fix_batch_size(self) -> None:
        """Capture each number of images for itself from now on."""
        self._fixed = True

    def __call__(self, network: GraphNetwork, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
        """As ``first``, for a network that has programs already."""
        with inference(self._module):
            enough = all(
                len(t) > 1 for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor) and t.ndim
            )
            if not self._fixed and enough:
                try:
                    return self._capture(network, args, kwargs, any_batch=True)
                except Exception:  # this size only, then
                    pass
            try:
                return self._capture(network, args, kwargs, any_batch=False)
            except Exception as error:
                shapes = [tuple(t.shape) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
                raise ModelError(
                    "the network cannot be captured for inputs of this size",
                    got=f"{shapes}: {_reason(error)}",
                ) from error

    def _capture(
        self, network: GraphNetwork, args: Sequence[Any], kwargs: Mapping[str, Any], *, any_batch: bool
    ) -> Program:
        args, kwargs = tree_map(_plain_copy, (tuple(args), dict(kwargs)))
        exported = export_module(self._module, args, kwargs, any_batch=any_batch)
        self.used |= {name for node, (name, _) in exported.constants.items() if node.users}
        graph = CanonicalGraph(exported, _names(self._module), network)
        program = graph.build()
        network.taken_up_parameters |= graph.taken_up_parameters
        return program


def _plain_copy(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else value


def _names(module: nn.Module) -> dict[int, str]:
    """Id of each tensor -> its first name."""
    names: dict[int, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False),
    ):  # fmt: skip
        names.setdefault(id(tensor), name)
    return names


def _clear(network: GraphNetwork) -> None:
    for table in (network._modules, network._parameters, network._buffers):
        table.clear()


# In parts


def _check_runs(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Raise ModelError unless the network itself runs."""
    if next((p for p in network.parameters() if p.device.type == "meta"), None) is not None:
        return
    try:
        network(example_images(network, input_shape, 1))
    except Exception as error:
        raise ModelError(
            say("the network does not run on an input of shape {value}", value=(1, *input_shape)),
            got=_reason(error),
            remedy="check the input shape (channels, height, width) and the network's forward()",
        ) from error


def _captured_in_parts(network: nn.Module, input_shape: Sequence[int]) -> nn.Module | None:
    """The network with its largest parts that can be captured in place, changed in place; None: there are
    none.
    """
    calls = _watch_calls(network, input_shape)
    device = next(network.parameters()).device
    count = 0

    def descend(owner: nn.Module, path: str) -> None:
        nonlocal count
        for name, child in list(owner.named_children()):
            place = f"{path}.{name}" if path else name
            call = calls.get(child)
            if next(child.parameters(), None) is None:
                continue
            part = None if call is None else _try_part(child, *_small(call, device))  # a list is not called
            if part is None:
                descend(child, place)
            else:
                owner._modules[name] = part
                count += 1

    descend(network, "")
    if not count:
        return None
    choosing = KeepEverything() if device.type == "meta" else contextlib.nullcontext()
    with choosing:  # it may read of a part what no graph has
        _mark_direct_calls(network, example_images(network, input_shape, 1))
    return network.eval()


def _mark_direct_calls(network: nn.Module, example: Tensor) -> None:
    """Run it once, and mark the layers and BatchNorms that Python calls past the graphs they stand in."""
    calls: dict[nn.Module, int] = {}
    handles = []

    def called(module: nn.Module, _args: Any) -> None:
        calls[module] = calls.get(module, 0) + 1

    def stepped(execution: Execution, node: Node, _result: Any) -> None:
        if node.op == "call_module":
            calls[execution.root.get_submodule(str(node.target))] -= 1

    for module in (*layers_in(network).values(), *norms_in(network).values()):
        handles.append(module.register_forward_pre_hook(called))
    try:
        with observed(network, stepped):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    for module, more in calls.items():
        if isinstance(module, Layer | BatchNorm):
            module.read_elsewhere = module.read_elsewhere or more > 0


def _try_part(module: nn.Module, args: Any, kwargs: Any) -> GraphNetwork | None:
    leaves = tree_flatten((args, kwargs))[0]
    if not all(isinstance(leaf, Tensor | bool | int | float | str | None) for leaf in leaves):
        return None
    try:
        return _captured(module, args, kwargs)
    except Exception:  # its parts may do
        return None


def _watch_calls(network: nn.Module, input_shape: Sequence[int]) -> dict[nn.Module, tuple[Any, Any]]:
    """Module -> the arguments of its first call; on the meta device where that can be."""
    seen: dict[str, tuple[Any, Any]] = {}
    try:
        weightless = weightless_copy(network)
        example = torch.zeros(EXAMPLE_IMAGES, *input_shape, device="meta")
        with KeepEverything() as choosing:
            _run_watched(weightless, example, seen)
        if choosing.values and any(
            name not in seen and next(module.parameters(recurse=False), None) is not None
            for name, module in network.named_modules()
        ):
            raise RuntimeError("whether a part runs depends on a value")
    except Exception:  # it computes with values: run it for real
        seen.clear()
        _run_watched(network, example_images(network, input_shape, EXAMPLE_IMAGES), seen)
    return {module: seen[name] for name, module in network.named_modules() if name in seen}


def _small(call: tuple[Any, Any], device: torch.device) -> tuple[Any, Any]:
    """A call's arguments as zeros; of a single tensor few rows, as where all there is to choose was kept."""
    tensors = [leaf for leaf in tree_flatten(call)[0] if isinstance(leaf, Tensor)]

    def zeros(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = list(leaf.shape)
        if len(tensors) == 1 and shape:
            shape[0] = min(shape[0], EXAMPLE_ROWS)
        return torch.zeros(shape, dtype=leaf.dtype, device=device)

    smaller: tuple[Any, Any] = tree_map(zeros, call)
    return smaller


def _run_watched(network: nn.Module, example: Tensor, seen: dict[str, tuple[Any, Any]]) -> None:
    handles = []
    for name, module in network.named_modules():

        def watch(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            seen.setdefault(name, (args, kwargs))

        handles.append(module.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        with quiet():
            network(example)
    finally:
        for handle in handles:
            handle.remove()


def weightless_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device; no weight is copied, and shared tensors stay shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def without_weights(model: nn.Module, run: Callable[[nn.Module, torch.device], Result]) -> Result:
    """What a run of the network tells, on the meta device; with its weights where it computes with values."""
    try:
        return run(weightless_copy(model), torch.device("meta"))
    except MemoryError:
        raise
    except Exception:  # a user's code may raise anything
        return run(model, next(model.parameters(), torch.zeros(())).device)


def _reason(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:240]
