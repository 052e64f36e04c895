"""Factorized and quantized layers as PyTorch modules, and their exchange by name.

A CP convolution becomes 1×1 (C_in→R), depthwise k×k (stride, padding and dilation here), 1×1 (R→C_out); a
two-factor layer two 1×1 convolutions (the stride in the first) or two linear layers; Tucker-2 1×1, k×k, 1×1;
``dense`` one layer with integer weights. Every link keeps integer codes and per-output-channel scales, so
that it is a plain per-channel integer layer for any runtime, and quantizes its own input when activations are
quantized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.errors import ModelError
from qaf_core.factorization.factors import Factors

ACTIVATION_BITS = 8


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to unsigned 8-bit codes with one scale and zero point.

    Does nothing until it is given a range.
    """

    scale: Tensor
    zero_point: Tensor
    enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("enabled", torch.zeros((), dtype=torch.bool))
        # The buffers as Python numbers: asking a tensor for its value would halt a GPU on every pass.
        self._grid: tuple[float, int] | None = None

    def set_range(self, low: float, high: float) -> None:
        """Cover ``low … high``, widened to hold zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        levels = 2**ACTIVATION_BITS - 1
        scale = max((high - low) / levels, 1e-12)
        self.scale.fill_(scale)
        self.zero_point.fill_(int(min(max(round(-low / scale), 0), levels)))
        self.enabled.fill_(True)
        self._read_buffers()

    def _read_buffers(self) -> None:
        self._grid = (float(self.scale), int(self.zero_point)) if bool(self.enabled) else None

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._read_buffers()

    def forward(self, values: Tensor) -> Tensor:
        """The values on their 8-bit grid, any shape."""
        if self._grid is None:
            return values
        (scale, zero), levels = self._grid, 2**ACTIVATION_BITS - 1
        if torch.is_grad_enabled() and values.requires_grad:
            return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, levels)
        # The same numbers as torch's operator, which also keeps a mask and is many times slower.
        return values.mul(1.0 / scale).round_().clamp_(-zero, levels - zero).mul_(scale)


class Link(nn.Module):
    """A convolution or linear layer whose weight is codes times scales.

    Args:
        codes: ``int8`` (or floating-point, for 32 bits) in the layer's weight shape; copied.
        scales: Per output channel, broadcastable to the codes; copied.
        bits: Width of the codes.
        bias: ``(C_out,)`` or None.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", codes.clone())
        self.register_buffer("scales", scales.clone())
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False) if bias is not None else None
        self.input_quantizer = ActivationQuantizer()

    @property
    def weight(self) -> Tensor:
        """Codes times scales, in the layer's weight shape."""
        return self.codes.to(self.scales.dtype) * self.scales

    def apply_weight(self, values: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's linear map on already quantized input."""
        return functional.linear(values, self.weight, bias)

    def forward(self, values: Tensor) -> Tensor:
        """Quantize the input, then the linear map and the bias."""
        return self.apply_weight(self.input_quantizer(values), self.bias)


class ConvLink(Link):
    """A two-dimensional convolution with integer weights; geometry as in ``torch.nn.Conv2d``."""

    def __init__(
        self, codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None, **geometry: Any
    ) -> None:
        super().__init__(codes, scales, bits, bias)
        # A stand-in carries torch's own reading of the geometry ('same', padding modes), without a weight.
        channels = geometry.get("groups", 1)
        kernel = (codes.shape[2], codes.shape[3])
        self.geometry = nn.Conv2d(channels, channels, kernel, **geometry, bias=False, device="meta")
        del self.geometry.weight

    def apply_weight(self, values: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution on already quantized input."""
        outputs: Tensor = self.geometry._conv_forward(values, self.weight, bias)
        return outputs


class FactorizedLayer(nn.Module):
    """A chain of links in place of one layer.

    Args:
        links: First to last, in the order the data passes them.
        structure: ``cp``, ``svd``, ``tucker2`` or ``dense``.
    """

    def __init__(self, links: list[Link], structure: str) -> None:
        super().__init__()
        self.links = nn.ModuleList(links)
        self.structure = structure

    @property
    def chain(self) -> list[Link]:
        """The links, typed."""
        return [link for link in self.links if isinstance(link, Link)]

    @property
    def last(self) -> Link:
        """The link on the output side."""
        return self.chain[-1]

    def forward(self, values: Tensor) -> Tensor:
        """The chain applied link by link."""
        for link in self.links:
            values = link(values)
        return values


def build_chain(layer: nn.Module, factors: Factors) -> FactorizedLayer:
    """The modules that compute ``layer`` with the factors in place of its weight; bias and geometry are kept.

    Args:
        layer: ``nn.Conv2d`` or ``nn.Linear``.
        factors: Factors of its weight; per-row scales of factor 0 stay on the last link, all others move to
            the front.

    Raises:
        ModelError: If the layer's kind or groups do not go with the structure.
    """
    bias = layer.bias if isinstance(layer, nn.Conv2d | nn.Linear) else None
    if isinstance(layer, nn.Linear):
        return FactorizedLayer(_linear_links(factors, bias), factors.structure)
    if not isinstance(layer, nn.Conv2d):
        raise ModelError("only convolutions and linear layers are exchanged", got=type(layer).__name__)
    if layer.groups != 1 and factors.structure != "dense":
        raise ModelError("a grouped convolution is not factorized as a whole", got=f"groups={layer.groups}")
    return FactorizedLayer(_conv_links(layer, factors, bias), factors.structure)


def _linear_links(factors: Factors, bias: Tensor | None) -> list[Link]:
    if factors.structure == "dense":
        return [Link(factors.codes[0], factors.scales[0], factors.bits[0], bias)]
    (a, b), (row, column) = factors.codes, _split_scales(factors)
    return [
        Link(b.mT.contiguous(), column.mT.contiguous(), factors.bits[1]),
        Link(a, row, factors.bits[0], bias),
    ]


def _conv_links(layer: nn.Conv2d, factors: Factors, bias: Tensor | None) -> list[Link]:
    spatial = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    kernel = tuple(layer.weight.shape[2:])
    if factors.structure == "dense":
        codes = factors.codes[0].reshape(factors.weight_shape)
        scales = factors.scales[0].reshape(-1, 1, 1, 1)
        return [ConvLink(codes, scales, factors.bits[0], bias, groups=layer.groups, **spatial)]
    if factors.structure == "tucker2":
        return _tucker_links(factors, bias, kernel, spatial)
    row, column = _split_scales(factors)
    last = ConvLink(factors.codes[0][:, :, None, None], row[:, :, None, None], factors.bits[0], bias)
    rank = factors.codes[0].shape[1]
    first_codes = factors.codes[1].mT.contiguous()[:, :, None, None]
    column_scales = column.reshape(rank, 1, 1, 1)
    if factors.structure == "svd":
        first = ConvLink(first_codes, column_scales, factors.bits[1], **spatial)
        return [first, last]
    middle_scales = factors.scales[2].expand(1, rank).reshape(rank, 1, 1, 1)
    middle_codes = factors.codes[2].mT.contiguous().reshape(rank, 1, *kernel)
    first = ConvLink(first_codes, torch.ones_like(column_scales), factors.bits[1])
    middle = ConvLink(middle_codes, middle_scales * column_scales, factors.bits[2], groups=rank, **spatial)
    return [first, middle, last]


def _split_scales(factors: Factors) -> tuple[Tensor, Tensor]:
    """Row scales ``(I, 1)`` of factor 0, and its column scales times those of factor 1, ``(1, R)``."""
    row, column = _row_and_column(factors.scales[0], factors.codes[0])
    return row, column * factors.scales[1].expand_as(column)


def _tucker_links(
    factors: Factors, bias: Tensor | None, kernel: tuple[int, ...], spatial: dict[str, Any]
) -> list[Link]:
    """U_in's and the core's column scales go to the first link, U_out's column scales to the core."""
    outer, core, inner = factors.codes
    (rank_out, rank_in), core_scales = core.shape[:2], factors.scales[1]
    row, column = _row_and_column(factors.scales[0], outer)
    core_row, core_column = _row_and_column(core_scales.reshape(core_scales.shape[:2]), core[:, :, 0])
    first_scales = factors.scales[2].expand(1, rank_in) * core_column
    first = ConvLink(
        inner.mT.contiguous()[:, :, None, None], first_scales.reshape(-1, 1, 1, 1), factors.bits[2]
    )
    middle_scales = (core_row * column.mT).reshape(rank_out, 1, 1, 1)
    middle = ConvLink(core.reshape(rank_out, rank_in, *kernel), middle_scales, factors.bits[1], **spatial)
    return [first, middle, ConvLink(outer[:, :, None, None], row[:, :, None, None], factors.bits[0], bias)]


def _row_and_column(scales: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of a factor ``(N, P)``, an outer product, as per-row ``(N, 1)`` times per-column ``(1, P)``."""
    if scales.shape[0] == 1:
        return scales.new_ones(codes.shape[0], 1), scales.expand(1, codes.shape[1])
    return scales[:, :1] / scales[:1, :1], scales[:1].expand(1, codes.shape[1])


def swap_layer(model: nn.Module, name: str, replacement: nn.Module) -> nn.Module:
    """Put ``replacement`` in the place of the module called ``name`` and return the one it replaces.

    A module that stands in several places of the network is replaced in all of them.

    Raises:
        ModelError: If there is no such module.
    """
    try:
        old = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError("no such layer in the network", got=name) from error
    if old is model:
        raise ModelError("the network itself cannot be exchanged", remedy="name one of its layers")
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, key, replacement)
    return old
