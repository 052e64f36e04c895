"""The ONNX graph of a network with every layer and chain of links as one node, still to be written out."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.export import quiet
from qaf_core.network.graph.network import networks_in
from qaf_core.network.graph.program import Program
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, Link, swap_layer

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 21  # the first with 4-bit integers
CHAIN_DOMAIN, CHAIN_OPERATOR = "qaf", "Chain"
INPUT_NAME = "images"
EXAMPLE_BATCH = 2  # of one image the exporter would conclude that there is always just one


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A network's ONNX graph before its chains are written.

    Attributes:
        model: Nodes named ``qaf.Chain`` stand for layers and chains; their attribute ``layer`` names them,
            ``rank`` is the number of dimensions of their input, ``site`` which of a layer's operations it is.
        chains: The layers and chains by name.
        any_batch: Whether the graph takes any number of images at once, or just one.
    """

    model: ModelProto
    chains: Mapping[str, Layer | FactorizedLayer]
    any_batch: bool


class _StandIn(nn.Module):
    """Takes the place of a layer or chain while the network is traced."""

    def __init__(self, name: str, part: Layer | FactorizedLayer) -> None:
        super().__init__()
        self._name, self._parts = name, parts_of(part)  # in a list, so that they are no part of the network
        if isinstance(part, Layer) and part.read_elsewhere:
            self.weight, self.bias = part.weight, part.bias

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        shape = list(values.shape)
        for part in self._parts:
            rows = part.codes.shape if isinstance(part, Link) else part.rows.shape
            shape = part.operations[site].output_shape(shape, rows)
        return torch.onnx.ops.symbolic(
            f"{CHAIN_DOMAIN}::{CHAIN_OPERATOR}",
            (values,),
            attrs={"layer": self._name, "rank": values.ndim, "site": site},
            dtype=values.dtype,
            shape=shape,
            version=1,
        )


def parts_of(part: Layer | FactorizedLayer) -> list[Layer | Link]:
    """The links of a chain; a layer alone."""
    return [part] if isinstance(part, Layer) else list(part.chain)


class _FlatOutputs(nn.Module):
    """The network with its outputs as a plain tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.network(images)).values())


def named_outputs(outputs: object) -> dict[str, Tensor]:
    """A network's outputs by name: a tensor, or a flat mapping or sequence of them.

    Raises:
        ModelError: If they are anything else, such as a detector's lists of boxes.
    """
    if isinstance(outputs, Tensor):
        return {"scores" if outputs.ndim == 2 else "output": outputs}
    if isinstance(outputs, Mapping):
        tensors = {str(key): value for key, value in outputs.items()}
    elif isinstance(outputs, list | tuple):
        tensors = {f"output_{index}": value for index, value in enumerate(outputs)}
    else:
        tensors = {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(
            "the network's outputs cannot be exported",
            got=_kind_of(outputs),
            expected="a tensor, or a flat list or dict of tensors",
            remedy="detectors put out lists whose length depends on the image: deploy them in PyTorch",
        )
    return tensors


def _kind_of(outputs: object) -> str:
    if isinstance(outputs, list | tuple) and outputs:
        return f"a {type(outputs).__name__} of {type(outputs[0]).__name__}"
    return f"{type(outputs).__name__}"


def trace_skeleton(model: nn.Module, input_shape: Sequence[int]) -> Skeleton:
    """Trace a network, its layers and chains as single nodes.

    Args:
        model: With its chains in place, if any; it is not changed.
        input_shape: (C, H, W) of one image.

    Raises:
        ModelError: If it holds operators or outputs that ONNX cannot express.
    """
    network = copy.deepcopy(capture(model, input_shape)).eval().cpu()
    with torch.inference_mode():
        outputs = list(named_outputs(network(torch.zeros(EXAMPLE_BATCH, *input_shape))))
        network(torch.zeros(1, *input_shape))  # captures it for one image, where the number is fixed
    chains = {
        name: part for name, part in network.named_modules() if isinstance(part, Layer | FactorizedLayer)
    }
    for name, chain in chains.items():
        swap_layer(network, name, _StandIn(name, chain))
    for part in networks_in(network).values():
        part.graph_programs = {key: _as_onnx_knows(program) for key, program in part.graph_programs.items()}
    flat = _FlatOutputs(network).eval()
    try:
        graph, any_batch = _export(flat, input_shape, outputs, any_batch=True), True
    except Exception:  # whatever the network does with the number of images
        graph, any_batch = _export_or_raise(flat, input_shape, outputs), False
    return Skeleton(model=graph, chains=chains, any_batch=any_batch)


def _as_onnx_knows(program: Program) -> Program:
    """The program with the exporter's gaps filled: it computes the same."""
    graph = copy.deepcopy(program.graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _KNOWN:
            node.target = _KNOWN[node.target]
    return Program(graph, program.in_spec, program.out_spec, any_batch=program.any_batch)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    """Attention over any dimensions before the last two; the exporter takes (B, heads, N, D) alone."""
    lead = query.shape[:-2]
    if mask is not None and mask.ndim > 2:
        mask = _as_four(mask.expand(*lead, *mask.shape[-2:]))
    four = (_as_four(part) for part in (query, key, value))
    output: Tensor = torch.ops.aten.scaled_dot_product_attention.default(*four, mask, *rest, **options)
    output = output.clone(memory_format=torch.contiguous_format)  # as the exporter lays it out later
    return output.reshape(*lead, *output.shape[-2:])


def _as_four(values: Tensor) -> Tensor:
    return values.unsqueeze(0) if values.ndim == 3 else values.flatten(0, values.ndim - 4)


_KNOWN: dict[Any, Any] = {
    # The exporter may lay an operation's result out otherwise, so that it has no such view.
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}


def _export_or_raise(network: nn.Module, input_shape: Sequence[int], outputs: Sequence[str]) -> ModelProto:
    try:
        return _export(network, input_shape, outputs, any_batch=False)
    except Exception as error:  # the exporter runs the user's code, which may raise anything
        raise ModelError(
            "the network cannot be written as ONNX",
            got=_reason(error),
            remedy="replace what ONNX does not know, or deploy the packed file in PyTorch",
        ) from error


def _export(
    network: nn.Module, input_shape: Sequence[int], outputs: Sequence[str], *, any_batch: bool
) -> ModelProto:
    example = torch.zeros(EXAMPLE_BATCH if any_batch else 1, *input_shape)
    with quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            dynamic_shapes=({0: "batch"},) if any_batch else None,
            verbose=False,
        )
    if program is None:
        raise ModelError("the network cannot be written as ONNX")
    graph: ModelProto = program.model_proto
    return graph


def _reason(error: BaseException) -> str:
    """The root of an exporter's error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    unknown = re.search(r"No (?:ONNX function|decompositions registered)[^\n]*", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = unknown.group() if unknown else (lines[0] if lines else "no message")
    return f"{type(error).__name__}: {line}"[:200]
