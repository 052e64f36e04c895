"""Layers and chains of links as plain floating-point ONNX nodes: codes times scales, no quantization."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from qaf_core.deploy.onnx_export.skeleton import parts_of
from qaf_core.deploy.onnx_export.writer import (
    Array,
    GraphBuilder,
    convolution_attributes,
    convolution_operator,
)
from qaf_core.network.modules.operation import Operation
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, Link


def write_float_chain(
    builder: GraphBuilder, name: str, chain: Layer | FactorizedLayer, values: str, rank: int, site: int = 0
) -> str:
    """Write a layer or chain; the name of its output.

    Args:
        builder: Gets the nodes, named ``LAYER.LINK/OPERATOR``.
        name: Of the layer.
        chain: The layer, or its links.
        values: Name of the input.
        rank: Dimensions of the input.
        site: Which of the layer's operations.
    """
    for index, part in enumerate(parts_of(chain)):
        values = write_float_part(builder, f"{name}.{index}", part, values, rank, site)
    return values


def write_float_part(
    builder: GraphBuilder, name: str, part: Layer | Link, values: str, rank: int, site: int = 0
) -> str:
    """Write one layer or link; the name of its output."""
    operation = part.operations[site]
    stored = part.weight if isinstance(part, Layer) else operation.as_stored(part.weight)
    biases = [] if part.bias is None else [builder.constant(f"{name}.bias", as_array(part.bias))]
    if operation.dims:
        return write_convolution(builder, name, operation, values, as_array(stored), biases)
    weight = as_array(stored)
    if rank == 2:
        return builder.node(
            "Gemm", [values, builder.constant(f"{name}.weight", weight), *biases], name, transB=1
        )
    product = builder.node(
        "MatMul", [values, builder.constant(f"{name}.weight", np.ascontiguousarray(weight.T))], name
    )
    return builder.node("Add", [product, *biases], name) if biases else product


def write_convolution(
    builder: GraphBuilder, name: str, operation: Operation, values: str, weight: Array, biases: list[str]
) -> str:
    """Write a convolution with a floating-point weight as stored; the name of its output."""
    inputs = [values, builder.constant(f"{name}.weight", weight), *biases]
    attributes = convolution_attributes(operation, weight.shape[2:])
    return builder.node(convolution_operator(operation), inputs, name, **attributes)


def as_array(values: Tensor) -> Array:
    """A tensor as float32 numbers."""
    array: Array = values.detach().float().cpu().contiguous().numpy()
    return array
