"""What a layer does with its weight: the geometry of a convolution, or a linear map over the last axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Sizes = tuple[int, ...]
FEW_ROWS = 4  # one row in so many, or fewer, is gathered alone

_CONVOLUTIONS: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): functional.conv1d,
    (2, False): functional.conv2d,
    (3, False): functional.conv3d,
    (1, True): functional.conv_transpose1d,
    (2, True): functional.conv_transpose2d,
    (3, True): functional.conv_transpose3d,
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A multiplication by a constant weight.

    The weight has two forms. *Stored* it has the shape of PyTorch's layers; *by rows* it is ``(C_out, C_in /
    groups, k…)``, one row for each output channel. They differ for transposed convolutions only.

    Attributes:
        dims: Spatial dimensions of a convolution; 0: a linear map over the last axis.
        stride, padding, dilation: One number for each spatial dimension.
        output_padding: Of a transposed convolution.
        groups: Groups of channels.
        transposed: A transposed convolution.
    """

    dims: int = 0
    stride: Sizes = ()
    padding: Sizes = ()
    dilation: Sizes = ()
    output_padding: Sizes = ()
    groups: int = 1
    transposed: bool = False

    @property
    def kind(self) -> str:
        """As in ``LayerInfo.kind``: ``linear``, ``conv2d``, ``conv_transpose1d`` …"""
        if self.dims == 0:
            return "linear"
        return f"conv_transpose{self.dims}d" if self.transposed else f"conv{self.dims}d"

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in inputs and outputs, counted from the end."""
        return -1 - self.dims

    def apply(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with a weight as stored."""
        if self.dims == 0:
            return functional.linear(values, weight, bias)
        convolution = _CONVOLUTIONS[self.dims, self.transposed]
        if self.transposed:
            return convolution(
                values, weight, bias, self.stride, self.padding, self.output_padding, self.groups,
                self.dilation,
            )  # fmt: skip
        return convolution(values, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def by_rows(self, stored: Tensor) -> Tensor:
        """A stored weight as ``(C_out, C_in / groups, k…)``."""
        if not self.transposed:
            return stored
        inputs, outputs = stored.shape[:2]
        grouped = stored.reshape(self.groups, inputs // self.groups, outputs, *stored.shape[2:])
        return grouped.transpose(1, 2).reshape(
            self.groups * outputs, inputs // self.groups, *stored.shape[2:]
        )

    def as_stored(self, rows: Tensor) -> Tensor:
        """A weight ``(C_out, C_in / groups, k…)`` in the shape PyTorch's operator takes."""
        if not self.transposed:
            return rows
        outputs, inputs = rows.shape[:2]
        grouped = rows.reshape(self.groups, outputs // self.groups, inputs, *rows.shape[2:])
        return grouped.transpose(1, 2).reshape(self.groups * inputs, outputs // self.groups, *rows.shape[2:])

    def per_channel(self, numbers: Tensor) -> Tensor:
        """One number per output channel, shaped to be multiplied with outputs."""
        return numbers.reshape(-1, *(1,) * self.dims)

    def pointwise(self) -> Operation:
        """A 1×1 operation with as many dimensions: what mixes channels and leaves positions alone."""
        return pointwise(self.dims)

    def output_shape(self, shape: Sequence[int], rows_shape: Sequence[int]) -> list[int]:
        """The shape it makes of an input's shape."""
        if self.dims == 0:
            return [*shape[:-1], rows_shape[0]]
        sizes = list(shape)
        for axis, size in enumerate(rows_shape[2:]):
            at, reach = axis - self.dims, self.dilation[axis] * (size - 1) + 1
            stride, padding = self.stride[axis], self.padding[axis]
            if self.transposed:
                sizes[at] = (sizes[at] - 1) * stride - 2 * padding + reach + self.output_padding[axis]
            else:
                sizes[at] = (sizes[at] + 2 * padding - reach) // stride + 1
        sizes[self.channel_axis] = rows_shape[0]
        return sizes

    def macs(self, rows_shape: Sequence[int], input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulates of one call.

        Args:
            rows_shape: Of the weight, by rows.
            input_shape, output_shape: Of the whole batch.
        """
        if self.transposed:
            return prod(input_shape) * (rows_shape[0] // self.groups) * prod(rows_shape[2:])
        return prod(output_shape) * prod(rows_shape[1:])

    def patch_rows(self, values: Tensor, kernel: Sequence[int], chosen: Tensor | None = None) -> Tensor:
        """What the operation multiplies a row of its weight with, ``(n, C_in·k…)``: one for each output.

        Only for one group and not transposed.

        Args:
            values: The input.
            kernel: Kernel sizes.
            chosen: Numbers of the rows wanted, or None: all.
        """
        if self.dims == 0 or self._is_still(kernel):
            rows = self.output_rows(values)
            return rows if chosen is None else rows[chosen]
        values = values if values.ndim == self.dims + 2 else values[None]
        padding = [amount for amount in reversed(self.padding) for _ in range(2)]
        windows = functional.pad(values, padding)
        for axis, (size, apart, step) in enumerate(zip(kernel, self.dilation, self.stride, strict=True)):
            windows = windows.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
        # (B, C, out…, k…) to (B, out…, C, k…), still a view of the input
        order = (0, *range(2, 2 + self.dims), 1, *range(2 + self.dims, 2 + 2 * self.dims))
        windows = windows.permute(order)
        places, columns = windows.shape[: 1 + self.dims], values.shape[1] * prod(kernel)
        if chosen is None:
            return windows.reshape(-1, columns)
        if len(chosen) * FEW_ROWS < prod(places):
            return windows[torch.unravel_index(chosen, places)].reshape(-1, columns)
        return windows.reshape(-1, columns)[chosen]  # reading all in order is faster than many at random

    def _is_still(self, kernel: Sequence[int]) -> bool:
        """Whether it is a 1×1 convolution that leaves every position where it is."""
        steps = zip(kernel, self.stride, strict=True)
        return not any(self.padding) and all(size == step == 1 for size, step in steps)

    def output_rows(self, values: Tensor) -> Tensor:
        """Outputs as rows ``(n, C_out)``, one for each position, in the order of :meth:`patch_rows`."""
        rows = values.movedim(self.channel_axis, -1)
        return rows.reshape(-1, rows.shape[-1])


LINEAR = Operation()


def pointwise(dims: int) -> Operation:
    """A 1×1 convolution of so many dimensions; a linear map for 0."""
    ones = (1,) * dims
    return Operation(dims=dims, stride=ones, padding=(0,) * dims, dilation=ones, output_padding=(0,) * dims)


def convolution(dims: int, **geometry: Any) -> Operation:
    """A convolution whose geometry may be given as single numbers.

    Args:
        dims: Spatial dimensions.
        geometry: ``stride``, ``padding``, ``dilation``, ``output_padding`` (a number or one for each
            dimension), ``groups`` and ``transposed``.
    """
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
    sizes: dict[str, Any] = {
        name: sizes_of(geometry.pop(name, value), dims) for name, value in defaults.items()
    }
    return Operation(dims=dims, **sizes, **geometry)


def sizes_of(value: int | Sequence[int], dims: int) -> Sizes:
    """One number for each dimension; a single number stands for all."""
    if isinstance(value, int):
        return (value,) * dims
    sizes = tuple(int(number) for number in value)
    return sizes * dims if len(sizes) == 1 else sizes


def same_padding(kernel: Sequence[int], dilation: Sizes) -> tuple[Sizes, Sizes]:
    """Padding before and after each dimension that keeps the size, as PyTorch's ``same`` divides it."""
    totals = [apart * (size - 1) for size, apart in zip(kernel, dilation, strict=True)]
    before = tuple(total // 2 for total in totals)
    return before, tuple(total - left for total, left in zip(totals, before, strict=True))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is made of ordinary real floating-point numbers."""
    return tensor.is_floating_point() and tensor.layout == torch.strided
