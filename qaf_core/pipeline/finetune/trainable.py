"""Chains of integer layers as something gradients pass: scales, biases and, if wanted, the codes themselves.

The integers stay integers. Scales are learnt as a change of their logarithm, biases in units of their own
size, so that one step size does for all layers. Codes are learnt through a floating-point shadow that every
forward pass rounds to the grid; the gradient passes the rounding unchanged (straight-through; Bengio et al.
2013, arXiv 1308.3432, with the scale's gradient of LSQ, arXiv 1902.08153).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.graph.inventory import norm_parameters
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer, Link
from qaf_core.quantization.grid import ACTIVATION_GRID

REACH = 0.49  # of a shadow beyond the grid's ends


class TrainableLink(nn.Module):
    """Stands in a chain for a link while the network is trained.

    Args:
        link: What it stands for; not changed until :meth:`write_back`.
        trains_codes: Learn the codes too, or only scales and bias.
    """

    codes: Tensor
    _scales: Tensor
    _bias: Tensor
    _bias_size: Tensor

    def __init__(self, link: Link, *, trains_codes: bool) -> None:
        super().__init__()
        self._link = [link]  # in a list: its tensors are not this module's own
        self.input_quantizer = link.input_quantizer
        self.log_gain = nn.Parameter(torch.zeros_like(link.scales))
        self.register_buffer("_scales", link.scales.detach().clone())
        codes = link.codes.detach().to(link.scales.dtype)
        if trains_codes and not link.grid.is_float:
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
        self.bias_change: nn.Parameter | None = None
        if link.bias is not None:
            self.bias_change = nn.Parameter(torch.zeros_like(link.bias))
            self.register_buffer("_bias", link.bias.detach().clone())
            size = link.bias.detach().abs().mean().clamp_min(1e-3)
            self.register_buffer("_bias_size", size)

    @property
    def link(self) -> Link:
        """What it stands for."""
        return self._link[0]

    def scales(self) -> Tensor:
        """The scales as learnt so far."""
        return self._scales * self.log_gain.exp()

    def bias(self) -> Tensor | None:
        """The bias as learnt so far."""
        return None if self.bias_change is None else self._bias + self._bias_size * self.bias_change

    def rounded_codes(self) -> Tensor:
        """The codes, whole numbers on the grid; gradients pass to their shadow, at the grid's ends too."""
        if not isinstance(self.codes, nn.Parameter):
            return self.codes
        return self.codes + (self.link.grid.clip_(self.codes.detach().clone()) - self.codes).detach()

    @torch.no_grad()
    def stay_in_reach(self) -> None:
        """Let no shadow run away beyond the grid's ends, from where it could not come back."""
        if isinstance(self.codes, nn.Parameter):
            grid = self.link.grid
            self.codes.clamp_(grid.low - REACH, grid.high + REACH)

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        """As the link, with gradients."""
        weight = self.rounded_codes() * self.scales()
        return self.link.map_linearly(quantized(self.input_quantizer, values), weight, self.bias(), site)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the link what was learnt."""
        link = self.link
        if isinstance(self.codes, nn.Parameter):
            link.codes.copy_(self.rounded_codes())
        link.scales.copy_(self.scales())
        bias = self.bias()
        if bias is not None and link.bias is not None:
            link.bias.copy_(bias)


def quantized(quantizer: ActivationQuantizer, values: Tensor) -> Tensor:
    """Values on the quantizer's grid; gradients pass where they were not clipped, at the first layer too."""
    qparams = quantizer.qparams
    if qparams is None:
        return values
    rounded: Tensor = _OnGrid.apply(values, *qparams)
    return rounded


class _OnGrid(torch.autograd.Function):
    """What ``torch.fake_quantize_per_tensor_affine`` does, in a ninth of its time on a processor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float, zero: int) -> Tensor:
        low, high = ACTIVATION_GRID.low - zero, ACTIVATION_GRID.high - zero
        ctx.save_for_backward(values)
        ctx.reach = ((low - 0.5) * scale, (high + 0.5) * scale)
        return values.mul(1.0 / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], values, *ctx.reach), None, None


class TrainableNetwork:
    """A compressed network whose chains can be trained while this stands; use as a context manager.

    Args:
        model: With :class:`FactorizedLayer` s; its links are exchanged inside the ``with`` block and back
            after it, changed by :meth:`write_back` only.
        trains_codes: Learn codes too.
    """

    def __init__(self, model: nn.Module, *, trains_codes: bool) -> None:
        self.model = model
        self._trains_codes = trains_codes
        self._chains = [part for part in model.modules() if isinstance(part, FactorizedLayer)]
        self._grids: list[tuple[bool, tuple[float, int] | None]] = []
        self.links: list[TrainableLink] = []

    def __enter__(self) -> TrainableNetwork:
        for chain in self._chains:
            self._grids.append((chain.runs_on_codes, chain.output_qparams))
            chain.use_floats()
            for index, link in enumerate(chain.chain):
                stand_in = TrainableLink(link, trains_codes=self._trains_codes)
                self.links.append(stand_in)
                chain.links[index] = stand_in
        return self

    def __exit__(self, *_: object) -> None:
        stand_ins = iter(self.links)
        for chain, (on_codes, grid) in zip(self._chains, self._grids, strict=True):
            for index in range(len(chain.links)):
                chain.links[index] = next(stand_ins).link
            if on_codes:
                chain.use_codes(grid)

    def write_back(self) -> None:
        """Give every link what was learnt."""
        for link in self.links:
            link.write_back()

    def stay_in_reach(self) -> None:
        """As :meth:`TrainableLink.stay_in_reach`, of every link; after each step of an optimizer."""
        for link in self.links:
            link.stay_in_reach()

    def gains(self) -> Iterator[nn.Parameter]:
        """Logarithms of the scales' changes, and biases."""
        for link in self.links:
            yield link.log_gain
            if link.bias_change is not None:
                yield link.bias_change

    def codes(self) -> Iterator[nn.Parameter]:
        """Shadows of the codes that are learnt."""
        for link in self.links:
            if isinstance(link.codes, nn.Parameter):
                yield link.codes

    def norms(self) -> Iterator[nn.Parameter]:
        """Factors and shifts of the normalisations that stand beside the chains."""
        yield from norm_parameters(self.model)
