"""Plans made for a ratio: what is covered, what is spared, which ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import densenet, mobilenet, vision_transformer
from torch import nn

from qaf_core.errors import PlanError, SolverError
from qaf_core.factorization.factors import exact_factors
from qaf_core.factorization.intake import checked_rank
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.chains import factor_macs, max_useful_rank, rank_for_ratio
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import PRESETS, paper_plan, plan_for_ratio, plan_layer, replace_layer
from qaf_core.network.plan.types import LayerPlan
from qaf_core.network.plan.validation import check_layer_plan, validate_plan

Weightless = Callable[..., nn.Module]
Listed = Callable[..., tuple[nn.Module, nn.Module, tuple[LayerInfo, ...]]]


def test_the_first_convolution_and_the_classifier_are_spared(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=4)
    rows = {row.name: row for row in plan.layers}
    assert rows["conv1"] == LayerPlan(name="conv1", structure="dense", bits=8)
    assert rows["fc"] == LayerPlan(name="fc", structure="dense", bits=8)
    assert rows["layer1.0.conv1"] == LayerPlan(name="layer1.0.conv1", structure="cp", rank=134, bits=4)
    assert rows["layer2.0.downsample.0"].structure == "svd"
    assert rows["layer2.0.downsample.0"].rank == int(128 * 64 / (128 + 64) / 2)
    assert [row.name for row in plan.layers] == [info.name for info in resnet18 if info.planned]
    assert sum(row.structure == "cp" for row in plan.layers) == 16


def test_float_activations_keep_what_is_spared(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=4, activation_bits=32)
    kept = [row for row in plan.layers if row.structure == "keep"]
    assert [row.name for row in kept] == ["conv1", "fc"]
    assert all(row.bits is None for row in kept)
    validate_plan(plan, resnet18)


def test_hidden_linear_layers_are_covered(weightless: Weightless) -> None:
    inventory = take_inventory(weightless("vgg11"), (3, 224, 224))
    rows = {row.name: row for row in plan_for_ratio(inventory, model="m", ratio=3, bits=4).layers}
    assert rows["classifier.0"].structure == rows["classifier.3"].structure == "svd"
    assert rows["classifier.0"].rank == int(25088 * 4096 / (25088 + 4096) / 3)
    assert rows["classifier.6"].structure == "dense"


def test_layers_that_cannot_be_factorized_are_quantized(listed: Listed) -> None:
    plan = plan_for_ratio(listed(mobilenet)[2], model="m", ratio=2, bits=4)
    rows = {row.name: row for row in plan.layers}
    depthwise, expansion = "features.2.block.1.0", "features.2.block.0.0"
    assert rows[depthwise] == LayerPlan(name=depthwise, structure="dense", bits=8)
    assert rows[expansion].structure == "svd"


def test_layers_that_never_run_are_kept(listed: Listed) -> None:
    inventory = listed("googlenet", init_weights=False)[2]
    plan = plan_for_ratio(inventory, model="m", ratio=2, bits=4)
    assert {row.structure for row in plan.layers if row.name.startswith("aux")} == {"keep"}
    assert plan.layer("fc").structure == "dense"
    validate_plan(plan, inventory)


def test_dense_quantizes_the_covered_layers(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=3, method="dense")
    assert {row.structure for row in plan.layers} == {"dense"}
    assert {row.name for row in plan.layers if row.bits == 8} == {"conv1", "fc"}
    assert all(row.rank is None for row in plan.layers)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", mobilenet, vision_transformer, densenet])
@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "cp-or-tucker2"])
def test_made_plans_are_valid(name: Any, structure: str, listed: Listed) -> None:
    _, _, inventory = listed(name)
    for ratio in (1, 2, 1e6):
        for bits in (2, 8, 32):
            for activation_bits in (4, 32):
                plan = plan_for_ratio(
                    inventory,
                    model="m",
                    ratio=ratio,
                    bits=bits,
                    activation_bits=activation_bits,
                    structure=structure,
                )
                validate_plan(plan, inventory, model="m")


def test_tucker_takes_the_place_of_cp(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=4, structure="tucker2")
    rank_out, rank_in = plan.layer("layer4.0.conv2").rank  # type: ignore[misc]
    assert rank_out == rank_in
    assert 512 * 2 * rank_out + 9 * rank_out**2 <= 512 * 512 * 9 / 2
    assert 512 * 2 * (rank_out + 1) + 9 * (rank_out + 1) ** 2 > 512 * 512 * 9 / 2


def test_the_rule_leaves_cp_where_it_needs_more_operations_than_the_layer(
    resnet18: tuple[LayerInfo, ...],
) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=1.2, bits=4, structure="cp-or-tucker2")
    chosen = {row.structure for row in plan.layers}
    assert chosen >= {"cp", "tucker2"}
    for info in resnet18:
        if "cp" in info.structures and info.name != "conv1":
            row = plan.layer(info.name)
            assert row.structure == "cp" or sum(factor_macs(info, "tucker2", row.rank)) <= info.macs


def test_the_paper_factorizes_kernels_only(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = paper_plan(resnet18, model="m", ratio=2, bits=4)
    assert {row.structure for row in plan.layers} == {"cp", "dense"}
    assert {row.bits for row in plan.layers if row.structure == "dense"} == {8}
    assert sum(row.structure == "cp" for row in plan.layers) == 16


def test_the_classifier_of_a_network_that_is_one_convolution() -> None:
    inventory = take_inventory(nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 8))
    (row,) = plan_for_ratio(inventory, model="m", ratio=2, bits=4).layers
    assert (row.structure, row.bits) == ("dense", 8)
    assert plan_for_ratio((), model="m", ratio=2, bits=4).layers == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ratio": 0.5}, "ratio out of range; got 0.5"),
        ({"ratio": float("nan")}, "ratio out of range; got nan"),
        ({"bits": 1}, "weight bits out of range; got 1; expected 2 to 8"),
        ({"activation_bits": 16}, "activation bits out of range; got 16"),
        ({"structure": "dense"}, "unknown structure; got dense; expected cp, .*spatial, cp-or-tucker2.$"),
        ({"structure": "auto"}, "unknown structure; got auto; expected cp, .*: qaf plan --structure auto"),
    ],
)
def test_arguments_out_of_range(
    arguments: dict[str, Any], words: str, resnet18: tuple[LayerInfo, ...]
) -> None:
    with pytest.raises(PlanError, match=words):
        plan_for_ratio(resnet18, **{"model": "m", "ratio": 2, "bits": 4, **arguments})


def test_one_row_is_exchanged(resnet18: tuple[LayerInfo, ...]) -> None:
    plan = plan_for_ratio(resnet18, model="m", ratio=2, bits=4)
    row = LayerPlan(name="layer1.0.conv1", structure="cp", rank=10, bits=(2, 3, 4))
    changed = replace_layer(plan, row)
    assert changed.layer("layer1.0.conv1") == row
    assert plan.layer("layer1.0.conv1").rank == 134
    assert [r.name for r in changed.layers] == [r.name for r in plan.layers]
    with pytest.raises(PlanError, match="no such layer; got layer9"):
        replace_layer(plan, LayerPlan(name="layer9", structure="keep"))


@pytest.mark.parametrize(
    ("layer", "asked", "given"),
    [
        (nn.Conv2d(8, 8, 1), "cp", "svd"),
        (nn.Conv2d(8, 8, 3), "svd", "svd"),
        (nn.Conv2d(8, 8, 3), "tucker2", "tucker2"),
        (nn.Conv2d(8, 8, 3, groups=8), "cp", "dense"),
        (nn.Conv2d(8, 8, 3, groups=8), "keep", "keep"),
        (nn.Conv2d(8, 8, 1), "cp-or-tucker2", "svd"),
        (nn.Conv2d(8, 8, 1), "dense", "dense"),
    ],
)
def test_a_structure_gives_way_to_the_nearest(layer: nn.Module, asked: str, given: str) -> None:
    (info,) = take_inventory(nn.Sequential(layer), (8, 9, 9))
    row = plan_layer(info, asked, ratio=2, bits=4)
    assert row.structure == given
    assert row.rank == rank_for_ratio(info, given, 2)
    assert row.bits == (None if given == "keep" else 4)


def test_presets_grow_stronger(resnet18: tuple[LayerInfo, ...]) -> None:
    assert list(PRESETS) == ["gentle", "balanced", "aggressive"]
    ratios, bits = zip(*PRESETS.values(), strict=True)
    assert list(ratios) == sorted(ratios)
    assert list(bits) == sorted(bits, reverse=True)
    for ratio, width in PRESETS.values():
        validate_plan(plan_for_ratio(resnet18, model="m", ratio=ratio, bits=width), resnet18)


@pytest.mark.parametrize("structure", FACTORIZED)
def test_plans_and_the_solver_have_one_limit_where_any_weight_is_met_exactly(structure: str) -> None:
    (info,) = take_inventory(nn.Sequential(nn.Conv2d(6, 8, 3)), (6, 9, 9))
    largest = max_useful_rank(info, structure)
    beyond = tuple(rank + 1 for rank in largest) if isinstance(largest, tuple) else (largest or 0) + 1
    assert exact_factors(torch.zeros(info.weight_shape), structure).rank == largest
    assert checked_rank(largest, structure, info.weight_shape) == largest
    row = LayerPlan(name=info.name, structure=structure, rank=largest, bits=4)
    assert check_layer_plan(info, row) == []
    assert [field for field, _ in check_layer_plan(info, replace(row, rank=beyond))] == ["rank"]
    with pytest.raises(SolverError, match="rank"):
        checked_rank(beyond, structure, info.weight_shape)
