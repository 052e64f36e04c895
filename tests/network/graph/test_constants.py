"""What a weight is called: after the tensor it is, or that it is computed from."""

from __future__ import annotations

import pytest
import torch

from qaf_core.network.graph.constants import Constant, packed_parts, part_name, unique, weight_name


@pytest.mark.parametrize(
    ("sources", "name", "expected"),
    [
        (("conv.weight",), "conv.weight", "conv.weight"),
        (("matrix",), "matrix", "matrix"),
        (("conv.weight",), None, "conv.weight"),
        (("conv.weight_g", "conv.weight_v"), None, "conv.weight"),
        (("weight_orig", "weight_u"), None, "weight"),
        (("a.parametrizations.weight.original0", "a.parametrizations.weight.original1"), None, "a.weight"),
        (("scale", "fc.weight"), None, "fc.weight"),
        (("left", "right"), None, "left"),
        ((), None, "constant"),
    ],
)
def test_a_weight_is_called_after_what_it_follows_from(
    sources: tuple[str, ...], name: str | None, expected: str
) -> None:
    constant = Constant(value=torch.zeros(2, 2), sources=sources, key=sources, name=name)
    assert weight_name(constant) == expected


@pytest.mark.parametrize(
    ("name", "rows", "parts"),
    [
        ("a.in_proj_weight", 12, ("a.q_proj", "a.k_proj", "a.v_proj")),
        ("in_proj_weight", 8, ("k_proj", "v_proj")),
        ("a.in_proj_weight", 4, ()),
        ("a.in_proj_weight", 10, ()),
        ("a.weight", 12, ()),
    ],
)
def test_packed_projections_have_names(name: str, rows: int, parts: tuple[str, ...]) -> None:
    assert packed_parts(name, rows, 4) == parts


@pytest.mark.parametrize(
    ("name", "offset", "part"),
    [
        ("a.in_proj_weight", 0, "a.q_proj.weight"),
        ("a.in_proj_weight", 8, "a.v_proj.weight"),
        ("a.in_proj_weight", 3, None),
        ("a.in_proj_weight", 12, None),
        ("a.weight", 0, None),
    ],
)
def test_a_part_is_called_after_where_it_begins(name: str, offset: int, part: str | None) -> None:
    assert part_name(name, offset, 4) == part


def test_a_taken_name_gets_a_number() -> None:
    assert unique("fc", ["conv"]) == "fc"
    assert unique("fc", ["fc"]) == "fc_2"
    assert unique("fc", ["fc", "fc_2"]) == "fc_3"
