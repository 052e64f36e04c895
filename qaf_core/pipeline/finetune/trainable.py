"""Chains of integer layers as something gradients pass: scales, biases and, if wanted, the codes themselves.

Scales are learnt as a change of their logarithm, biases in units of their own size, so that one step size
does for all layers. Codes that are learnt leave their grid, in steps of which they count, until the chain is
given links with whole numbers again (:mod:`.grid_setting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.graph.inventory import norm_parameters
from qaf_core.network.graph.network import chains_in
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer, Link
from qaf_core.network.passes.requantization import connect_chains
from qaf_core.quantization.grid import ACTIVATION_GRID, Qparams


class TrainableLink(nn.Module):
    """Stands in a chain for a link while the network is trained.

    Args:
        link: What it stands for; not changed until :meth:`write_back`.
        trains_codes: Learn the codes too, off their grid, or only scales and bias.
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
        codes = link.codes.detach().to(link.scales.dtype, copy=True)
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

    @property
    def is_off_grid(self) -> bool:
        """Whether its codes are learnt."""
        return isinstance(self.codes, nn.Parameter)

    def scales(self) -> Tensor:
        """The scales as learnt so far."""
        return self._scales * self.log_gain.exp()

    def weight(self) -> Tensor:
        """Codes times scales as learnt so far, by rows."""
        return self.codes * self.scales()

    def nearest_codes(self) -> Tensor:
        """Each code at the nearest place of its grid, as links keep them."""
        grid, codes = self.link.grid, self.codes.detach()
        return codes if grid.is_float else grid.clip_(codes.clone()).to(self.link.codes.dtype)

    def bias(self) -> Tensor | None:
        """The bias as learnt so far."""
        return None if self.bias_change is None else self._bias + self._bias_size * self.bias_change

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        """As the link, with gradients."""
        inputs = quantized(self.input_quantizer, values)
        return self.link.map_linearly(inputs, self.weight(), self.bias(), site)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the link the scales and the bias that were learnt."""
        link = self.link
        link.scales = self.scales()
        bias = self.bias()
        if bias is not None:
            link.bias = nn.Parameter(bias, requires_grad=False)


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


@dataclass(frozen=True)
class _Chain:
    """A chain as it was."""

    chain: FactorizedLayer
    links: list[Link]
    on_codes: bool
    output_qparams: Qparams | None


class TrainableNetwork:
    """A compressed network whose chains can be trained while this stands; use as a context manager.

    Args:
        model: With :class:`FactorizedLayer` s; its links are exchanged inside the ``with`` block. After it
            all is back as it was, or as :meth:`accept` says.
        trains_codes: Learn codes too.

    Attributes:
        model: The same.
    """

    def __init__(self, model: nn.Module, *, trains_codes: bool) -> None:
        self.model = model
        self._trains_codes = trains_codes
        self._chains: dict[str, _Chain] = {}
        self._moved = self._accepted = False
        self._norms = [(norm, norm.detach().clone(), norm.requires_grad) for norm in norm_parameters(model)]

    def __enter__(self) -> TrainableNetwork:
        for name, chain in chains_in(self.model).items():
            links = chain.chain
            self._chains[name] = _Chain(chain, links, chain.runs_on_codes, chain.output_qparams)
            chain.use_floats()
            _put(chain, [TrainableLink(link, trains_codes=self._trains_codes) for link in links])
        return self

    def __exit__(self, *_: object) -> None:
        moved = self._moved and self._accepted  # then codes between chains are on other grids
        for kept in self._chains.values():
            _put(kept.chain, _learnt(kept.chain) if self._accepted else kept.links)
            if kept.on_codes:
                kept.chain.use_codes(None if moved else kept.output_qparams)
        for norm, value, flag in self._norms:
            norm.requires_grad_(flag)
            if not self._accepted:
                norm.detach().copy_(value)
        if moved and any(kept.output_qparams is not None for kept in self._chains.values()):
            connect_chains(self.model)

    def accept(self) -> None:
        """Leave the network as learnt when the ``with`` block ends; no codes are off their grids."""
        for link in self.links():
            link.write_back()
        self._accepted = True

    def links(self) -> list[TrainableLink]:
        """All links."""
        return [link for kept in self._chains.values() for link in trained_links(kept.chain)]

    def chains(self) -> list[str]:
        """Names of the chains."""
        return list(self._chains)

    def chain(self, name: str) -> FactorizedLayer:
        """One chain; its links are stand-ins."""
        return self._chains[name].chain

    def first_quantizer(self, name: str) -> Qparams | None:
        """Step and zero point of what a chain took in when the ``with`` block began."""
        return self._chains[name].links[0].input_quantizer.qparams

    def off_grid(self) -> list[str]:
        """Names of the chains whose codes are learnt."""
        return [
            name
            for name, kept in self._chains.items()
            if any(link.is_off_grid for link in trained_links(kept.chain))
        ]

    def go_on_with(self, name: str, links: Sequence[Link]) -> None:
        """Train a chain with other links from now on, their scales and biases only."""
        self._moved = True
        _put(self._chains[name].chain, [TrainableLink(link, trains_codes=False) for link in links])

    def gains(self) -> Iterator[nn.Parameter]:
        """Logarithms of the scales' changes, and biases."""
        for link in self.links():
            yield link.log_gain
            if link.bias_change is not None:
                yield link.bias_change

    def codes(self) -> Iterator[nn.Parameter]:
        """Codes that are learnt."""
        for link in self.links():
            if isinstance(link.codes, nn.Parameter):
                yield link.codes

    def norms(self) -> Iterator[nn.Parameter]:
        """Factors and shifts of the normalisations that stand beside the chains."""
        yield from (norm for norm, _, _ in self._norms)


def trained_links(chain: FactorizedLayer) -> list[TrainableLink]:
    """The stand-ins in a chain."""
    return [link for link in chain.links if isinstance(link, TrainableLink)]


def _learnt(chain: FactorizedLayer) -> list[Link]:
    return [link.link for link in trained_links(chain)]


def _put(chain: FactorizedLayer, links: Sequence[nn.Module]) -> None:
    for index, link in enumerate(links):
        chain.links[index] = link
