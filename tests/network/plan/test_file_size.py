"""Bytes of the packed file against counts by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.cost import layer_cost
from qaf_core.network.plan.file_size import (
    CONTAINER_BYTES_PER_FOLD,
    CONTAINER_BYTES_PER_LAYER,
    CONTAINER_BYTES_PER_TENSOR,
    bias_count,
    chain_bytes,
    kept_index_bytes,
)
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan


def rows_of(*layers: nn.Module) -> tuple[LayerInfo, ...]:
    return take_inventory(nn.Sequential(*layers), (6, 9, 9))


def packed(*links: tuple[int, int, int]) -> int:
    """Bytes of links given as (numbers, bits, scales): codes, scales, their exponent, step and zero point."""
    return sum(math.ceil(numbers * bits / 8) + 2 * scales + 1 + 5 for numbers, bits, scales in links)


@pytest.mark.parametrize(
    ("structure", "rank", "bits", "stored"),
    [
        ("cp", 7, (3, 3, 3), packed((10 * 7, 3, 10), (6 * 7, 3, 7), (9 * 7, 3, 7))),
        ("cp", 7, (2, 4, 8), packed((10 * 7, 2, 10), (6 * 7, 4, 7), (9 * 7, 8, 7))),
        ("tucker2", (5, 4), (5, 5, 5), packed((10 * 5, 5, 10), (5 * 4 * 9, 5, 5), (6 * 4, 5, 4))),
        ("dense", None, (4,), packed((540, 4, 10))),
        ("cp", 7, (32, 32, 32), 2 * 7 * (10 + 6 + 9) + 3 * 6),
        ("dense", None, (32,), 2 * 540 + 6),
    ],
)
def test_a_compressed_layer_by_hand(structure: str, rank: Any, bits: tuple[int, ...], stored: int) -> None:
    (info,) = rows_of(nn.Conv2d(6, 10, 3))
    (bare,) = rows_of(nn.Conv2d(6, 10, 3, bias=False))
    assert chain_bytes(info, structure, rank, bits) == stored + 2 * 10 + 1
    assert chain_bytes(bare, structure, rank, bits) == stored
    row = LayerPlan(name="0", structure=structure, rank=rank, bits=bits)
    assert layer_cost(bare, row, 8).size_bytes == stored + CONTAINER_BYTES_PER_LAYER + len("0")


def test_two_factors_by_hand() -> None:
    (info,) = rows_of(nn.Conv2d(6, 10, 1, bias=False))
    assert chain_bytes(info, "svd", 3, (4, 2)) == packed((30, 4, 10), (18, 2, 3))
    (kernel,) = rows_of(nn.Conv2d(6, 10, (3, 5), bias=False))
    assert chain_bytes(kernel, "svd", 3, (4, 2)) == packed((30, 4, 10), (6 * 15 * 3, 2, 3))


def test_biases_of_a_layer() -> None:
    conv, norm, last = rows_of(nn.Conv2d(6, 10, 3, bias=False), nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1))
    assert (bias_count(conv), bias_count(last)) == (10, 4)
    assert kept_index_bytes(norm) == CONTAINER_BYTES_PER_FOLD + len("1")


def test_kept_tensors_have_a_row_each() -> None:
    per_tensor = CONTAINER_BYTES_PER_TENSOR + len("0") + 1
    counts = [
        (nn.BatchNorm2d(6), 2),
        (nn.BatchNorm2d(6, affine=False), 2),
        (nn.GroupNorm(2, 6), 2),
        (nn.PReLU(6), 1),
        (nn.Conv2d(6, 4, 1, bias=False), 1),
    ]
    for layer, tensors in counts:
        assert kept_index_bytes(rows_of(layer)[0]) == tensors * per_tensor
