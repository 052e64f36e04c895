"""What is said of rows out of range and of plans for another network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from qaf_core.errors import PlanError
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.network.plan.validation import (
    check_activations,
    check_bits,
    check_layer_plan,
    oversized_ranks,
    validate_plan,
)

RowOf = Callable[[nn.Module, tuple[int, ...]], LayerInfo]
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "kernel": (nn.Conv2d(16, 32, 3), (16, 8, 8)),  # 32·16·9; CP is exact at rank 144
    "pointwise": (nn.Conv2d(16, 32, 1), (16, 8, 8)),  # exact at rank 16
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16), (16, 8, 8)),
    "linear": (nn.Linear(64, 10), (64,)),
}


@pytest.mark.parametrize(
    ("layer", "structure", "rank", "bits"),
    [
        ("kernel", "cp", 1, 2),
        ("kernel", "cp", 144, 8),
        ("kernel", "cp", 10, (2, 8, 32)),
        ("kernel", "tucker2", (1, 1), 4),
        ("kernel", "tucker2", (32, 16), 4),
        ("kernel", "dense", None, 4),
        ("kernel", "dense", None, (4,)),
        ("kernel", "keep", None, None),
        ("kernel", "svd", 26, (8, 2)),
        ("pointwise", "svd", 10, 32),
        ("linear", "svd", 8, (3, 5)),
        ("depthwise", "dense", None, 8),
    ],
)
def test_rows_in_range(layer: str, structure: str, rank: Any, bits: Any, row_of: RowOf) -> None:
    info = row_of(*LAYERS[layer])
    assert check_layer_plan(info, LayerPlan(name="0", structure=structure, rank=rank, bits=bits)) == []


@pytest.mark.parametrize(
    ("layer", "structure", "rank", "bits", "field", "words"),
    [
        ("kernel", "cp", 0, 4, "rank", "rank out of range: got 0, expected a whole number from 1 to 144"),
        ("kernel", "cp", -3, 4, "rank", "got -3"),
        ("kernel", "cp", 145, 4, "rank", "with 144 any weight of this shape is met exactly"),
        ("kernel", "cp", None, 4, "rank", "rank missing: got none"),
        ("kernel", "cp", (3, 3), 4, "rank", "not a rank: got 3, 3"),
        ("kernel", "cp", True, 4, "rank", "not a rank"),
        ("kernel", "cp", 2.5, 4, "rank", "not a rank: got 2.5"),
        (
            "kernel",
            "tucker2",
            8,
            4,
            "rank",
            "tucker2 needs two ranks: got 8, expected R_out from 1 to 32, R_in",
        ),
        ("kernel", "tucker2", (0, 4), 4, "rank", "rank out of range: got 0, 4"),
        ("kernel", "tucker2", (33, 1), 4, "rank", "R_out from 1 to 32"),
        ("kernel", "dense", 4, 4, "rank", "dense has no rank: got 4, expected none"),
        ("kernel", "keep", 4, None, "rank", "keep has no rank"),
        ("kernel", "cp", 4, 1, "bits", "bits out of range: got 1, expected 2 to 8, or 32 for floating point"),
        ("kernel", "cp", 4, 9, "bits", "got 9"),
        ("kernel", "cp", 4, 16, "bits", "got 16"),
        ("kernel", "cp", 4, True, "bits", "bits out of range"),
        ("kernel", "cp", 4, None, "bits", "bits missing: got none"),
        (
            "kernel",
            "cp",
            4,
            (4, 4),
            "bits",
            "one bit-width per factor is needed: got 4, 4, expected one number, or 3",
        ),
        ("kernel", "cp", 4, (4, 4, 1), "bits", "bits out of range: got 4, 4, 1"),
        ("kernel", "keep", None, 8, "bits", "a kept layer has no bits: got 8, expected none"),
        (
            "linear",
            "cp",
            4,
            4,
            "structure",
            "cp does not fit this layer: got cp, expected svd, dense, keep",
        ),
        ("kernel", "cpd", 4, 4, "structure", "unknown structure: got cpd"),
        ("pointwise", "cp", 4, 4, "structure", "expected svd, dense, keep"),
        ("linear", "svd", 11, 4, "rank", "from 1 to 10"),
        ("depthwise", "cp", 4, 4, "structure", "depthwise: every output reads one channel only"),
    ],
)
def test_rows_out_of_range(
    layer: str, structure: str, rank: Any, bits: Any, field: str, words: str, row_of: RowOf
) -> None:
    info = row_of(*LAYERS[layer])
    found = check_layer_plan(info, LayerPlan(name="0", structure=structure, rank=rank, bits=bits))
    assert [name for name, _ in found] == [field]
    assert words in str(found[0][1])


def test_both_faults_of_a_row_are_told(row_of: RowOf) -> None:
    row = LayerPlan(name="0", structure="cp", rank=0, bits=1)
    assert [field for field, _ in check_layer_plan(row_of(*LAYERS["kernel"]), row)] == ["rank", "bits"]


def test_a_rank_that_makes_the_layer_larger_is_told_and_allowed(row_of: RowOf) -> None:
    infos = [replace(row_of(*LAYERS[name]), name=name) for name in ("kernel", "linear")]
    rows = [LayerPlan(name="kernel", structure="cp", bits=4), LayerPlan(name="linear", structure="keep")]
    for rank, more in ((80, False), (81, True), (144, True)):  # 57 numbers each, 4,608 in all
        plan = Plan(model="m", layers=(replace(rows[0], rank=rank), rows[1]))
        validate_plan(plan, infos)
        told = f"rank {rank} of layer kernel holds more numbers than the layer itself"
        assert [str(warning) for warning in oversized_ranks(plan, infos)] == ([told] if more else [])
    pair = (LayerPlan(name="kernel", structure="tucker2", rank=(32, 16), bits=4),)
    assert str(oversized_ranks(Plan(model="m", layers=pair), infos)[0]).startswith(
        "rank 32, 16 of layer kernel"
    )


@pytest.mark.parametrize("bits", [1, 9, 31, 0, -4, 4.0, "4", None, True])
def test_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(PlanError, match="activation bits out of range; .*2 to 8, or 32"):
        check_bits("activation bits", bits)


def test_activations_have_8_bits_or_none() -> None:
    check_activations(8)
    check_activations(32)
    with pytest.raises(PlanError, match="8 bits or not at all; got 4 bits; expected 8 or 32"):
        check_activations(4)


@pytest.fixture(scope="module")
def good(resnet18: tuple[LayerInfo, ...]) -> Plan:
    return plan_for_ratio(resnet18, model="torchvision/resnet18", ratio=2, bits=4)


def test_a_good_plan_passes(good: Plan, resnet18: tuple[LayerInfo, ...]) -> None:
    validate_plan(good, resnet18)
    validate_plan(good, resnet18, model="torchvision/resnet18")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: replace(p, activation_bits=16), "activation bits out of range; got 16"),
        (
            lambda p: replace(p, layers=p.layers[1:]),
            "leaves out layers; got no row for conv1; .*structure keep",
        ),
        (lambda p: replace(p, layers=(*p.layers, p.layers[3])), "more than once; got layer1.1.conv1"),
        (
            lambda p: replace(p, layers=(*p.layers, LayerPlan(name="bn1", structure="keep"))),
            "does not plan; got bn1; .*remove",
        ),
        (
            lambda p: replace(p, layers=tuple(replace(row, name=f"x.{row.name}") for row in p.layers)),
            "made for torchvision/resnet18, does not fit this network; got unknown layers x.conv1, .*16 more",
        ),
        (
            lambda p: replace(p, layers=(replace(p.layers[0], name="x"), *p.layers[1:])),
            "does not fit this network; got unknown layers x;",
        ),
        (
            lambda p: replace(p, layers=(*p.layers[:1], replace(p.layers[1], rank=0), *p.layers[2:])),
            "layer layer1.0.conv1, rank: rank out of range: got 0",
        ),
        (lambda p: replace(p, layers=()), "leaves out layers; .*and 16 more"),
    ],
)
def test_plans_that_do_not_fit(
    change: Callable[[Plan], Plan], words: str, good: Plan, resnet18: tuple[LayerInfo, ...]
) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        validate_plan(change(good), resnet18)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_model(
    good: Plan, resnet18: tuple[LayerInfo, ...], resnet50: tuple[LayerInfo, ...]
) -> None:
    with pytest.raises(PlanError, match="for another model; got torchvision/resnet18; expected digits/cnn"):
        validate_plan(good, resnet18, model="digits/cnn")
    with pytest.raises(PlanError):
        validate_plan(good, resnet50)
