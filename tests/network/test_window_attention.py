"""Windowed attention through its layers against torchvision's function, size by size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from qaf_core.network.window_attention import OpenWindowAttention, open_window_attention

WIDTH, HEADS = 12, 3


def windowed(kind: type[ShiftedWindowAttention], shift: list[int], *, bias: bool = True) -> nn.Module:
    """A windowed attention whose parameters are not zero."""
    torch.manual_seed(0)
    module = kind(WIDTH, [4, 3], shift, HEADS, qkv_bias=bias).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [2, 1], [2, 0], [0, 1]])
# Whole windows, some to be filled up, a side and an image that one window covers.
@pytest.mark.parametrize("size", [(8, 9), (7, 10), (4, 9), (3, 2)])
def test_windows_of_every_size_and_shift_agree(
    kind: type[ShiftedWindowAttention], shift: list[int], size: tuple[int, int]
) -> None:
    module = windowed(kind, shift)
    opened = copy.deepcopy(module)
    open_window_attention(opened)
    called: list[str] = []
    for name in ("qkv", "proj"):
        opened.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    values = torch.randn(2, *size, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(opened(values), module(values), rtol=1e-5, atol=1e-5)
    assert called == ["qkv", "proj"]


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_layers_without_a_bias_agree(kind: type[ShiftedWindowAttention]) -> None:
    module = windowed(kind, [2, 1], bias=False)
    opened = copy.deepcopy(module)
    open_window_attention(opened)
    values = torch.randn(1, 8, 9, WIDTH)
    with torch.inference_mode():
        torch.testing.assert_close(opened(values), module(values), rtol=1e-5, atol=1e-5)


def test_names_and_weights_stay() -> None:
    module = windowed(ShiftedWindowAttention, [2, 1])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    open_window_attention(module)
    after: dict[str, Tensor] = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_products_count_filled_up_windows() -> None:
    module = windowed(ShiftedWindowAttention, [0, 0])
    open_window_attention(module)
    assert isinstance(module, OpenWindowAttention)
    windows, positions = 2 * 4, 4 * 3  # 7 × 10 filled up to 8 × 12
    assert module.product_macs([torch.zeros(1, 7, 10, WIDTH)]) == windows * 2 * positions**2 * WIDTH
