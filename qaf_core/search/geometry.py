"""What the time of a layer and of a chain depends on: shapes, strides, groups. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qaf_core.factorization.structures import Rank
from qaf_core.files import digest_of
from qaf_core.network.plan.chains import chain_structure, input_positions
from qaf_core.network.plan.layer_info import LayerInfo


@dataclass(frozen=True, kw_only=True)
class LinkShape:
    """One convolution or linear map of a chain; a linear map has a kernel of (1, 1) and no groups."""

    outputs: int
    inputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def attributes(self) -> dict[str, list[int]]:
        """The geometry as attributes of an ONNX convolution, without its groups."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.stride),
            "pads": [*self.padding, *self.padding],
            "dilations": list(self.dilation),
        }


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """What a layer's time depends on besides its structure.

    Attributes:
        link: The layer itself.
        linear: Whether it is a linear layer.
        input_hw: Height and width a convolution reads; for a linear layer (rows, 1) per image.
    """

    link: LinkShape
    linear: bool
    input_hw: tuple[int, int]

    @classmethod
    def of(cls, info: LayerInfo) -> LayerGeometry | None:
        """The geometry of an inventory row; None for what is not planned or never runs."""
        if not info.planned or not info.calls:
            return None
        if info.kind == "linear":
            rows = max(1, input_positions(info) // info.calls)
            link = LinkShape(outputs=info.out_channels, inputs=info.in_channels)
            return cls(link=link, linear=True, input_hw=(rows, 1))
        if info.kind != "conv2d" or info.input_hw is None:
            return None
        link = LinkShape(
            outputs=info.out_channels,
            inputs=info.in_channels,
            kernel=_pair(info.kernel),
            stride=_pair(info.stride),
            padding=_pair(info.padding),
            dilation=_pair(info.dilation),
            groups=info.groups,
        )
        return cls(link=link, linear=False, input_hw=_pair(info.input_hw))

    @property
    def key(self) -> str:
        """A short name made from the content."""
        return digest_of(asdict(self))

    def chain(self, structure: str, rank: Rank) -> tuple[LinkShape, ...]:
        """The links that take the layer's place, first to last."""
        dense, descriptor = self.link, chain_structure(structure, rank)
        if descriptor is None or not descriptor.factorizes:
            return (dense,)
        widths = (dense.inputs, *descriptor.widths(rank), dense.outputs)
        return tuple(
            LinkShape(
                outputs=outputs,
                inputs=inputs,
                kernel=_pair(link.kernel.of(dense.kernel, 1)),
                stride=_pair(link.kernel.of(dense.stride, 1)),
                padding=_pair(link.kernel.of(dense.padding, 0)),
                dilation=_pair(link.kernel.of(dense.dilation, 1)),
                groups=outputs if link.depthwise else 1,
            )
            for link, inputs, outputs in zip(descriptor.links, widths, widths[1:], strict=False)
        )


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    first, second = sizes
    return first, second
