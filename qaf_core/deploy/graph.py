"""An ONNX graph in the making: nodes and constants are added one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qaf_core.deploy.skeleton import CHAIN_DOMAIN, OPSET, Skeleton, paddings
from qaf_core.network.layers import ConvLink

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = np.ndarray[Any, Any]
IR_VERSION = 10  # goes with opset 21
PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


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


def chain_of(node: NodeProto) -> tuple[str, int]:
    """Layer and input rank of a node that stands for a chain."""
    values = {row.name: helper.get_attribute_value(row) for row in node.attribute}
    return values["layer"].decode(), int(values["rank"])


def conv_attributes(link: ConvLink) -> dict[str, Any]:
    """The geometry of a convolution as ONNX writes it; other padding than zeros is left to ``pad``."""
    geometry = link.geometry
    return {
        "kernel_shape": [int(size) for size in geometry.kernel_size],
        "strides": list(geometry.stride),
        "dilations": list(geometry.dilation),
        "group": geometry.groups,
        "pads": list(paddings(link)) if geometry.padding_mode == "zeros" else [0, 0, 0, 0],
    }


def pad(builder: GraphBuilder, link: ConvLink, values: str, name: str) -> str:
    """Pad values as a convolution with another padding mode than zeros does."""
    if link.geometry.padding_mode == "zeros" or not any(paddings(link)):
        return values
    top, left, bottom, right = paddings(link)
    amounts = builder.constant(f"{name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    return builder.node("Pad", [values, amounts], name, mode=PAD_MODES[link.geometry.padding_mode])
