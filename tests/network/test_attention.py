"""The opened attention against the packed one, argument by argument."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.attention import ComputesProducts, OpenAttention

WIDTH, HEADS, IMAGES, QUERIES, KEYS = 12, 3, 2, 5, 7


def packed(**options: Any) -> nn.MultiheadAttention:
    """A packed attention whose biases are not zero."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def inputs(module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of different lengths, in the order of dimensions the module takes."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((QUERIES, WIDTH), (KEYS, module.kdim), (KEYS, module.vdim))
    batch = [torch.randn(IMAGES, *shape, generator=generator) for shape in shapes]
    query, key, value = batch if module.batch_first else [values.transpose(0, 1) for values in batch]
    return query, key, value


def assert_agree(module: nn.MultiheadAttention, *arguments: Any, **named: Any) -> None:
    """Outputs and weights of both modules are the same up to rounding."""
    expected, expected_weights = module(*arguments, **named)
    found, weights = OpenAttention(module, {})(*arguments, **named)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 8, "vdim": 10, "batch_first": True},
        {"kdim": 8, "vdim": 10, "bias": False},
    ],
)
@pytest.mark.parametrize("need_weights", [True, False])
def test_every_form_of_the_module_computes_the_same(options: dict[str, Any], need_weights: bool) -> None:
    module = packed(**options)
    with torch.inference_mode():
        assert_agree(module, *inputs(module), need_weights=need_weights)


@pytest.mark.parametrize("need_weights", [True, False])
def test_every_mask_forbids_the_same(need_weights: bool) -> None:
    module = packed(batch_first=True)
    generator = torch.Generator().manual_seed(2)
    forbidden = torch.rand(QUERIES, KEYS, generator=generator) > 0.6
    forbidden[:, 0] = False
    each_head = torch.rand(IMAGES * HEADS, QUERIES, KEYS, generator=generator) > 0.6
    each_head[..., 0] = False
    padding = torch.zeros(IMAGES, KEYS, dtype=torch.bool)
    padding[1, 4:] = True
    added = torch.randn(QUERIES, KEYS, generator=generator)
    with torch.inference_mode():
        for mask, gaps in itertools.product((None, forbidden, each_head, added), (None, padding)):
            if mask is added and gaps is not None:
                gaps = torch.zeros(gaps.shape).masked_fill(gaps, -torch.inf)
            assert_agree(
                module, *inputs(module), attn_mask=mask, key_padding_mask=gaps, need_weights=need_weights
            )


def test_a_single_sequence_without_a_batch() -> None:
    module = packed()
    query, key, value = (values[:, 0] for values in inputs(module))
    padding = torch.tensor([False] * 5 + [True] * 2)
    with torch.inference_mode():
        for need_weights in (True, False):
            assert_agree(module, query, key, value, key_padding_mask=padding, need_weights=need_weights)
        assert_agree(module, query, key, value, average_attn_weights=False)


def test_a_causal_hint_needs_its_mask() -> None:
    module = packed(batch_first=True)
    query = inputs(module)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES)
    with torch.inference_mode():
        assert_agree(module, query, query, query, attn_mask=mask, is_causal=True, need_weights=False)
    with pytest.raises(RuntimeError, match="give the mask too"):
        OpenAttention(module, {})(query, query, query, is_causal=True)


def test_weights_are_left_out_while_training_only() -> None:
    module = OpenAttention(packed(dropout=0.5, batch_first=True), {})
    query = inputs(packed(batch_first=True))[0]
    assert torch.equal(module(query, query, query)[0], module(query, query, query)[0])
    module.train()
    assert not torch.equal(module(query, query, query)[0], module(query, query, query)[0])


def test_products_are_counted_without_the_projections() -> None:
    for batch_first in (True, False):
        module = packed(batch_first=batch_first)
        opened: ComputesProducts = OpenAttention(module, {})
        assert opened.product_macs(inputs(module)) == IMAGES * 2 * QUERIES * KEYS * WIDTH
        assert opened.product_macs([torch.zeros(QUERIES, WIDTH)]) == 2 * QUERIES * QUERIES * WIDTH


def test_modules_that_share_a_weight_go_on_sharing_it() -> None:
    one, two = packed(), packed()
    two.in_proj_weight = one.in_proj_weight
    slices: dict[int, list[Tensor]] = {}
    first, second = OpenAttention(one, slices), OpenAttention(two, slices)
    assert first.q_proj.weight is second.q_proj.weight
    assert first.q_proj.bias is not second.q_proj.bias
