"""Second moments of layers' inputs, collected in one pass over the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_PATCH = 1600  # inputs per output (C_in·k²) up to which the full moment over kernel positions is collected
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
        per_position: Collect ``(C_in·k², C_in·k²)`` over patches where that is not too large, else ``(C_in, C_in)``.

    Returns:
        One float32 matrix per layer; grouped convolutions are left out.
    """
    totals: dict[str, Tensor] = {}
    handles = []
    for name in layers:
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            continue
        handles.append(module.register_forward_pre_hook(_adder(name, totals, per_position, len(batches))))
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.float() for name, total in totals.items()}


def _adder(name: str, totals: dict[str, Tensor], per_position: bool, batches: int) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _rows(module, inputs[0], per_position)
        step = max(1, len(rows) * batches // POSITIONS)
        rows = rows[::step]
        moment = (rows.mT @ rows).double() / max(len(rows), 1)
        totals[name] = totals[name] + moment if name in totals else moment

    return add


def _rows(module: nn.Module, values: Tensor, per_position: bool) -> Tensor:
    """Inputs as rows: one per output position over patches, or one per input position over channels."""
    if not isinstance(module, nn.Conv2d):
        return values.reshape(-1, values.shape[-1])
    patch = module.weight[0].numel()
    if not per_position or module.kernel_size == (1, 1) or patch > LARGEST_PATCH or isinstance(module.padding, str):
        return values.movedim(1, -1).reshape(-1, values.shape[1])
    rows = functional.unfold(values, module.kernel_size, dilation=module.dilation, padding=module.padding, stride=module.stride)
    return rows.movedim(1, -1).reshape(-1, patch)
