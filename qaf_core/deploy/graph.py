"""An ONNX graph in the making: nodes and constants are added one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qaf_core.deploy.skeleton import CHAIN_DOMAIN, OPSET, Skeleton
from qaf_core.network.graph.operation import Operation

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = np.ndarray[Any, Any]
IR_VERSION = 10  # goes with opset 21


class GraphBuilder:
    """Adds nodes and constants under unique names.

    Attributes:
        operators: How many nodes of each operator were added here.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.operators: Counter[str] = Counter()
        self._constants: dict[str, TensorProto] = {}
        self._names: Counter[str] = Counter()

    def constant(self, name: str, values: Array) -> str:
        """A constant; the same name means the same constant."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def constant_nibbles(self, name: str, codes: Array, kind: int) -> str:
        """A constant of 4-bit integers, two to a byte; ``kind`` is ``INT4`` or ``UINT4``."""
        if name not in self._constants:
            flat = codes.reshape(-1).astype(np.uint8) & 15
            flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
            packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
            self._constants[name] = helper.make_tensor(name, kind, codes.shape, packed, raw=True)
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        self._names[name] += 1
        output = f"{name}/{operator}" + (f"_{self._names[name]}" if self._names[name] > 1 else "")
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        self.operators[operator] += 1
        return output

    def copy_node(self, node: NodeProto, renamed: Mapping[str, str]) -> None:
        """Add a node of another graph, its inputs renamed."""
        twin = type(node)()
        twin.CopyFrom(node)
        for index, name in enumerate(twin.input):
            twin.input[index] = renamed.get(name, name)
        del twin.metadata_props[:]  # hold the places of source lines
        twin.ClearField("doc_string")
        self.nodes.append(twin)

    def finish(
        self, skeleton: Skeleton, renamed: Mapping[str, str], properties: Mapping[str, str]
    ) -> ModelProto:
        """The model with the inputs, outputs and constants of the skeleton."""
        graph = skeleton.model.graph
        for output in graph.output:
            if output.name in renamed:
                self.nodes.append(helper.make_node("Identity", [renamed[output.name]], [output.name]))
        constants = [*graph.initializer, *self._constants.values()]
        for row in (*graph.input, *graph.output):
            del row.metadata_props[:]
        used = {name for node in self.nodes for name in node.input}
        built = helper.make_graph(
            self.nodes, "qaf", graph.input, graph.output, [row for row in constants if row.name in used]
        )
        model = helper.make_model(
            built, opset_imports=_opsets(skeleton.model), ir_version=IR_VERSION, producer_name="qaf"
        )
        model.functions.extend(skeleton.model.functions)
        helper.set_model_props(model, dict(properties))
        onnx.checker.check_model(model)
        return model


def _opsets(model: ModelProto) -> list[onnx.OperatorSetIdProto]:
    kept = [row for row in model.opset_import if row.domain not in ("", CHAIN_DOMAIN)]
    return [helper.make_opsetid("", OPSET), *kept]


def chain_of(node: NodeProto) -> tuple[str, int, int]:
    """Layer, input rank and site of a node that stands for a chain."""
    values = {row.name: helper.get_attribute_value(row) for row in node.attribute}
    return values["layer"].decode(), int(values["rank"]), int(values["site"])


def convolution_operator(operation: Operation) -> str:
    """The ONNX operator of a convolution."""
    return "ConvTranspose" if operation.transposed else "Conv"


def convolution_attributes(operation: Operation, kernel: Sequence[int]) -> dict[str, Any]:
    """The geometry of a convolution as ONNX writes it."""
    found: dict[str, Any] = {
        "kernel_shape": [int(size) for size in kernel],
        "strides": list(operation.stride),
        "dilations": list(operation.dilation),
        "group": operation.groups,
        "pads": [*operation.padding, *operation.padding],
    }
    if operation.transposed:
        found["output_padding"] = list(operation.output_padding)
    return found
