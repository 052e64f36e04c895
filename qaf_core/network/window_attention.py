"""Swin's windowed attention with its two linear layers called as layers.

Imports torchvision: only for networks that hold its windowed attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class OpenWindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """What ``ShiftedWindowAttention`` and its second version compute, through ``qkv`` and ``proj``.

    torchvision hands the weights of both to a function, where no layer can be exchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attention within windows of ``x (B, H, W, C)``; the same shape."""
        height, width = x.shape[1:3]
        window_h, window_w = self.window_size
        x = functional.pad(x, (0, 0, 0, -width % window_w, 0, -height % window_h))
        padded = (x.shape[1], x.shape[2])
        # A window that covers the whole image is not shifted.
        shift = [
            0 if window >= size else step
            for window, size, step in zip(self.window_size, padded, self.shift_size, strict=True)
        ]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), dims=(1, 2))
        windows = self.qkv(x).unflatten(1, (-1, window_h)).unflatten(3, (-1, window_w)).transpose(2, 3)
        packed = windows.flatten(3, 4).unflatten(-1, (3, self.num_heads, -1))
        # (B, rows, columns, position, 3, head, width) to (3, B, rows, columns, head, position, width)
        q, k, v = packed.permute(4, 0, 1, 2, 5, 3, 6)
        scores = self._similarity(q, k) + self.get_relative_position_bias()
        if any(shift):
            scores = scores + self._apart(padded, shift, x)[:, :, None]
        weights = functional.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        mixed = (weights @ v).transpose(3, 4).flatten(4)  # (B, rows, columns, position, C)
        mixed = mixed.unflatten(3, (window_h, window_w)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        outputs = functional.dropout(self.proj(mixed), self.dropout, self.training)
        if any(shift):
            outputs = outputs.roll((shift[0], shift[1]), dims=(1, 2))
        result: Tensor = outputs[:, :height, :width].contiguous()
        return result

    def _similarity(self, q: Tensor, k: Tensor) -> Tensor:
        """Of every query to every key of its window."""
        scores: Tensor = q * q.shape[-1] ** -0.5 @ k.mT
        return scores

    def _apart(self, padded: tuple[int, int], shift: list[int], x: Tensor) -> Tensor:
        """-100 between positions of one window from two ends of the image, to be added to their scores."""
        # Shifting brings the two far ends of the image together in its last row and column of windows.
        row, column = (
            (torch.arange(size, device=x.device) >= size - step).int().reshape(-1, window)
            for size, window, step in zip(padded, self.window_size, shift, strict=True)
        )
        area = (2 * row[:, None, :, None] + column[None, :, None, :]).flatten(2)  # (rows, columns, position)
        return (area[..., None, :] != area[..., :, None]).to(x.dtype) * -100.0

    def product_macs(self, inputs: Sequence[Tensor]) -> int:
        """Multiply-accumulates of queries times keys and of weights times values, in one call."""
        images, height, width, channels = inputs[0].shape
        rows, columns = -(-height // self.window_size[0]), -(-width // self.window_size[1])
        positions: int = self.window_size[0] * self.window_size[1]
        return int(2 * images * rows * columns * positions * positions * channels)


class OpenWindowAttentionV2(OpenWindowAttention, ShiftedWindowAttentionV2):  # type: ignore[misc]
    """The second version: cosine similarity, and a position bias that a small network computes."""

    def _similarity(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        scores: Tensor = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * scale
        return scores


def open_window_attention(module: ShiftedWindowAttention) -> None:
    """Let a windowed attention call its linear layers; changed in place, names and weights stay."""
    second = isinstance(module, ShiftedWindowAttentionV2)
    if second and module.qkv.bias is not None:
        channels = module.qkv.bias.numel() // 3
        # torchvision leaves the keys' bias out on every pass.
        module.qkv.bias.data[channels : 2 * channels].zero_()
    module.__class__ = OpenWindowAttentionV2 if second else OpenWindowAttention
