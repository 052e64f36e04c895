"""The rows of the inventory, read off a captured network as it runs once without weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils.weak import WeakTensorKeyDictionary

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import EXAMPLE_IMAGES, capture, layer_kind, without_weights
from qaf_core.network.graph.inference import inference
from qaf_core.network.graph.network import (
    GraphNetwork,
    first_tensors,
    layer_of,
    layers_in,
    networks_in,
    norms_in,
)
from qaf_core.network.graph.nodes import joined_path, module_of, operator_of, site_of
from qaf_core.network.graph.program import Execution, tensor_at
from qaf_core.network.graph.value_choices import KeepEverything, is_choice
from qaf_core.network.modules.quantized import BatchNorm, FactorizedLayer, Layer
from qaf_core.network.plan.layer_info import KEEP, LayerInfo, possible_structures

ROOT_NAME = "(model)"
NOT_RUN = "it does not run in a prediction: a head for training only, or a spare part"
DEPTHWISE = "depthwise: every output reads one channel only, so there is nothing to factorize"
GROUPED = "grouped: every output reads the few channels of its group only, which leaves little to factorize"
READ_ELSEWHERE = "the network reads its weight or bias past the layer itself, so the layer must stay"
PRODUCTS = "what is left of an attention beside its projections, which have rows of their own"
PARAMETER = "parameters outside convolution and linear layers stay as they are"
BY_BATCH = "it normalises by the statistics of each batch, which no layer can take over"
OTHER_KIND = "layers of this kind stay as they are: only products with a constant weight are compressed"
NOT_FOLDED = "it cannot be folded into a layer directly before it"

# Operator -> kind of the row of its parameters.
_KINDS = {
    "layer_norm": "layernorm", "rms_norm": "rmsnorm", "group_norm": "groupnorm",
    "native_group_norm": "groupnorm", "instance_norm": "instancenorm", "embedding": "embedding",
    "embedding_bag": "embedding", "prelu": "prelu", "_prelu_kernel": "prelu", "lstm": "recurrent",
    "gru": "recurrent", "rnn_tanh": "recurrent", "rnn_relu": "recurrent", "lstm_cell": "recurrent",
    "gru_cell": "recurrent", "rnn_tanh_cell": "recurrent", "rnn_relu_cell": "recurrent",
    "bilinear": "bilinear", "batch_norm": "batchnorm",
}  # fmt: skip
_NORMS = ("layernorm", "groupnorm", "instancenorm", "rmsnorm")
_PRODUCTS = ("bmm", "matmul", "mm", "baddbmm", "scaled_dot_product_attention", "einsum")


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: the layers nearest before it, and whether it follows from a choice."""

    layers: frozenset[str]
    chosen: bool


_NOWHERE = _Origin(frozenset(), False)


class _Origins(KeepEverything):  # type: ignore[no-untyped-call]
    """Follows where tensors come from."""

    def __init__(self) -> None:
        super().__init__()
        self.of: MutableMapping[Tensor, _Origin] = WeakTensorKeyDictionary()
        self.passed_on: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        origin = self.joined(first_tensors((args, kwargs)))
        if is_choice(func, args):
            origin = _Origin(origin.layers, True)
        if origin != _NOWHERE:
            for tensor in first_tensors(output):
                self.of[tensor] = origin
        return output

    def joined(self, tensors: Iterable[Tensor]) -> _Origin:
        """Where several tensors come from, together."""
        origins = [origin for tensor in tensors if (origin := self.of.get(tensor)) is not None]
        if not origins:
            return _NOWHERE
        return _Origin(
            frozenset().union(*(row.layers for row in origins)), any(row.chosen for row in origins)
        )


@dataclass
class _Record:
    """What was seen of a layer, a BatchNorm, or the parameters of one module, over all calls."""

    kind: str
    calls: int = 0
    macs: int = 0
    input_elements: int = 0
    output_elements: int = 0
    input_hw: tuple[int, ...] | None = None
    output_hw: tuple[int, ...] | None = None
    output_dims: int = 0
    after_choice: bool = False
    final: bool = False
    parameters: dict[str, Tensor] = field(default_factory=dict)


class _Watcher:
    """Is told of every step of every captured part."""

    def __init__(self, origins: _Origins, modules: Collection[str]) -> None:
        self.origins, self._modules = origins, modules
        self.rows: dict[str, _Record] = {}

    def watch(self, path: str, network: GraphNetwork) -> None:
        """Look at a captured part that stands at some path."""

        def look(execution: Execution, node: Node, result: Any) -> None:
            if node.op == "call_module":
                self._module(joined_path(path, str(node.target)), network, execution, node, result)
            elif node.op == "call_function":
                self._function(path, network, execution, node, result)

        network.step_observer = look

    def _module(
        self, name: str, network: GraphNetwork, execution: Execution, node: Node, result: Tensor
    ) -> None:
        module, values = network.get_submodule(str(node.target)), execution.operand(node)
        origin = self.origins.joined([values])
        if isinstance(module, BatchNorm):
            row = self.rows.setdefault(name, _Record("batchnorm"))
            row.macs += 2 * result.numel()
        else:
            assert isinstance(module, Layer)
            row = self.rows.setdefault(name, _Record(module.operation.kind))
            self._layer_call(row, module, site_of(node), values, result)
            self.origins.passed_on |= origin.layers
            self.origins.of[result] = _Origin(frozenset({name}), origin.chosen)
        row.calls += 1
        row.after_choice |= origin.chosen
        row.input_elements += values.numel()
        row.output_elements += result.numel()
        row.output_dims = result.ndim

    def _layer_call(self, row: _Record, module: Layer, site: int, values: Tensor, result: Tensor) -> None:
        operation = module.operations[site]
        row.macs += operation.macs(module.rows.shape, values.shape, result.shape)
        dims = operation.dims
        if dims and prod(result.shape[-dims:]) >= prod(row.output_hw or (0,)):
            row.input_hw, row.output_hw = tuple(values.shape[-dims:]), tuple(result.shape[-dims:])

    def _function(
        self, path: str, network: GraphNetwork, execution: Execution, node: Node, result: Any
    ) -> None:
        operator = operator_of(node)
        if operator in _PRODUCTS:
            row = self.rows.setdefault(_module_path(path, node), _Record("attention"))
            row.kind = "attention" if row.kind == "parameter" else row.kind  # it has some of its own as well
            row.calls += 1
            row.macs += _product_macs(operator, execution, node, result)
            row.output_elements += result.numel()
        read = [operand for operand in node.all_input_nodes if operand.op == "get_attr"]
        named: dict[str, dict[str, Tensor]] = {}
        for operand in read:
            tensor = execution.values.get(operand)
            if isinstance(tensor, nn.Parameter):
                full = joined_path(path, str(operand.target))
                named.setdefault(full.rpartition(".")[0] or ROOT_NAME, {})[full] = tensor
        for owner, tensors in named.items():
            if owner in self._modules:
                continue  # what something else reads of a layer is in the layer's own row
            kind = _KINDS.get(operator, "parameter")
            row = self.rows.setdefault(owner, _Record(kind))
            row.parameters.update(tensors)
            row.calls += 1
            outputs = list(first_tensors(result))
            if outputs and kind in (*_NORMS, "batchnorm"):
                row.macs += 2 * outputs[0].numel()
            elif outputs and kind in ("recurrent", "bilinear"):
                row.macs += _heavy_macs(kind, execution, node, tensors.values(), outputs[0])
            row.output_elements += outputs[0].numel() if outputs else 0


def _module_path(path: str, node: Node) -> str:
    """The module in whose forward pass an operation was written."""
    return joined_path(path, module_of(node)) or ROOT_NAME


def _product_macs(operator: str, execution: Execution, node: Node, result: Any) -> int:
    tensors = [
        execution.values[read]
        for read in node.all_input_nodes
        if isinstance(execution.values.get(read), Tensor)
    ]
    if len(tensors) < 2:
        return 0
    if operator == "scaled_dot_product_attention":
        query, key, value = tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else tensors[1]
        return int(prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    if operator == "einsum":
        return int(result.numel() * max(tensors[0].shape[-1], 1))
    left = tensors[1] if operator == "baddbmm" else tensors[0]
    return int(result.numel() * left.shape[-1])


def _heavy_macs(
    kind: str, execution: Execution, node: Node, tensors: Iterable[Tensor], output: Tensor
) -> int:
    weights = [tensor for tensor in tensors if tensor.ndim > 1]
    if kind == "bilinear":
        return int(output.numel() * prod(weights[0].shape[1:])) if weights else 0
    values = next(
        first_tensors([execution.values.get(read) for read in node.all_input_nodes if read.op != "get_attr"])
    )
    return int(prod(values.shape[:-1]) * sum(weight.numel() for weight in weights))


def take_inventory(model: nn.Module, input_shape: Sequence[int]) -> tuple[LayerInfo, ...]:
    """List every layer of a network that holds weights, in the order one forward pass runs them.

    The pass runs on a weightless copy (torch's ``meta`` device), or on the network itself where that fails.
    Layers that never run come last. The parameters of all rows add up to the network's. Operations on no
    weight, as the products inside a hand-written attention, are in no row. Where a network chooses by value,
    as a detector its boxes, the weightless copy keeps all there is to choose from.

    Args:
        model: The network; left as it is.
        input_shape: Shape of one input without the batch: (C, H, W) in pixels.

    Raises:
        ModelError: If the network does not run on such an input.
    """
    model = capture(model, input_shape)
    if any(isinstance(part, FactorizedLayer) for part in model.modules()):
        raise ModelError("the network is compressed already", remedy="take the inventory of its original")
    watcher = _run_once(model, input_shape)
    folds = _foldable(model, watcher.rows)
    return tuple(_rows(model, watcher.rows, folds))


def _run_once(model: nn.Module, input_shape: Sequence[int]) -> _Watcher:
    """One run of ``EXAMPLE_IMAGES`` images without weights, or with them where that does not work."""
    return without_weights(model, partial(_observe, input_shape))


def _observe(input_shape: Sequence[int], model: nn.Module, device: torch.device) -> _Watcher:
    origins = _Origins()
    watcher = _Watcher(origins, {*layers_in(model), *norms_in(model)})
    parts = networks_in(model)
    for path, network in parts.items():
        watcher.watch(path, network)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        with inference(model), origins:
            output = model(torch.zeros(EXAMPLE_IMAGES, *input_shape, device=device, dtype=dtype))
    finally:
        for network in parts.values():
            network.step_observer = None
    if origins.values and any(name not in watcher.rows for name in layers_in(model)):
        raise RuntimeError("whether a layer runs depends on a value")
    for name in origins.joined(first_tensors(output)).layers - origins.passed_on:
        watcher.rows[name].final = True
    return watcher


def _foldable(model: nn.Module, rows: dict[str, _Record]) -> dict[str, str]:
    """BatchNorm -> the layer it can be folded into: its single producer, whose only reader it is."""
    folds: dict[str, str] = {}
    for path, network in networks_in(model).items():
        for name, norm in norms_in(network).items():
            layer_name = _single_producer(network, name)
            if layer_name is None or norm.read_elsewhere:
                continue
            layer, record = layer_of(network, layer_name), rows.get(joined_path(path, layer_name))
            batched = (
                record is not None and record.calls == 1 and record.output_dims == layer.operation.dims + 2
            )
            if batched and not layer.read_elsewhere and len(layer.rows) == norm.running_mean.numel():
                folds[joined_path(path, name)] = joined_path(path, layer_name)
    return folds


def _single_producer(network: GraphNetwork, norm: str) -> str | None:
    """The layer whose outputs go to a BatchNorm and nowhere else, in all programs; None: there is none."""
    producers: set[str | None] = set()
    for program in network.graph_programs.values():
        if norm not in program.calls:
            continue
        (node, *more) = program.calls[norm]
        source = node.args[0]
        name = str(source.target) if isinstance(source, Node) and source.op == "call_module" else ""
        alone = isinstance(source, Node) and len(source.users) == 1 and len(program.calls.get(name, ())) == 1
        is_layer = bool(name) and isinstance(network.get_submodule(name), Layer)
        producers.add(name if is_layer and alone and not more else None)
    (producer,) = producers if len(producers) == 1 else (None,)
    without = (program for program in network.graph_programs.values() if norm not in program.calls)
    return None if producer is None or any(producer in program.calls for program in without) else producer


def _rows(model: nn.Module, records: dict[str, _Record], folds: dict[str, str]) -> Iterable[LayerInfo]:
    counted: set[int] = set()
    layers, norms = layers_in(model), norms_in(model)
    for name, row in records.items():
        if name in layers:
            yield _layer_row(name, layers[name], row, name in folds.values(), counted)
        elif name in norms:
            yield _norm_row(name, norms[name], row, folds.get(name), counted)
        else:
            yield _other_row(name, row, counted)
    for name in (*layers, *norms):
        if name not in records:
            tensors: dict[str, Tensor] = dict(model.get_submodule(name).named_parameters(recurse=False))
            yield _other_row(name, _Record("parameter", parameters=tensors), counted)
    yield from _absent_rows(model, {*records, *layers, *norms})


def _count(tensors: Iterable[Tensor], counted: set[int]) -> int:
    """Numbers in tensors that no earlier row holds."""
    fresh = {id(tensor): tensor.numel() for tensor in tensors if id(tensor) not in counted}
    counted.update(fresh)
    return sum(fresh.values())


def _per_image(count: int) -> int:
    return count // EXAMPLE_IMAGES


def _layer_row(name: str, layer: Layer, record: _Record, folded: bool, counted: set[int]) -> LayerInfo:
    operation, shape = layer.operation, tuple(layer.rows.shape)
    structures, reason = _structures(layer)
    geometry: dict[str, Any] = {}
    if operation.dims:
        geometry = {
            "kernel": shape[2:], "stride": operation.stride, "padding": operation.padding,
            "dilation": operation.dilation,
        }  # fmt: skip
    return LayerInfo(
        name=name, kind=operation.kind, weight_shape=shape, groups=operation.groups, **geometry,
        bias=layer.bias is not None, input_hw=record.input_hw, output_hw=record.output_hw,
        macs=_per_image(record.macs), params=_count(layer.parameters(), counted), structures=structures,
        skip_reason=reason, calls=record.calls, output_elements=_per_image(record.output_elements),
        input_elements=_per_image(record.input_elements), folds_batchnorm=folded,
        after_choice=record.after_choice, final=record.final,
    )  # fmt: skip


def _structures(layer: Layer) -> tuple[tuple[str, ...], str | None]:
    """What a plan may make of a layer, and why not more."""
    operation, shape = layer.operation, layer.rows.shape
    if layer.read_elsewhere:
        return (KEEP,), READ_ELSEWHERE
    if operation.groups > 1:
        depthwise = operation.groups == shape[0] or shape[1] == 1
        return ("dense", KEEP), DEPTHWISE if depthwise else GROUPED
    return possible_structures(shape), None


def _norm_row(name: str, norm: BatchNorm, record: _Record, into: str | None, counted: set[int]) -> LayerInfo:
    return LayerInfo(
        name=name, kind="batchnorm", weight_shape=tuple(norm.running_mean.shape), bias=norm.bias is not None,
        macs=_per_image(record.macs), params=_count(norm.parameters(), counted), structures=(),
        skip_reason=None if into is not None else NOT_FOLDED, calls=record.calls,
        output_elements=_per_image(record.output_elements), input_elements=_per_image(record.input_elements),
        folded_into=into, after_choice=record.after_choice,
    )  # fmt: skip


def _other_row(name: str, record: _Record, counted: set[int]) -> LayerInfo:
    tensors = record.parameters
    weight = next(
        (t for key, t in tensors.items() if key.endswith("weight")), next(iter(tensors.values()), None)
    )
    reason = PRODUCTS if record.kind == "attention" else PARAMETER
    if record.kind == "batchnorm":
        reason = BY_BATCH
    elif record.kind not in ("attention", "parameter"):
        reason = OTHER_KIND
    return LayerInfo(
        name=name, kind=record.kind, weight_shape=() if weight is None else tuple(weight.shape),
        bias=any(key.endswith("bias") for key in tensors), macs=_per_image(record.macs),
        params=_count(tensors.values(), counted), structures=() if record.kind == "batchnorm" else (KEEP,),
        skip_reason=reason if record.calls else NOT_RUN, calls=record.calls,
        output_elements=_per_image(record.output_elements),
    )  # fmt: skip


def _absent_rows(model: nn.Module, taken: Collection[str]) -> Iterable[LayerInfo]:
    """Parameters that no prediction reads, by the module that owns them; by their own names beside a row."""
    absent: dict[str, list[tuple[int, ...]]] = {}
    kinds: dict[str, str | None] = {}
    parts = networks_in(model)
    for path, network in parts.items():
        for name, shape in network.absent_parameters.items():
            absent.setdefault(_owner(joined_path(path, name), taken), []).append(shape)
        kinds.update({joined_path(path, name): kind for name, kind in network.absent_layer_kinds.items()})
    for name, parameter in model.named_parameters():
        if not any(name.startswith(f"{path}.") or not path for path in parts):
            absent.setdefault(_owner(name, taken), []).append(tuple(parameter.shape))
            owner = name.rpartition(".")[0]
            kinds[owner] = layer_kind(model.get_submodule(owner))
    for name, shapes in absent.items():
        kind = kinds.get(name)
        yield LayerInfo(
            name=name, kind=kind or "parameter", weight_shape=shapes[0],
            kernel=(1, 1) if kind is None or kind == "linear" else shapes[0][2:], bias=len(shapes) > 1,
            params=sum(map(prod, shapes)), calls=0, skip_reason=NOT_RUN,
        )  # fmt: skip


def _owner(name: str, taken: Collection[str]) -> str:
    owner = name.rpartition(".")[0] or ROOT_NAME
    return name if owner in taken else owner


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Factors and shifts of all normalisations of a captured network."""
    parameters: dict[int, nn.Parameter] = {}
    for norm in norms_in(model).values():
        parameters.update((id(tensor), tensor) for tensor in norm.parameters())
    for network in networks_in(model).values():
        for node in network.main_program.steps:
            operator = operator_of(node)
            if node.op != "call_function" or _KINDS.get(operator) not in _NORMS:
                continue
            for read in node.all_input_nodes:
                tensor = tensor_at(network, str(read.target)) if read.op == "get_attr" else None
                if isinstance(tensor, nn.Parameter):
                    parameters[id(tensor)] = tensor
    return list(parameters.values())
