"""From a layer and its factors to the chain of links that computes the same."""

from __future__ import annotations

from dataclasses import replace

from qaf_core.errors import ModelError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.structures import STRUCTURES, Kernel, LinkForm
from qaf_core.network.modules.operation import Operation
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, Link


def build_chain(layer: Layer, factors: Factors) -> FactorizedLayer:
    """The chain that computes ``layer`` with the factors in place of its weight; bias and geometry are kept.

    The layer's own geometry (stride, padding, a transposed convolution) goes to the links that hold the
    kernel, each in its dimensions; all others mix channels only.

    Args:
        layer: The layer.
        factors: Factors of its weight by rows; per-row scales of factor 0 stay on the last link, all others
            move to the front.

    Raises:
        ModelError: If the layer's groups do not go with the structure.
    """
    form = STRUCTURES[factors.structure]
    if layer.operation.groups != 1 and form.factorizes:
        got = f"groups={layer.operation.groups}"
        raise ModelError("a grouped convolution is not factorized as a whole", got=got)
    kernel = factors.weight_shape[2:]
    weights = factors.algebra.link_weights(factors.codes, factors.scales)
    links = []
    for part, (codes, scales) in zip(form.links, weights, strict=True):
        outputs = len(codes)
        links.append(
            Link(
                codes.reshape(outputs, -1, *part.kernel.of(kernel, 1)),
                scales.reshape(-1, 1, *(1,) * len(kernel)),
                factors.bits[part.factor],
                layer.bias if part is form.links[-1] else None,
                [_restricted(operation, part, outputs) for operation in layer.operations],
            )
        )
    return FactorizedLayer(links, factors.structure, layer.operations)


def _restricted(operation: Operation, part: LinkForm, outputs: int) -> Operation:
    """What of the layer's operation a link does: its geometry in the dimensions of the link's kernel."""
    if part.kernel is Kernel.NONE:
        return operation.pointwise()
    return replace(
        operation,
        stride=part.kernel.of(operation.stride, 1),
        padding=part.kernel.of(operation.padding, 0),
        dilation=part.kernel.of(operation.dilation, 1),
        output_padding=part.kernel.of(operation.output_padding, 0),
        groups=outputs if part.depthwise else operation.groups,
    )
