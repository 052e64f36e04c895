"""Costs against the paper's table and against counts by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qaf_core.errors import PlanError
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.cost import (
    Cost,
    layer_cost,
    original_cost,
    original_layer_cost,
    plan_cost,
    ratio_cost,
    total_cost,
)
from qaf_core.network.plan.file_size import CONTAINER_BYTES_FIXED, CONTAINER_BYTES_PER_FOLD, kept_index_bytes
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import paper_plan, plan_for_ratio, replace_layer
from qaf_core.network.plan.types import LayerPlan, Plan

# ratio, weight bits, GBOPs, percent, GMACs of ResNet-18 with 8-bit activations: arXiv 2308.04595
PAPER = [
    (1.2, 4, "58.30", "3.13", "1.679"),
    (1.5, 4, "48.44", "2.60", "1.371"),
    (2, 4, "38.61", "2.07", "1.064"),
    (2.5, 4, "32.69", "1.75", "0.879"),
    (2.7, 4, "30.95", "1.66", "0.824"),
    (3, 4, "28.76", "1.54", "0.756"),
    (2, 6, "53.35", "2.86", "1.064"),
    (2.5, 6, "44.46", "2.39", "0.879"),
    (3, 6, "38.57", "2.07", "0.756"),
    (2, 8, "68.09", "3.66", "1.064"),
    (2.5, 8, "56.24", "3.02", "0.879"),
    (3, 8, "48.39", "2.60", "0.756"),
]


@pytest.mark.parametrize(("ratio", "bits", "gbops", "percent", "gmacs"), PAPER)
def test_the_papers_table_to_its_last_digit(
    ratio: float, bits: int, gbops: str, percent: str, gmacs: str, resnet18: tuple[LayerInfo, ...]
) -> None:
    cost = ratio_cost(resnet18, ratio, bits, 8, "paper")
    before = original_cost(resnet18, "paper")
    assert f"{cost.bops / 1e9:.2f}" == gbops
    assert f"{100 * cost.bops / before.bops:.2f}" == percent
    assert f"{cost.macs / 1e9:.3f}" == gmacs
    plan = paper_plan(resnet18, model="m", ratio=ratio, bits=bits)
    assert plan_cost(resnet18, plan, "paper") == cost


def test_the_papers_original(resnet18: tuple[LayerInfo, ...]) -> None:
    before = original_cost(resnet18, "paper")
    assert before.macs == 1_819_040_768
    assert f"{before.bops / 1e9:.2f}" == "1862.70"


def test_the_original_under_both_conventions(resnet18: tuple[LayerInfo, ...]) -> None:
    uniform, paper = original_cost(resnet18), original_cost(resnet18, "paper")
    batchnorm = sum(info.macs for info in resnet18 if info.kind == "batchnorm")
    assert uniform.macs == paper.macs - batchnorm
    assert uniform.bops == 1024 * uniform.macs
    assert uniform.size_bytes == paper.size_bytes == 4 * 11_689_512
    assert uniform.params == paper.params == 11_689_512
    assert uniform.peak_activation_bytes == paper.peak_activation_bytes == 4 * (3 * 224**2 + 64 * 112**2)


def one_layer(layer: nn.Module, shape: tuple[int, ...], *after: nn.Module) -> tuple[LayerInfo, ...]:
    return take_inventory(nn.Sequential(layer, *after), shape)


def test_bit_operations_follow_each_factors_bits() -> None:
    (info,) = one_layer(nn.Conv2d(6, 10, 3, stride=2, padding=1), (6, 8, 8))
    row = LayerPlan(name="0", structure="cp", rank=3, bits=(2, 4, 8))
    last, first, middle = 3 * 10 * 16, 3 * 6 * 64, 3 * 9 * 16
    cost = layer_cost(info, row, 5)
    assert cost.macs == last + first + middle
    assert cost.bops == 5 * (2 * last + 4 * first + 8 * middle)
    assert layer_cost(info, replace(row, bits=4), 32).bops == 32 * 4 * cost.macs


def test_wide_intermediates_can_raise_the_peak() -> None:
    (info,) = one_layer(nn.Conv2d(4, 4, 3, padding=1), (4, 10, 10))
    row = LayerPlan(name="0", structure="cp", rank=8, bits=4)
    assert layer_cost(info, row, 8).peak_activation_bytes == 8 * 100 + 8 * 100
    assert layer_cost(info, LayerPlan(name="0", structure="dense", bits=8), 8).peak_activation_bytes == 800
    assert layer_cost(info, LayerPlan(name="0", structure="keep"), 8).peak_activation_bytes == 4 * 800
    assert layer_cost(info, row, 4).peak_activation_bytes == 800


def test_a_folded_batchnorm_becomes_a_bias() -> None:
    info, norm = one_layer(nn.Conv2d(6, 10, 3, bias=False), (6, 9, 9), nn.BatchNorm2d(10))
    row = LayerPlan(name="0", structure="dense", bits=4)
    assert layer_cost(info, row, 8).params == 540 + 10
    assert layer_cost(info, LayerPlan(name="0", structure="keep"), 8).params == 540 + 10
    assert layer_cost(norm, None, 8) == Cost(
        params=0,
        size_bytes=CONTAINER_BYTES_PER_FOLD + 1,
        macs=0,
        bops=0,
        peak_activation_bytes=0,
        energy_joules=0.0,
    )
    assert layer_cost(norm, None, 8, "paper").bops == 2 * 490 * 8 * 8
    assert layer_cost(norm, None, 32, "paper").bops == 2 * 490 * 32 * 32
    assert original_layer_cost(norm).macs == 0
    assert original_layer_cost(norm).size_bytes == 80
    assert original_layer_cost(norm, "paper").macs == 2 * 490


def test_a_batchnorm_that_cannot_be_folded_costs() -> None:
    norm, *_ = one_layer(nn.BatchNorm2d(6), (6, 9, 9), nn.ReLU(), nn.Conv2d(6, 10, 3))
    cost = layer_cost(norm, None, 8)
    assert (cost.params, cost.size_bytes) == (12, 24 + kept_index_bytes(norm))
    assert (cost.macs, cost.bops) == (2 * 486, 2 * 486 * 1024)
    assert cost.peak_activation_bytes == 4 * 2 * 486
    assert original_layer_cost(norm).macs == 2 * 486


def test_kept_layers_are_stored_in_half_precision() -> None:
    (info,) = one_layer(nn.LayerNorm(8), (5, 8))
    cost = layer_cost(info, None, 8)
    assert (cost.params, cost.size_bytes, cost.macs) == (16, 32 + kept_index_bytes(info), 80)
    assert cost.bops == 80 * 1024


def test_a_network_is_the_sum_of_its_layers(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=4)
    rows = {row.name: row for row in plan.layers}
    costs = [layer_cost(info, rows.get(info.name), 8) for info in resnet18]
    whole = plan_cost(resnet18, plan)
    assert whole == total_cost(costs, container_bytes=CONTAINER_BYTES_FIXED)
    assert whole.size_bytes == CONTAINER_BYTES_FIXED + sum(cost.size_bytes for cost in costs)
    assert whole.bops == sum(cost.bops for cost in costs)
    assert whole.peak_activation_bytes == max(cost.peak_activation_bytes for cost in costs)
    assert total_cost([]).peak_activation_bytes == 0


def test_resnet18_at_ratio_two_and_four_bits(resnet18: tuple[LayerInfo, ...]) -> None:
    cost = ratio_cost(resnet18, 2, 4)
    assert 12 < original_cost(resnet18).size_bytes / cost.size_bytes < 17
    assert 0.015 < cost.bops / original_cost(resnet18).bops < 0.025


def test_keeping_everything_costs_the_original(resnet18: tuple[LayerInfo, ...]) -> None:
    layers = tuple(LayerPlan(name=info.name, structure="keep") for info in resnet18 if info.planned)
    kept, before = plan_cost(resnet18, Plan(model="m", layers=layers)), original_cost(resnet18)
    assert (kept.macs, kept.bops) == (before.macs, before.bops)
    assert kept.peak_activation_bytes == before.peak_activation_bytes
    assert kept.size_bytes < 0.51 * before.size_bytes


def test_resnet50_costs_at_most_20_milliseconds(resnet50: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet50, model="m", ratio=2, bits=4)
    seconds = []
    for rank in range(1, 6):
        began = time.perf_counter()
        plan = replace_layer(plan, LayerPlan(name="layer1.0.conv2", structure="cp", rank=rank, bits=4))
        plan_cost(resnet50, plan)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.020


def test_layers_that_run_twice_are_stored_once() -> None:
    (info,) = one_layer(nn.Conv2d(6, 6, 3, padding=1), (6, 9, 9))
    twice = replace(info, calls=2, macs=2 * info.macs, output_elements=2 * 486, input_elements=2 * 486)
    row = LayerPlan(name="0", structure="cp", rank=3, bits=4)
    once, both = layer_cost(info, row, 8), layer_cost(twice, row, 8)
    assert (both.params, both.size_bytes) == (once.params, once.size_bytes)
    assert (both.macs, both.bops) == (2 * once.macs, 2 * once.bops)
    assert both.peak_activation_bytes == once.peak_activation_bytes
    assert once.energy_joules < both.energy_joules < 2 * once.energy_joules


def test_layers_that_never_run_cost_only_their_size(
    listed: Callable[..., tuple[nn.Module, nn.Module, tuple[LayerInfo, ...]]],
) -> None:
    inventory = listed("googlenet", init_weights=False)[2]
    (idle,) = [info for info in inventory if info.name == "aux1.fc1"]
    cost = layer_cost(idle, LayerPlan(name=idle.name, structure="keep"), 8)
    assert (cost.macs, cost.bops, cost.peak_activation_bytes, cost.energy_joules) == (0, 0, 0, 0.0)
    assert cost.size_bytes == 2 * idle.params + kept_index_bytes(idle)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (LayerPlan(name="0", structure="cp", rank=(3, 3), bits=4), "cp and its rank do not go together"),
        (LayerPlan(name="0", structure="tucker2", rank=3, bits=4), "tucker2 and its rank do not go together"),
        (LayerPlan(name="0", structure="dense"), "bits missing"),
        (LayerPlan(name="0", structure="cp", rank=3, bits=(4, 4)), "bits missing"),
        (LayerPlan(name="0", structure="cpd", rank=3, bits=4), "do not go together"),
    ],
)
def test_rows_that_cannot_be_costed(row: LayerPlan, words: str) -> None:
    (info,) = one_layer(nn.Conv2d(6, 10, 3), (6, 9, 9))
    with pytest.raises(PlanError, match=words):
        layer_cost(info, row, 8)


def test_unknown_conventions_and_missing_layers(resnet18: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(PlanError, match="unknown cost convention; got papers; expected uniform, paper"):
        original_cost(resnet18, "papers")
    with pytest.raises(PlanError, match="unknown cost convention"):
        ratio_cost(resnet18, 2, 4, 8, "")
    with pytest.raises(PlanError, match="leaves out a layer; got no row for conv1"):
        plan_cost(resnet18, Plan(model="m", layers=()))


@pytest.fixture(scope="module")
def small() -> Sequence[LayerInfo]:
    return one_layer(nn.Conv2d(16, 24, 3, padding=1), (16, 12, 12))


@given(rank=st.integers(1, 60), bits=st.integers(2, 7), activation_bits=st.integers(2, 7))
def test_more_rank_and_more_bits_never_cost_less(
    small: Sequence[LayerInfo], rank: int, bits: int, activation_bits: int
) -> None:
    row = LayerPlan(name="0", structure="cp", rank=rank, bits=bits)
    cost = layer_cost(small[0], row, activation_bits)
    wider = layer_cost(small[0], replace(row, rank=rank + 1), activation_bits)
    finer = layer_cost(small[0], replace(row, bits=bits + 1), activation_bits)
    louder = layer_cost(small[0], row, activation_bits + 1)
    for other in (wider, finer, louder):
        assert all(other.to_dict()[key] >= value for key, value in cost.to_dict().items())
    assert wider.params - cost.params == 24 + 16 + 9


def test_a_cost_as_json_names_its_units() -> None:
    cost = total_cost([])
    assert list(cost.to_dict()) == [
        "params",
        "size_bytes",
        "macs",
        "bops",
        "peak_activation_bytes",
        "energy_joules",
    ]
