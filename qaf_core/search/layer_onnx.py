"""Small INT8 models of single layers, built without a network, to be timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qaf_core.deploy.runtime.target import saturates_products

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto, TensorProto

    from qaf_core.search.geometry import LinkShape

OPSET = 17
UNSIGNED_ZERO = 128
IR_VERSION = 9
STEP = 0.02  # of all tensors: what the numbers are does not matter to the time
WEIGHT_STEP = 0.01


class LayerGraph:
    """Nodes and constants as they are added, and the generator of random weights."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def add_grid_constants(self, name: str) -> tuple[str, str]:
        """Step and zero point of the grid that all tensors between links are on."""
        return (
            self.constant(f"{name}step", np.asarray(STEP, np.float32)),
            self.constant(f"{name}zero", np.asarray(128, np.uint8)),
        )


def build_layer_model(
    chain: Sequence[LinkShape], *, linear: bool, input_hw: tuple[int, int], batch: int
) -> bytes:
    """A serialized model of one layer: 8-bit in, 8-bit out, weights per output channel.

    Convolutions take and give channels-last images, the order that ONNX Runtime's integer convolutions work
    in: so no time goes into turning them round, which in a whole network happens only at its ends.

    Args:
        chain: The links, first to last.
        linear: Whether they are linear maps.
        input_hw: Height and width of the input; (rows per image, 1) for linear maps.
        batch: Images at a time.
    """
    from onnx import TensorProto, helper

    graph = LayerGraph()
    channels = chain[0].inputs
    shape = [batch * input_hw[0], channels] if linear else [batch, *input_hw, channels]
    grid = graph.add_grid_constants("")
    values = "input"
    if not linear:
        values = graph.add("Transpose", ["input"], "channels_first", perm=[0, 3, 1, 2])
    for index, link in enumerate(chain):
        values = graph.add("DequantizeLinear", [values, *grid], f"values{index}")
        (top, left), operator = link.padding, "Gemm" if linear else "Conv"
        conv = {
            "kernel_shape": list(link.kernel),
            "strides": list(link.stride),
            "pads": [top, left, top, left],
            "dilations": list(link.dilation),
        }
        result = add_product(graph, link, values, str(index), operator, bias=True, conv=conv)
        values = graph.add("QuantizeLinear", [result, *grid], f"codes{index}")
    if not linear:
        values = graph.add("Transpose", [values], "channels_last", perm=[0, 2, 3, 1])
    onnx_graph = helper.make_graph(
        graph.nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(values, TensorProto.UINT8, None)],
        graph.constants,
    )
    model = helper.make_model(
        onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return bytes(model.SerializeToString())


def add_product(
    graph: LayerGraph,
    link: LinkShape,
    values: str,
    place: str,
    operator: str,
    *,
    bias: bool,
    conv: Mapping[str, Any],
    output: str | None = None,
) -> str:
    """Multiply values by a link's quantized weight, drawn at random: what ONNX Runtime runs as integers.

    Args:
        graph: Gets the nodes, draws the codes.
        link: The link.
        values: Name of the input, dequantized.
        place: Part of all new names.
        operator: ``Conv``, ``Gemm`` (of matrices) or ``MatMul`` (of any dimensions, without bias).
        bias: Whether there is a bias.
        conv: Attributes of a convolution but its groups.
        output: Name of the output; None for a new one.

    Returns:
        The name of the output, in floating point.
    """
    shape = (link.outputs, link.inputs // link.groups, *(link.kernel if operator == "Conv" else ()))
    codes = graph.generator.integers(-127, 128, shape).astype(np.int8)
    product = operator == "MatMul"
    # Where such products are cut off, exported files hold codes beyond ±64 unsigned: other instructions.
    kind, zero = (np.uint8, UNSIGNED_ZERO) if saturates_products() else (np.int8, 0)
    stored = (codes.astype(np.int16) + zero).astype(kind)
    weight = [
        graph.constant(f"weight{place}", np.ascontiguousarray(stored.T) if product else stored),
        graph.constant(f"scales{place}", np.full(link.outputs, WEIGHT_STEP, np.float32)),
        graph.constant(f"zeros{place}", np.full(link.outputs, zero, kind)),
    ]
    operands = [values, graph.add("DequantizeLinear", weight, f"real_weight{place}", axis=int(product))]
    if bias and not product:
        # The bias's grid follows from those of input and weight, as in any integer runtime.
        rows = [
            graph.constant(
                f"bias{place}", graph.generator.integers(-999, 1000, link.outputs).astype(np.int32)
            ),
            graph.constant(f"bias_scales{place}", np.full(link.outputs, STEP * WEIGHT_STEP, np.float32)),
            graph.constant(f"bias_zeros{place}", np.zeros(link.outputs, np.int32)),
        ]
        operands.append(graph.add("DequantizeLinear", rows, f"real_bias{place}", axis=0))
    attributes = {"Conv": {**conv, "group": link.groups}, "Gemm": {"transB": 1}, "MatMul": {}}[operator]
    return graph.add(operator, operands, output or f"result{place}", **attributes)


def add_grid(graph: LayerGraph, values: str, place: str, grid: tuple[str, str]) -> str:
    """Bring values to the grid between two links and back; the name of the result."""
    codes = graph.add("QuantizeLinear", [values, *grid], f"codes{place}")
    return graph.add("DequantizeLinear", [codes, *grid], f"values{place}")
