"""What a chain of links in place of a layer computes and moves: operations and activations. Free of torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from qaf_core.factorization.structures import STRUCTURES, Kernel, Rank, Structure, check_ratio
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Bits


def chain_structure(structure: str, rank: Rank) -> Structure | None:
    """The structure of a plan's row; None where the layer stays, or its rank is of another kind."""
    descriptor = STRUCTURES.get(structure)
    return descriptor if descriptor is not None and descriptor.has_kind(rank) else None


def factor_shapes(info: LayerInfo, structure: str, rank: Rank) -> tuple[tuple[int, ...], ...]:
    """Shapes of a layer's factors; the weight's alone if it is not factorized."""
    descriptor = chain_structure(structure, rank)
    if descriptor is None or not descriptor.factorizes:
        return (info.weight_shape,)
    return descriptor.factor_shapes(info.weight_shape, rank)


def holds_too_much(info: LayerInfo, structure: str, rank: Rank) -> bool:
    """Whether a layer's factors hold more numbers than its weight."""
    return sum(map(math.prod, factor_shapes(info, structure, rank))) > info.weight_numel


def factor_macs(info: LayerInfo, structure: str, rank: Rank) -> tuple[int, ...]:
    """Multiply-accumulates per image of each factor's link, all calls, in the order of ``factor_shapes``."""
    descriptor = chain_structure(structure, rank)
    if descriptor is None or not descriptor.factorizes:
        return (info.macs,)
    shapes = descriptor.factor_shapes(info.weight_shape, rank)
    # A kernel is applied once for each output, or of a transposed convolution for each input.
    positions, before = info.macs // max(1, info.weight_numel), "transpose" in info.kind
    return descriptor.by_factor(
        [
            math.prod(shapes[link.factor])
            * (
                positions
                if link.kernel is Kernel.WHOLE
                else _positions(info, descriptor, index + (not before))
            )
            for index, link in enumerate(descriptor.links)
        ]
    )


@dataclass(frozen=True, kw_only=True)
class LinkInfo:
    """One small layer of a chain, as a plan makes it.

    Attributes:
        kernel: Its kernel sizes; ones where it has none.
        inputs, outputs: Channels.
        depthwise: Each channel is filtered by itself.
        bits: Of its weights; None where they stay floating point.
        macs: Multiply-accumulates per image, all calls.
    """

    kernel: tuple[int, ...]
    inputs: int
    outputs: int
    depthwise: bool
    bits: int | None
    macs: int


def links_of(info: LayerInfo, structure: str, rank: Rank, bits: Bits) -> tuple[LinkInfo, ...]:
    """What a layer becomes, in the order it runs: one link if it is not factorized, or stays."""
    chain = chain_structure(structure, rank)
    macs = factor_macs(info, structure, rank)
    each = bits if isinstance(bits, tuple) else (bits,) * len(macs)
    if chain is None or not chain.factorizes:
        depthwise = info.groups > 1 and info.groups == info.in_channels
        return (
            LinkInfo(
                kernel=info.kernel, inputs=info.in_channels, outputs=info.out_channels, depthwise=depthwise,
                bits=each[0], macs=info.macs,
            ),
        )  # fmt: skip
    widths = (info.in_channels, *chain.widths(rank), info.out_channels)
    return tuple(
        LinkInfo(
            kernel=link.kernel.of(info.kernel, 1), inputs=inputs, outputs=outputs, depthwise=link.depthwise,
            bits=each[link.factor], macs=macs[link.factor],
        )
        for link, inputs, outputs in zip(chain.links, widths, widths[1:], strict=False)
    )  # fmt: skip


def link_activations(info: LayerInfo, structure: str, rank: Rank) -> tuple[tuple[int, int], ...]:
    """(input, output) elements per image of each link, in the order the chain runs, in the largest call."""
    calls = max(1, info.calls)
    inputs = max(info.input_elements // calls, info.in_channels * math.prod(info.input_hw or (0,)))
    outputs = max(info.output_elements // calls, info.out_channels * math.prod(info.output_hw or (0,)))
    descriptor = chain_structure(structure, rank)
    if descriptor is None:
        return ((inputs, outputs),)
    ends = inputs // max(1, info.in_channels), outputs // max(1, info.out_channels)
    between = [
        width * _mixed(info, descriptor, index + 1, *ends)
        for index, width in enumerate(descriptor.widths(rank))
    ]
    elements = (inputs, *between, outputs)
    return tuple(itertools.pairwise(elements))


def _positions(info: LayerInfo, structure: Structure, links: int) -> int:
    """Pixels, or rows of a linear layer, behind so many links of a chain, over all calls."""
    return _mixed(info, structure, links, input_positions(info), output_positions(info), max(1, info.calls))


def _mixed(
    info: LayerInfo, structure: Structure, links: int, inputs: int, outputs: int, calls: int = 1
) -> int:
    """Positions behind so many links: the input's before any kernel, the output's behind all of it."""
    count = len(info.kernel)
    done = {dim for link in structure.links[:links] for dim in link.kernel.dims(count)}
    if not done:
        return inputs
    if len(done) == count or info.input_hw is None or info.output_hw is None:
        return outputs
    sizes = (info.output_hw[dim] if dim in done else info.input_hw[dim] for dim in range(count))
    return calls * math.prod(sizes)


def input_positions(info: LayerInfo) -> int:
    """Pixels (or rows, of a linear layer) the layer reads per image, over all calls."""
    return info.input_elements // max(1, info.in_channels)


def output_positions(info: LayerInfo) -> int:
    """Pixels (or rows, of a linear layer) the layer writes per image, over all calls."""
    return info.output_elements // max(1, info.out_channels)


def rank_for_ratio(info: LayerInfo, structure: str, ratio: float) -> Rank:
    """The rank at which the factors hold the layer's weights divided by ``ratio``, at least 1.

    Args:
        info: The layer.
        structure: Any structure, or ``keep``, which has no rank.
        ratio: Parameters before over parameters after, at least 1.

    Raises:
        PlanError: If the ratio is below 1 or not finite.
    """
    check_ratio(ratio)
    return (
        None
        if structure not in STRUCTURES
        else STRUCTURES[structure].rank_for_ratio(info.weight_shape, ratio)
    )


def max_useful_rank(info: LayerInfo, structure: str) -> Rank:
    """The rank at which the factors meet any such weight exactly; more is of no use. None of ``keep``."""
    return STRUCTURES[structure].largest_rank(info.weight_shape) if structure in STRUCTURES else None
