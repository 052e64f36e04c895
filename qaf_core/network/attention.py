"""Attention with every projection as a linear layer of its own, so that each can be compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional


@runtime_checkable
class ComputesProducts(Protocol):
    """A module that multiplies activations with each other, as attention does."""

    def product_macs(self, inputs: Sequence[Tensor]) -> int:
        """Multiply-accumulates of these products in one call, given ``forward``'s tensors."""


class OpenAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, with four linear layers that are called as such.

    The packed module keeps the projections of queries, keys and values in one tensor and hands it to a
    function, where no layer can be exchanged.

    Args:
        packed: The module to stand in for; neither ``add_bias_kv`` nor ``add_zero_attn``.
        slices: Projections already made of a packed weight, by its id: modules that share a weight go on
            sharing it.
    """

    # nn.TransformerEncoderLayer asks for these and takes its fused path, past the layers, unless they say no.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention, slices: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = packed.embed_dim, packed.num_heads
        self.head_dim, self.batch_first, self.dropout = packed.head_dim, packed.batch_first, packed.dropout
        if packed.in_proj_weight is not None:
            weights: list[Tensor] = _thirds(packed.in_proj_weight, slices)
        else:
            weights = [packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight]
        biases: list[Tensor | None] = [None, None, None]
        if packed.in_proj_bias is not None:
            biases = [*_thirds(packed.in_proj_bias, slices)]
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results as of ``nn.MultiheadAttention``; ``is_causal`` only hints at the mask."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give the mask too")
        batched, batch_at = query.dim() == 3, 0 if self.batch_first or query.dim() == 2 else 1
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q, k, v = (
            projection(values).transpose(0, batch_at).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, values in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )  # (batch, head, position, width of a head)
        mask = _joined_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.mT
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2).transpose(0, batch_at))
        if batched:
            return outputs, weights
        return outputs[0], None if weights is None else weights[0]

    def product_macs(self, inputs: Sequence[Tensor]) -> int:
        """Multiply-accumulates of queries times keys and of weights times values, in one call."""
        query, key = inputs[0], inputs[min(1, len(inputs) - 1)]
        sequences = 1 if query.dim() == 2 else query.shape[0 if self.batch_first else 1]
        pairs = (query.numel() // self.embed_dim) * (key.numel() // key.shape[-1])
        return int(2 * self.embed_dim * pairs // sequences)


def _thirds(packed: Tensor, slices: dict[int, list[Tensor]]) -> list[Tensor]:
    """A packed weight or bias as those of queries, keys and values."""
    if id(packed) not in slices:
        parts = packed.detach().chunk(3)
        slices[id(packed)] = [nn.Parameter(part.clone(), packed.requires_grad) for part in parts]
    return slices[id(packed)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    for name, parameter in (("weight", weight), ("bias", bias)):
        setattr(layer, name, parameter)  # parameters, which torch's own annotations call tensors here
    return layer


def _joined_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores ``(batch, head, query, key)``, or None."""
    joined = None
    if attn_mask is not None:
        joined = _additive(attn_mask, q.dtype)
        if joined.dim() == 3:  # one mask for each head of each image
            heads = q.shape[1] if len(joined) > 1 else 1
            joined = joined.reshape(-1, heads, *joined.shape[1:])
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q.dtype)[:, None, None, :]
        joined = padding if joined is None else joined + padding
    return joined


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask whose True forbids, as minus infinity there and zero elsewhere."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
