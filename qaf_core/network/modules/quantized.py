"""The layers of a captured network: as they come, factorized and quantized, and their exchange by name.

A CP convolution becomes 1×1 (C_in→R), depthwise k×k (stride, padding and dilation here), 1×1 (R→C_out); a
two-factor layer k×k (C_in→R, the geometry here) and 1×1 (R→C_out), or two linear layers; Tucker-2 1×1, k×k,
1×1; ``dense`` one layer with integer weights. Every link keeps integer codes and per-output-channel scales,
so that it is a plain per-channel integer layer for any runtime, and quantizes its own input when activations
are quantized.

A chain whose links are all integers with quantized inputs can compute as an integer runtime does
(``use_codes``): whole numbers are summed, exactly below 2**24, and a sum goes to the next grid in one
multiplication. So an exported network puts out the very same numbers. Near ones would not do: a single value
that is rounded to the other side spreads through all the layers that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.errors import ModelError
from qaf_core.network.modules.operation import LINEAR, Operation
from qaf_core.quantization.grid import ACTIVATION_GRID, Grid, Qparams

LARGEST_BIAS_CODE = 2.0**30  # beyond it a bias and a sum do not fit into 32 bits together


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
        self._qparams: Qparams | None = None

    def set_range(self, low: float, high: float) -> None:
        """Cover ``low … high``, widened to hold zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / ACTIVATION_GRID.high, 1e-12)
        self.scale.fill_(scale)
        self.zero_point.fill_(int(min(max(round(-low / scale), 0), ACTIVATION_GRID.high)))
        self.enabled.fill_(True)
        self._read_buffers()

    def _read_buffers(self) -> None:
        self._qparams = (float(self.scale), int(self.zero_point)) if bool(self.enabled) else None

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._read_buffers()

    @property
    def qparams(self) -> Qparams | None:
        """Step and zero point, or None without a range."""
        return self._qparams

    def forward(self, values: Tensor) -> Tensor:
        """The values on their 8-bit grid, any shape."""
        if self._qparams is None:
            return values
        scale, zero = self._qparams
        if torch.is_grad_enabled() and values.requires_grad:
            return torch.fake_quantize_per_tensor_affine(
                values, scale, zero, ACTIVATION_GRID.low, ACTIVATION_GRID.high
            )
        # The same numbers as torch's operator, which also keeps a mask and is many times slower.
        return ACTIVATION_GRID.clip_(values.mul(1.0 / scale), zero).mul_(scale)


class Layer(nn.Module):
    """A multiplication by a constant weight, as the graph of a network has it.

    Args:
        weight: As stored, see :class:`Operation`; shared, not copied.
        bias: ``(C_out,)`` or None.
        operations: What is done with it, one for each geometry the network uses the weight with.

    Attributes:
        read_elsewhere: Something else than the layer reads its weight or bias, so that it has to stay.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.weight = _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)
        self.operations = tuple(operations)
        self.read_elsewhere = False

    @property
    def operation(self) -> Operation:
        """The first of its operations."""
        return self.operations[0]

    @property
    def rows(self) -> Tensor:
        """The weight as ``(C_out, C_in / groups, k…)``."""
        return self.operation.by_rows(self.weight)

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        """One of its operations, by its number."""
        return self.operations[site].apply(values, self.weight, self.bias)


class BatchNorm(nn.Module):
    """A BatchNorm in evaluation: one factor and one shift per channel, from statistics that were kept.

    Args:
        weight, bias: ``(C,)`` or None; shared, not copied.
        mean, variance: Running statistics ``(C,)``; shared, not copied.
        eps: What is added to the variance.

    Attributes:
        read_elsewhere: Something else runs it or reads its numbers, so that it has to stay.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> None:
        super().__init__()
        self.weight = None if weight is None else _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", variance)
        self.eps = eps
        self.batches = 0
        self.read_elsewhere = False

    def estimate_anew(self) -> None:
        """Forget the statistics, and take the mean of those of the batches to come, until ``eval()``."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.batches = 0
        self.train()

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """What it amounts to per channel, in float64."""
        factor = (self.running_var.double() + self.eps).rsqrt()
        if self.weight is not None:
            factor = factor * self.weight.detach().double()
        shift = -self.running_mean.double() * factor
        return factor, shift if self.bias is None else shift + self.bias.detach().double()

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the running statistics; in training mode estimate them anew, each batch alike."""
        if not self.training:
            return functional.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        self.batches += 1
        return functional.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, True, 1 / self.batches,
            self.eps,
        )  # fmt: skip


class Folded(nn.Identity):
    """Stands where a BatchNorm was that has been joined to the layer before it."""


def _parameter(values: Tensor) -> nn.Parameter:
    if isinstance(values, nn.Parameter):
        return values
    return nn.Parameter(values, requires_grad=False)


class Link(nn.Module):
    """A step of a chain: an operation whose weight is codes times scales.

    Args:
        codes: ``int8`` (or floating-point, for 32 bits), the weight by rows ``(C_out, C_in / groups, k…)``;
            copied.
        scales: Per output channel, broadcastable to the codes; copied.
        bits: Width of the codes.
        bias: ``(C_out,)`` or None.
        operations: What is done with the weight; more than one where the layer it stands in has several.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bits: int,
        bias: Tensor | None = None,
        operations: Sequence[Operation] = (LINEAR,),
    ) -> None:
        super().__init__()
        self.bits = bits
        self.operations = tuple(operations)
        self.register_buffer("codes", codes.clone())
        self.register_buffer("scales", scales.clone())
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False) if bias is not None else None
        self.input_quantizer = ActivationQuantizer()

    @property
    def operation(self) -> Operation:
        """The first of its operations."""
        return self.operations[0]

    @property
    def grid(self) -> Grid:
        """What its codes are on."""
        return Grid.of(self.bits)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel sizes; none of a linear map."""
        return tuple(self.codes.shape[2:])

    @property
    def weight(self) -> Tensor:
        """Codes times scales, by rows."""
        return self.codes.to(self.scales.dtype) * self.scales

    @property
    def is_integer(self) -> bool:
        """Whether both its weight and its input are codes."""
        return not self.grid.is_float and self.input_quantizer.qparams is not None

    @property
    def sum_steps(self) -> Tensor:
        """What one unit of a sum of code products stands for, ``(C_out,)``: weight scale times input step."""
        qparams = self.input_quantizer.qparams
        steps = self.scales.expand(len(self.codes), *self.scales.shape[1:]).reshape(-1)
        return steps if qparams is None else steps * qparams[0]

    @property
    def bias_codes(self) -> Tensor | None:
        """The bias in units of the sums: whole numbers, beyond 2**24 those that single precision knows."""
        if self.bias is None:
            return None
        codes = (self.bias.double() / self.sum_steps.double()).round()
        return codes.to(torch.float32).to(self.bias.dtype)

    def has_small_bias(self) -> bool:
        """Whether the bias and a sum fit into 32 bits together."""
        codes = self.bias_codes
        return codes is None or bool((codes.abs() < LARGEST_BIAS_CODE).all())

    def per_channel(self, numbers: Tensor) -> Tensor:
        """One number per output channel, shaped to be multiplied with outputs."""
        return self.operation.per_channel(numbers)

    def map_linearly(self, values: Tensor, weight: Tensor, bias: Tensor | None, site: int = 0) -> Tensor:
        """The link's linear map with another weight, by rows."""
        operation = self.operations[site]
        return operation.apply(values, operation.as_stored(weight), bias)

    def apply_weight(self, values: Tensor, bias: Tensor | None, site: int = 0) -> Tensor:
        """The link's linear map on already quantized input."""
        return self.map_linearly(values, self.weight, bias, site)

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        """Quantize the input, then the linear map and the bias."""
        return self.apply_weight(self.input_quantizer(values), self.bias, site)


class FactorizedLayer(nn.Module):
    """A chain of links in place of one layer.

    Args:
        links: First to last, in the order the data passes them.
        structure: ``cp``, ``svd``, ``tucker2`` or ``dense``.
        operations: Those of the layer; None: of the last link.
    """

    def __init__(
        self, links: list[Link], structure: str, operations: Sequence[Operation] | None = None
    ) -> None:
        super().__init__()
        self.links = nn.ModuleList(links)
        self.structure = structure
        self.operations = links[-1].operations if operations is None else tuple(operations)
        self._on_codes = False
        self._output_qparams: Qparams | None = None

    @property
    def chain(self) -> list[Link]:
        """The links, typed."""
        return [link for link in self.links if isinstance(link, Link)]

    @property
    def last(self) -> Link:
        """The link on the output side."""
        return self.chain[-1]

    @property
    def runs_on_codes(self) -> bool:
        """Whether the chain computes with whole numbers from its input to its last sums."""
        return self._on_codes

    @property
    def output_qparams(self) -> Qparams | None:
        """Step and zero point of the grid its outputs are rounded to, or None."""
        return self._output_qparams

    def use_codes(self, output_qparams: Qparams | None = None) -> bool:
        """Compute with whole numbers from now on, if all links are integers with quantized inputs.

        The chain then serves for inference: no gradient passes it.

        Args:
            output_qparams: Step and zero point of the grid that all which takes the output rounds it to; the
                chain then rounds it itself. None leaves the outputs as they are.

        Returns:
            Whether it does. An output grid is passed over where the bias is too large for 32-bit sums.
        """
        self._on_codes = all(link.is_integer for link in self.chain)
        self._output_qparams = output_qparams if self._on_codes and self.last.has_small_bias() else None
        return self._on_codes

    def use_floats(self) -> None:
        """Compute link by link in floating point again, on the same grids, so that gradients pass."""
        self._on_codes, self._output_qparams = False, None

    def forward(self, values: Tensor, site: int = 0) -> Tensor:
        """The chain applied link by link, at one of the places where the network uses the layer."""
        if self._on_codes:
            return self._compute_with_codes(values, site)
        for link in self.links:
            values = link(values, site)
        return values

    def _compute_with_codes(self, values: Tensor, site: int) -> Tensor:
        """Sums of code products, each brought to the next grid by one factor."""
        chain = self.chain
        first, *others = [link.input_quantizer.qparams for link in chain]
        (step, zero), following = first or (1.0, 0), [*others, self._output_qparams]
        codes = ACTIVATION_GRID.clip_(values.div(step), zero)
        for link, qparams in zip(chain, following, strict=True):
            sums = link.map_linearly(codes, link.codes.to(codes.dtype), None, site)
            if qparams is None:
                outputs = sums.mul_(link.per_channel(link.sum_steps))
                return outputs if link.bias is None else outputs.add_(link.per_channel(link.bias))
            bias_codes, (step, zero) = link.bias_codes, qparams
            if bias_codes is not None:
                sums.add_(link.per_channel(bias_codes))
            codes = ACTIVATION_GRID.clip_(sums.mul_(link.per_channel(link.sum_steps / step)), zero)
        return codes.mul_(step)


def swap_layer(model: nn.Module, name: str, replacement: nn.Module) -> nn.Module:
    """Put ``replacement`` in the place of the module called ``name`` and return the one it replaces.

    A module that stands in several places is replaced in all of them.

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
                parent._modules[key] = replacement
    return old
