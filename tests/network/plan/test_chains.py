"""Shapes, operations and ranks of the chains, against chains that are built and run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.errors import PlanError
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layers_in
from qaf_core.network.modules.build import build_chain
from qaf_core.network.plan.chains import (
    factor_macs,
    factor_shapes,
    link_activations,
    links_of,
    max_useful_rank,
    rank_for_ratio,
)
from qaf_core.network.plan.layer_info import LayerInfo

RowOf = Callable[[nn.Module, tuple[int, ...]], LayerInfo]
Link = tuple[int, int, int]  # multiply-accumulates, input elements, output elements

CONVOLUTIONS = [
    nn.Conv2d(6, 10, 3, padding=1),
    nn.Conv2d(6, 10, 3, stride=2, padding=1),
    nn.Conv2d(6, 10, 5, stride=(2, 1), padding=(2, 0), dilation=2),
    nn.Conv2d(6, 10, (1, 7), padding="same"),
    nn.Conv2d(6, 10, (3, 5), padding="valid", bias=False),
]


def geometry(layer: nn.Conv2d) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "bias": False}


def run_chain(chain: nn.Sequential, image: Tensor) -> list[Link]:
    """What each link of a chain does, in the order it runs."""
    links = []
    for link in chain:
        output = link(image)
        links.append((output.numel() * link.weight[0].numel(), image.numel(), output.numel()))
        image = output
    return links


def cp_chain(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, rank, 1, bias=False),
        nn.Conv2d(rank, rank, layer.kernel_size, groups=rank, **geometry(layer)),  # type: ignore[arg-type]
        nn.Conv2d(rank, layer.out_channels, 1),
    )


def tucker_chain(layer: nn.Conv2d, rank: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, rank[1], 1, bias=False),
        nn.Conv2d(rank[1], rank[0], layer.kernel_size, **geometry(layer)),  # type: ignore[arg-type]
        nn.Conv2d(rank[0], layer.out_channels, 1),
    )


def spatial_chain(info: LayerInfo, rank: int) -> nn.Sequential:
    """As the row says: paddings of names are numbers there."""
    sizes = {"kernel_size": info.kernel, "stride": info.stride, "padding": info.padding}
    sizes["dilation"] = info.dilation
    first = {name: (size[0], int(name != "padding")) for name, size in sizes.items()}
    last = {name: (int(name != "padding"), size[1]) for name, size in sizes.items()}
    return nn.Sequential(
        nn.Conv2d(info.in_channels, rank, **first, bias=False),  # type: ignore[arg-type]
        nn.Conv2d(rank, info.out_channels, **last),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_cp_agrees_with_a_chain_that_runs(layer: nn.Conv2d, row_of: RowOf) -> None:
    info = row_of(layer, (6, 17, 23))
    chain = cp_chain(layer, 7)
    first, depthwise, last = run_chain(chain, torch.zeros(1, 6, 17, 23))
    assert factor_macs(info, "cp", 7) == (last[0], first[0], depthwise[0])
    assert link_activations(info, "cp", 7) == (first[1:], depthwise[1:], last[1:])
    shapes = factor_shapes(info, "cp", 7)
    assert [math.prod(shape) for shape in shapes] == [chain[i].weight.numel() for i in (2, 0, 1)]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_tucker_agrees_with_a_chain_that_runs(layer: nn.Conv2d, row_of: RowOf) -> None:
    info = row_of(layer, (6, 17, 23))
    chain = tucker_chain(layer, (5, 4))
    first, core, last = run_chain(chain, torch.zeros(1, 6, 17, 23))
    assert factor_macs(info, "tucker2", (5, 4)) == (last[0], core[0], first[0])
    assert link_activations(info, "tucker2", (5, 4)) == (first[1:], core[1:], last[1:])
    shapes = factor_shapes(info, "tucker2", (5, 4))
    assert [math.prod(shape) for shape in shapes] == [chain[i].weight.numel() for i in (2, 1, 0)]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_two_factors_of_a_kernel_agree_with_a_chain_that_runs(layer: nn.Conv2d, row_of: RowOf) -> None:
    info = row_of(layer, (6, 17, 23))
    chain = nn.Sequential(
        nn.Conv2d(6, 4, layer.kernel_size, **geometry(layer)),  # type: ignore[arg-type]
        nn.Conv2d(4, 10, 1),
    )
    first, last = run_chain(chain, torch.zeros(1, 6, 17, 23))
    assert factor_macs(info, "svd", 4) == (last[0], first[0])
    assert link_activations(info, "svd", 4) == (first[1:], last[1:])
    shapes = factor_shapes(info, "svd", 4)
    assert [math.prod(shape) for shape in shapes] == [chain[i].weight.numel() for i in (1, 0)]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_a_spatial_form_agrees_with_a_chain_that_runs(layer: nn.Conv2d, row_of: RowOf) -> None:
    info = row_of(layer, (6, 17, 23))
    chain = spatial_chain(info, 4)
    first, last = run_chain(chain, torch.zeros(1, 6, 17, 23))
    assert factor_macs(info, "spatial", 4) == (last[0], first[0])
    assert link_activations(info, "spatial", 4) == (first[1:], last[1:])
    shapes = factor_shapes(info, "spatial", 4)
    assert [math.prod(shape) for shape in shapes] == [chain[i].weight.numel() for i in (1, 0)]


@pytest.mark.parametrize("stride", [1, 2])
def test_two_factors_of_a_pointwise_convolution_agree_with_a_chain(stride: int, row_of: RowOf) -> None:
    info = row_of(nn.Conv2d(6, 10, 1, stride=stride), (6, 9, 11))
    chain = nn.Sequential(nn.Conv2d(6, 3, 1, stride=stride, bias=False), nn.Conv2d(3, 10, 1))
    first, last = run_chain(chain, torch.zeros(1, 6, 9, 11))
    assert factor_macs(info, "svd", 3) == (last[0], first[0])
    assert link_activations(info, "svd", 3) == (first[1:], last[1:])


def test_two_factors_of_a_linear_layer_agree_with_a_chain(row_of: RowOf) -> None:
    info = row_of(nn.Linear(12, 8), (5, 12))
    chain = nn.Sequential(nn.Linear(12, 3, bias=False), nn.Linear(3, 8))
    first, last = run_chain(chain, torch.zeros(1, 5, 12))
    assert factor_macs(info, "svd", 3) == (last[0], first[0])
    assert link_activations(info, "svd", 3) == (first[1:], last[1:])
    assert factor_shapes(info, "svd", 3) == ((8, 3), (12, 3))


@pytest.mark.parametrize("structure", ["dense", "keep"])
def test_unfactorized_layers_are_one_link(structure: str, row_of: RowOf) -> None:
    info = row_of(nn.Conv2d(6, 10, 3), (6, 9, 11))
    assert factor_shapes(info, structure, None) == ((10, 6, 3, 3),)
    assert factor_macs(info, structure, None) == (info.macs,)
    assert link_activations(info, structure, None) == ((6 * 99, 10 * 63),)


def test_ranks_of_the_paper(resnet18: tuple[LayerInfo, ...]) -> None:
    rows = {info.name: info for info in resnet18}
    assert rank_for_ratio(rows["layer1.0.conv1"], "cp", 2) == 134
    assert rank_for_ratio(rows["layer4.0.conv2"], "cp", 2) == 1141
    assert max_useful_rank(rows["layer4.0.conv2"], "cp") == 512 * 9


@pytest.mark.parametrize("ratio", [0.99, 0, -1, math.inf, math.nan, "2", None, True])
def test_ratios_out_of_range(ratio: Any, resnet18: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(PlanError, match="ratio out of range; .*expected a number of at least 1"):
        rank_for_ratio(resnet18[0], "cp", ratio)


def hand_made(kind: str, outputs: int, inputs: int, kernel: tuple[int, int]) -> LayerInfo:
    shape = (outputs, inputs, *kernel) if kind == "conv2d" else (outputs, inputs)
    return LayerInfo(name="layer", kind=kind, weight_shape=shape, kernel=kernel)


sizes = st.integers(1, 700)
kernels = st.tuples(st.integers(1, 7), st.integers(1, 7))
ratios = st.floats(1, 1e6)


def held(info: LayerInfo, structure: str, rank: Any) -> int:
    return sum(math.prod(shape) for shape in factor_shapes(info, structure, rank))


@given(sizes, sizes, kernels, ratios)
def test_a_single_rank_is_useful_and_keeps_the_ratio(
    outputs: int, inputs: int, kernel: tuple[int, int], ratio: float
) -> None:
    for structure in ("cp", "svd"):
        info = hand_made("conv2d", outputs, inputs, kernel)
        rank, largest = rank_for_ratio(info, structure, ratio), max_useful_rank(info, structure)
        assert isinstance(rank, int)
        assert isinstance(largest, int)
        assert 1 <= rank <= largest
        assert rank == 1 or held(info, structure, rank) <= info.weight_numel / ratio * (1 + 1e-9)
        assert held(info, structure, largest + 1) > info.weight_numel


@given(sizes, sizes, kernels, ratios)
def test_a_pair_of_ranks_is_the_largest_that_keeps_the_ratio(
    outputs: int, inputs: int, kernel: tuple[int, int], ratio: float
) -> None:
    info = hand_made("conv2d", outputs, inputs, kernel)
    rank, largest = rank_for_ratio(info, "tucker2", ratio), max_useful_rank(info, "tucker2")
    assert isinstance(rank, tuple)
    assert isinstance(largest, tuple)
    assert all(1 <= r <= m <= d for r, m, d in zip(rank, largest, (outputs, inputs), strict=True))
    assert rank == (1, 1) or held(info, "tucker2", rank) <= info.weight_numel / ratio
    larger = (min(outputs, rank[0] + 1), min(inputs, rank[1] + 1))
    assert larger == rank or held(info, "tucker2", larger) > info.weight_numel / ratio
    low, high = sorted((outputs, inputs))
    follower, leader = (rank[0], rank[1]) if outputs <= inputs else (rank[1], rank[0])
    assert follower == max(1, low * leader // high)


@given(sizes, sizes, kernels)
def test_structures_without_a_rank(outputs: int, inputs: int, kernel: tuple[int, int]) -> None:
    info = hand_made("conv2d", outputs, inputs, kernel)
    assert rank_for_ratio(info, "dense", 2) is None
    assert max_useful_rank(info, "keep") is None


def test_factor_counts_are_those_of_the_shapes(row_of: RowOf) -> None:
    info = row_of(nn.Conv2d(6, 10, 3), (6, 9, 9))
    for structure, rank in (("cp", 3), ("tucker2", (2, 2)), ("svd", 3), ("dense", None)):
        assert len(factor_shapes(info, structure, rank)) == len(STRUCTURES[structure].factors)


@pytest.mark.parametrize(("structure", "rank"), [("cp", 7), ("tucker2", (5, 3)), ("svd", 4), ("spatial", 4)])
def test_links_are_what_the_chain_is_built_of(row_of: RowOf, structure: str, rank: Any) -> None:
    """Shapes, bits and operations against the modules that the factors of the layer become."""
    layer = nn.Conv2d(6, 10, (3, 5), stride=(2, 1), padding=1)
    info = row_of(layer, (6, 8, 8))
    count = len(STRUCTURES[structure].factors)
    factors = solve_layer(
        layer.weight.detach(), structure=structure, rank=rank,
        spec=QuantSpec(bits=tuple(range(4, 4 + count))), options=SolverOptions(iterations=2),
    ).factors  # fmt: skip
    told = links_of(info, structure, rank, factors.bits)
    captured = layers_in(capture(nn.Sequential(layer), (6, 8, 8)))["0"]
    image = torch.zeros(1, 6, 8, 8)
    for link, made in zip(told, build_chain(captured, factors).chain, strict=True):
        weight = made.codes
        assert (link.inputs, link.outputs, link.kernel) == (image.shape[1], len(weight), weight.shape[2:])
        assert link.depthwise == (made.operations[0].groups > 1)
        assert link.bits == made.bits
        image = made(image)
        assert link.macs == image.numel() * weight[0].numel()


def test_a_layer_that_is_not_factorized_is_one_link(row_of: RowOf) -> None:
    depthwise = row_of(nn.Conv2d(6, 6, 3, groups=6), (6, 8, 8))
    (dense,) = links_of(depthwise, "dense", None, 5)
    (kept,) = links_of(depthwise, "keep", None, None)
    assert (dense.kernel, dense.inputs, dense.outputs, dense.depthwise) == ((3, 3), 6, 6, True)
    assert (dense.bits, kept.bits, dense.macs) == (5, None, depthwise.macs)
