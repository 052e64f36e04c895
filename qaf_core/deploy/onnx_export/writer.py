"""An ONNX graph in the making: nodes and constants are added one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qaf_core.deploy.onnx_export.skeleton import CHAIN_DOMAIN, OPSET, Skeleton
from qaf_core.network.modules.operation import Operation

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

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
        """A constant under this name, or one made from it where another has the name; equal ones once."""
        return self._keep(name, numpy_helper.from_array(np.ascontiguousarray(values)))

    def constant_nibbles(self, name: str, codes: Array, kind: int) -> str:
        """A constant of 4-bit integers, two to a byte; ``kind`` is ``INT4`` or ``UINT4``."""
        flat = codes.reshape(-1).astype(np.uint8) & 15
        flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
        packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
        return self._keep(name, helper.make_tensor("", kind, codes.shape, packed, raw=True))

    def _keep(self, name: str, tensor: TensorProto) -> str:
        present, count = self._constants.get(name), 1
        while present is not None and not _are_equal(present, tensor):
            count += 1
            present = self._constants.get(f"{name}_{count}")
        tensor.name = name if count == 1 else f"{name}_{count}"
        self._constants.setdefault(tensor.name, tensor)
        return tensor.name

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
        _rename_inputs(twin, renamed)
        del twin.metadata_props[:]  # hold the places of source lines
        twin.ClearField("doc_string")
        self.nodes.append(twin)

    def finish(
        self, skeleton: Skeleton, renamed: Mapping[str, str], properties: Mapping[str, str]
    ) -> ModelProto:
        """The model with the inputs, outputs and constants of the skeleton."""
        graph = skeleton.model.graph
        initial = {row.name: row for row in graph.initializer}
        for output in graph.output:
            if output.name in renamed:
                self.nodes.append(helper.make_node("Identity", [renamed[output.name]], [output.name]))
            elif output.name in initial:  # it does not depend on the images
                row = initial[output.name]
                row.name = f"{output.name}/constant"
                self.nodes = [helper.make_node("Identity", [row.name], [output.name]), *self.nodes]
        constants = [*graph.initializer, *self._constants.values()]
        for row in (*graph.input, *graph.output):
            del row.metadata_props[:]
        used = {name for node in self.nodes for name in inputs_of(node)}
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


def _are_equal(one: TensorProto, other: TensorProto) -> bool:
    alike = one.data_type == other.data_type and list(one.dims) == list(other.dims)
    return alike and one.raw_data == other.raw_data


def inputs_of(node: NodeProto) -> Iterator[str]:
    """What a node reads, in the bodies of its branches and loops too."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from inputs_of(inner)
        yield from (row.name for row in body.output)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _rename_inputs(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Rename what a node reads, in its bodies but for what these name themselves."""
    for index, name in enumerate(node.input):
        node.input[index] = renamed.get(name, name)
    for body in _bodies(node):
        own = {row.name for row in (*body.input, *body.initializer)}
        own |= {name for inner in body.node for name in inner.output}
        outer = {name: other for name, other in renamed.items() if name not in own}
        for inner in body.node:
            _rename_inputs(inner, outer)
        for row in body.output:
            row.name = outer.get(row.name, row.name)


def chain_of(node: NodeProto) -> tuple[str, int, int]:
    """Layer, input rank and site of a node that stands for a chain."""
    values = {row.name: helper.get_attribute_value(row) for row in node.attribute}
    return values["layer"].decode(), int(values["rank"]), int(values["site"])


def convolution_operator(operation: Operation) -> str:
    """The ONNX operator of a convolution."""
    return "ConvTranspose" if operation.transposed else "Conv"


def convolution_attributes(operation: Operation, kernel: Sequence[int]) -> dict[str, Any]:
    """The geometry of a convolution as ONNX writes it."""
    attributes: dict[str, Any] = {
        "kernel_shape": [int(size) for size in kernel],
        "strides": list(operation.stride),
        "dilations": list(operation.dilation),
        "group": operation.groups,
        "pads": [*operation.padding, *operation.padding],
    }
    if operation.transposed:
        attributes["output_padding"] = list(operation.output_padding)
    return attributes
