"""Small INT8 models of single layers, built without a network, to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto, TensorProto

    from qaf_core.deploy.layer_table import LinkShape

OPSET = 17
IR_VERSION = 9
STEP = 0.02  # of all tensors: what the numbers are does not matter to the time
WEIGHT_STEP = 0.01


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name


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

    graph, generator = _Graph(), np.random.default_rng(0)
    channels = chain[0].inputs
    shape = [batch * input_hw[0], channels] if linear else [batch, *input_hw, channels]
    grid = (
        graph.constant("step", np.asarray(STEP, np.float32)),
        graph.constant("zero", np.asarray(128, np.uint8)),
    )
    values = "input"
    if not linear:
        values = graph.add("Transpose", ["input"], "channels_first", perm=[0, 3, 1, 2])
    for index, link in enumerate(chain):
        values = _add_link(graph, link, values, str(index), linear, grid, generator)
    if not linear:
        values = graph.add("Transpose", [values], "channels_last", perm=[0, 2, 3, 1])
    made = helper.make_graph(
        graph.nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(values, TensorProto.UINT8, None)],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _add_link(
    graph: _Graph,
    link: LinkShape,
    values: str,
    place: str,
    linear: bool,
    grid: tuple[str, str],
    generator: np.random.Generator,
) -> str:
    """Dequantize, multiply, quantize: what ONNX Runtime fuses into one integer operation."""
    shape = (link.outputs, link.inputs // link.groups, *(() if linear else link.kernel))
    weight = [
        graph.constant(f"weight{place}", generator.integers(-127, 128, shape).astype(np.int8)),
        graph.constant(f"scales{place}", np.full(link.outputs, WEIGHT_STEP, np.float32)),
        graph.constant(f"zeros{place}", np.zeros(link.outputs, np.int8)),
    ]
    # The bias's grid follows from those of input and weight, as in any integer runtime.
    bias = [
        graph.constant(f"bias{place}", generator.integers(-999, 1000, link.outputs).astype(np.int32)),
        graph.constant(f"bias_scales{place}", np.full(link.outputs, STEP * WEIGHT_STEP, np.float32)),
        graph.constant(f"bias_zeros{place}", np.zeros(link.outputs, np.int32)),
    ]
    operands = [
        graph.add("DequantizeLinear", [values, *grid], f"values{place}"),
        graph.add("DequantizeLinear", weight, f"real_weight{place}", axis=0),
        graph.add("DequantizeLinear", bias, f"real_bias{place}", axis=0),
    ]
    if linear:
        result = graph.add("Gemm", operands, f"result{place}", transB=1)
    else:
        (top, left), kernel = link.padding, list(link.kernel)
        result = graph.add(
            "Conv",
            operands,
            f"result{place}",
            kernel_shape=kernel,
            strides=list(link.stride),
            pads=[top, left, top, left],
            dilations=list(link.dilation),
            group=link.groups,
        )
    return graph.add("QuantizeLinear", [result, *grid], f"codes{place}")
