"""Chains of links as integer ONNX nodes that put out the very numbers PyTorch computes with the same codes.

Quantized values and weights stand in the graph as QuantizeLinear and DequantizeLinear pairs, with our codes,
scales and zero points. A link whose output is rounded to the next grid becomes one quantized operator
(QLinearConv, QLinearMatMul) when ONNX Runtime loads the file. A link whose output stays in floating point,
since something else than the next layer takes it, has no such operator: linear layers and 1×1 convolutions
are written as a product of matrices, which the runtime turns into MatMulIntegerToFloat, all others as
ConvInteger times a scale. Transposed convolutions have no integer form in ONNX: they stay in floating point,
between values on their grids. Rounding such outputs to 8 bits as well would run 1.2 to 1.4 times faster, but
changes the network: on the ResNet-20 of CIFAR-10 the predictions of 1.3 % of the images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from qaf_core.deploy.onnx_export.float_ops import as_array, write_float_chain, write_float_part
from qaf_core.deploy.onnx_export.writer import Array, GraphBuilder, convolution_attributes
from qaf_core.network.modules.operation import Operation
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, Link
from qaf_core.quantization.grid import Qparams

if TYPE_CHECKING:
    from onnx import NodeProto

CHOOSING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
CUTTING = ("Relu", "Clip", "Identity")
NIBBLE_BITS = 4
LARGEST_SAFE_CODE = 64  # two products with 255 then stay within 16 bits
UNSIGNED_ZERO, UNSIGNED_NIBBLE_ZERO = 128, 8


@dataclass(frozen=True, kw_only=True)
class _Codes:
    """A tensor on its grid: names of its codes, of its values, of its step and of its zero point."""

    codes: str
    values: str
    step: str
    zero: str


class IntegerWriter:
    """Writes chains as integer nodes.

    Args:
        builder: Gets the nodes.
        saturates: The processor cuts sums of 8-bit products off: weights beyond ±64 are then stored unsigned,
            which other instructions multiply, with the same numbers.

    Attributes:
        stored: How many weights are stored as ``int4``, ``int8``, ``uint8`` or ``float32``.
        integer_nodes: How many of the nodes must run as integers.
    """

    def __init__(self, builder: GraphBuilder, *, saturates: bool) -> None:
        self._builder = builder
        self._saturates = saturates
        self._quantized: dict[tuple[str, Qparams], _Codes] = {}
        self._output_qparams: dict[str, Qparams] = {}
        self.stored: dict[str, str] = {}
        self.integer_nodes = 0

    @property
    def weights(self) -> Counter[str]:
        """How many weights are stored as what."""
        return Counter(self.stored.values())

    def write_chain(
        self, name: str, chain: Layer | FactorizedLayer, values: str, rank: int, site: int = 0
    ) -> str:
        """Write a chain, or a layer in floating point; the name of its output.

        Args:
            name: Of the layer.
            chain: The links, or the layer.
            values: Name of the input.
            rank: Dimensions of the input.
            site: Which of the layer's operations.
        """
        if isinstance(chain, Layer):
            self.stored[f"{name}.0"] = "float32"
            return write_float_chain(self._builder, name, chain, values, rank, site)
        links = chain.chain
        qparams = [link.input_quantizer.qparams for link in links[1:]]
        following = [*qparams, chain.output_qparams] if chain.runs_on_codes else [None] * len(links)
        for index, (link, grid) in enumerate(zip(links, following, strict=True)):
            values = self._write_link(f"{name}.{index}", link, values, rank, grid, site)
        if following[-1] is not None:
            self._output_qparams[values] = following[-1]
        return values

    def pass_on(self, node: NodeProto, values: str) -> str | None:
        """Keep values on their grid through a node that makes no new ones.

        Args:
            node: That takes them.
            values: The name of its first input here.

        Returns:
            The name of the node's output; None if it is to be written as it is.
        """
        grid = self._output_qparams.get(values)
        if grid is None or node.op_type not in (*CHOOSING, *CUTTING):
            return None
        if node.op_type in CHOOSING:
            self._builder.copy_node(node, {node.input[0]: values})
            values = self._quantize(node.output[0], grid, node.output[0]).values
            self._output_qparams[values] = grid
        return values  # a grid holds no values that would be cut off

    def _write_link(
        self, name: str, link: Link, values: str, rank: int, grid: Qparams | None, site: int
    ) -> str:
        own_grid, operation = link.input_quantizer.qparams, link.operations[site]
        if own_grid is None or not link.is_integer or operation.transposed:
            self.stored[name] = "float32"
            values = values if own_grid is None else self._quantize(values, own_grid, name).values
            output = write_float_part(self._builder, name, link, values, rank, site)
            return output if grid is None else self._quantize(output, grid, f"{name}.output").values
        self.integer_nodes += 1
        source = self._quantize(values, own_grid, name)
        if grid is not None and (operation.dims or rank == 2 or link.bias is None):
            return self._write_rounded(name, link, operation, source, rank, grid)
        if operation.dims and not _is_pointwise(link, operation):
            return self._write_convolution(name, link, operation, source)
        output = self._write_product(name, link, source, rounded=grid is not None)
        return output if grid is None else self._quantize(output, grid, f"{name}.output").values

    def _quantize(self, values: str, grid: Qparams, name: str) -> _Codes:
        """Bring a tensor to a grid, once for all who ask for the same."""
        if (values, grid) not in self._quantized:
            builder = self._builder
            step = builder.constant(f"{name}.input_scale", np.array(grid[0], np.float32))
            zero = builder.constant(f"{name}.input_zero_point", np.array(grid[1], np.uint8))
            codes = builder.node("QuantizeLinear", [values, step, zero], name)
            restored = builder.node("DequantizeLinear", [codes, step, zero], name)
            entry = _Codes(codes=codes, values=restored, step=step, zero=zero)
            self._quantized[values, grid] = entry
            self._quantized[restored, grid] = entry
        return self._quantized[values, grid]

    def _write_rounded(
        self, name: str, link: Link, operation: Operation, source: _Codes, rank: int, grid: Qparams
    ) -> str:
        """A link whose output goes to a grid: one quantized operator at run time."""
        builder = self._builder
        bias = self._bias_codes(name, link)
        if operation.dims:
            inputs = [source.values, self._weight(name, link, transposed=False), *bias]
            attributes = convolution_attributes(operation, link.kernel)
            output = builder.node("Conv", inputs, name, **attributes)
        elif bias:
            inputs = [source.values, self._weight(name, link, transposed=False), *bias]
            output = builder.node("Gemm", inputs, name, transB=1)
        else:
            output = builder.node("MatMul", [source.values, self._weight(name, link, transposed=True)], name)
        return self._quantize(output, grid, f"{name}.output").values

    def _write_product(self, name: str, link: Link, source: _Codes, *, rounded: bool) -> str:
        """A linear layer or 1×1 convolution with floating-point output, as a product of matrices.

        Args:
            name: Of the link.
            link: The link.
            source: Its input.
            rounded: Its output goes to a grid afterwards: the bias is then that of the codes.
        """
        builder, dims = self._builder, link.operation.dims
        values = source.values
        if dims:
            order = [0, *range(2, 2 + dims), 1]
            last = builder.node("Transpose", [source.codes], name, perm=order)
            values = builder.node("DequantizeLinear", [last, source.step, source.zero], name)
        output = builder.node("MatMul", [values, self._weight(name, link, transposed=True)], name)
        if link.bias is not None:
            codes = link.bias_codes if rounded else None
            bias = link.bias if codes is None else codes * link.sum_steps
            # Taken away, not added: a product and a sum the runtime would join, and round the bias.
            negative = builder.constant(f"{name}.negative_bias", -as_array(bias))
            output = builder.node("Sub", [output, negative], name)
        order = [0, 1 + dims, *range(1, 1 + dims)]
        return builder.node("Transpose", [output], name, perm=order) if dims else output

    def _write_convolution(self, name: str, link: Link, operation: Operation, source: _Codes) -> str:
        """A convolution with floating-point output: exact sums, then their step and the bias."""
        builder, ones = self._builder, (1,) * operation.dims
        # ConvInteger has no fast kernel for signed weights on x86: unsigned ones ran four times faster.
        codes, own_zero = self._stored_codes(name, link, transposed=False, prefer_unsigned=True)
        zero = builder.constant(f"unsigned_zero_{own_zero}", np.array(own_zero, np.uint8))
        inputs = [source.codes, codes, source.zero, zero]
        attributes = convolution_attributes(operation, link.kernel)
        sums = builder.node("ConvInteger", inputs, name, **attributes)
        output = builder.node("Cast", [sums], name, to=TensorProto.FLOAT)
        steps = builder.constant(f"{name}.sum_steps", as_array(link.sum_steps).reshape(-1, *ones))
        output = builder.node("Mul", [output, steps], name)
        if link.bias is None:
            return output
        bias = builder.constant(f"{name}.bias", as_array(link.bias).reshape(-1, *ones))
        return builder.node("Add", [output, bias], name)

    def _weight(self, name: str, link: Link, *, transposed: bool) -> str:
        """The weight as codes and DequantizeLinear, ``(out, …)`` or transposed ``(in, out)``."""
        builder = self._builder
        codes, own_zero = self._stored_codes(name, link, transposed=transposed)
        outputs = link.codes.shape[0]
        scales = np.broadcast_to(as_array(link.scales).reshape(-1), (outputs,))
        zeros = np.full(outputs, own_zero, np.uint8 if own_zero else np.int8)
        inputs = [
            codes,
            builder.constant(f"{name}.scales", scales),
            builder.constant(f"{name}.zero_points", zeros),
        ]
        return builder.node("DequantizeLinear", inputs, f"{name}.weight", axis=1 if transposed else 0)

    def _stored_codes(
        self, name: str, link: Link, *, transposed: bool, prefer_unsigned: bool = False
    ) -> tuple[str, int]:
        """The codes as a constant, and their zero: 0 of signed ones, 128 or 8 of unsigned ones."""
        builder = self._builder
        codes = link.codes.detach().cpu().numpy().astype(np.int8)
        if transposed:
            codes = np.ascontiguousarray(codes.reshape(len(codes), -1).T)
        if link.bits <= NIBBLE_BITS:
            zero = UNSIGNED_NIBBLE_ZERO if prefer_unsigned else 0
            kind, code_type = (
                (TensorProto.UINT4, TensorProto.UINT8) if zero else (TensorProto.INT4, TensorProto.INT8)
            )
            self.stored[name] = "uint4" if zero else "int4"
            nibbles = builder.constant_nibbles(f"{name}.codes", codes + zero, kind)
            # Undone once, when the runtime loads the file: its kernels take whole bytes.
            return builder.node("Cast", [nibbles], f"{name}.codes", to=code_type), zero
        cut_off = self._saturates and np.abs(codes.astype(np.int16)).max(initial=0) > LARGEST_SAFE_CODE
        if cut_off or prefer_unsigned:
            self.stored[name] = "uint8"
            unsigned: Array = (codes.astype(np.int16) + UNSIGNED_ZERO).astype(np.uint8)
            return builder.constant(f"{name}.codes", unsigned), UNSIGNED_ZERO
        self.stored[name] = "int8"
        return builder.constant(f"{name}.codes", codes), 0

    def _bias_codes(self, name: str, link: Link) -> list[str]:
        codes = link.bias_codes
        if codes is None:
            return []
        builder, count = self._builder, link.codes.shape[0]
        inputs = [
            builder.constant(f"{name}.bias_codes", as_array(codes).astype(np.int32)),
            builder.constant(f"{name}.sum_steps", as_array(link.sum_steps)),
            builder.constant(f"{name}.bias_zero_points", np.zeros(count, np.int32)),
        ]
        return [builder.node("DequantizeLinear", inputs, f"{name}.bias", axis=0)]


def _is_pointwise(link: Link, operation: Operation) -> bool:
    still = all(step == 1 for step in operation.stride) and not any(operation.padding)
    return still and operation.groups == 1 and all(size == 1 for size in link.kernel)
