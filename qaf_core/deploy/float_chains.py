"""Chains of links as plain floating-point ONNX nodes: codes times scales, no quantization."""

from __future__ import annotations

import numpy as np

from qaf_core.deploy.graph import GraphBuilder, conv_attributes, pad
from qaf_core.network.layers import ConvLink, FactorizedLayer, Link


def write_float_chain(
    builder: GraphBuilder, name: str, chain: FactorizedLayer, values: str, rank: int
) -> str:
    """Write a chain; the name of its output.

    Args:
        builder: Gets the nodes.
        name: Of the layer.
        chain: The links.
        values: Name of the input.
        rank: Dimensions of the input.
    """
    for index, link in enumerate(chain.chain):
        values = write_float_link(builder, f"{name}.{index}", link, values, rank)
    return values


def write_float_link(builder: GraphBuilder, name: str, link: Link, values: str, rank: int) -> str:
    """Write one link; the name of its output."""
    weight = link.weight.detach().float().cpu().numpy()
    bias = None if link.bias is None else link.bias.detach().float().cpu().numpy()
    biases = [] if bias is None else [builder.constant(f"{name}.bias", bias)]
    if isinstance(link, ConvLink):
        values = pad(builder, link, values, name)
        inputs = [values, builder.constant(f"{name}.weight", weight), *biases]
        return builder.node("Conv", inputs, name, **conv_attributes(link))
    if rank == 2:
        return builder.node(
            "Gemm", [values, builder.constant(f"{name}.weight", weight), *biases], name, transB=1
        )
    product = builder.node(
        "MatMul", [values, builder.constant(f"{name}.weight", np.ascontiguousarray(weight.T))], name
    )
    return builder.node("Add", [product, *biases], name) if biases else product
