"""Second moments of layers' inputs, collected in one pass over the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_PATCH = 1600  # inputs per output (C_in·k²) up to which the moment over kernel positions is collected
POSITIONS = 200_000


@torch.inference_mode()
def collect_moments(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], *, per_position: bool
) -> dict[str, Tensor]:
    """``E[x xᵀ]`` of what reaches each layer.

    Args:
        model: In evaluation mode.
        layers: Names of convolutions and linear layers.
        batches: Images ``(B, C, H, W)``.
        per_position: Collect ``(C_in·k², C_in·k²)`` over patches where that is not too large, else
            ``(C_in, C_in)``.

    Returns:
        One float32 matrix per layer; grouped convolutions, and layers that nothing reaches, are left out.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = []
    for name in layers:
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            continue
        adder = _adder(name, totals, counts, per_position, len(batches))
        handles.append(module.register_forward_pre_hook(adder, with_kwargs=True))
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).float() for name, total in totals.items() if counts[name]}


def _adder(
    name: str, totals: dict[str, Tensor], counts: dict[str, int], per_position: bool, batches: int
) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        rows = _rows(module, next(iter((*inputs, *named.values()))), per_position)
        # An odd step does not fall on the same columns of every image, whose sizes are mostly even.
        step = len(rows) * batches // POSITIONS | 1
        rows = rows[::step]
        moment = (rows.mT @ rows).double()
        totals[name] = totals[name] + moment if name in totals else moment
        counts[name] = counts.get(name, 0) + len(rows)

    return add


def _rows(module: nn.Module, values: Tensor, per_position: bool) -> Tensor:
    """Inputs as rows: one per output position over patches, or one per input position over channels."""
    if not isinstance(module, nn.Conv2d):
        return values.reshape(-1, values.shape[-1])
    patch = module.weight[0].numel()
    if not per_position or module.kernel_size == (1, 1) or patch > LARGEST_PATCH:
        return values.movedim(1, -1).reshape(-1, values.shape[1])
    return patch_rows(module, values)


def patch_rows(convolution: nn.Conv2d, values: Tensor) -> Tensor:
    """What a convolution multiplies its flat weight with, ``(n, C_in·k²)``: one row per output position."""
    padding, mode = convolution._reversed_padding_repeated_twice, convolution.padding_mode
    if tuple(convolution.kernel_size) == tuple(convolution.stride) == (1, 1) and not any(padding):
        return values.movedim(1, -1).reshape(-1, values.shape[1])
    padded = functional.pad(values, padding, mode="constant" if mode == "zeros" else mode)
    rows = functional.unfold(
        padded, convolution.kernel_size, dilation=convolution.dilation, stride=convolution.stride
    )
    return rows.movedim(1, -1).reshape(-1, rows.shape[1])
