"""Second moments of layers' inputs, collected in one pass over the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.network.graph.network import layers_in, observed
from qaf_core.network.graph.nodes import site_of
from qaf_core.network.graph.program import Execution
from qaf_core.network.modules.quantized import Layer

LARGEST_PATCH = 1600  # inputs per output (C_in·k²) up to which the moment over kernel positions is collected
POSITIONS = 200_000


@torch.inference_mode()
def collect_moments(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], *, per_position: bool
) -> dict[str, Tensor]:
    """``E[x xᵀ]`` of what reaches each layer.

    Args:
        model: Captured, in evaluation mode.
        layers: Names of layers.
        batches: Images ``(B, C, H, W)``.
        per_position: Collect ``(C_in·k…, C_in·k…)`` over patches where that is not too large, else
            ``(C_in, C_in)``.

    Returns:
        One float32 matrix per layer; layers of several groups, transposed convolutions where ``per_position``
        is asked for, and layers that nothing reaches, are left out.
    """
    found = layers_in(model)
    wanted = {id(found[name]): name for name in layers if found[name].operation.groups == 1}
    collector = _Collector(wanted, per_position, len(batches))
    with observed(model, collector.look):
        for batch in batches:
            model(batch)
    return collector.moments()


class _Collector:
    """Adds up second moments while a network runs."""

    def __init__(self, wanted: dict[int, str], per_position: bool, batches: int) -> None:
        self._wanted, self._per_position, self._batches = wanted, per_position, batches
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def look(self, execution: Execution, node: Node, _result: Any) -> None:
        """One step has been run."""
        if node.op != "call_module":
            return
        layer = execution.root.get_submodule(str(node.target))
        name = self._wanted.get(id(layer))
        if name is not None and isinstance(layer, Layer):
            self._add(name, layer, site_of(node), execution.operand(node))

    def _add(self, name: str, layer: Layer, site: int, values: Tensor) -> None:
        rows = _rows(layer, site, values, self._per_position)
        # An odd step does not fall on the same columns of every image, whose sizes are mostly even.
        step = len(rows) * self._batches // POSITIONS | 1
        rows = rows[::step]
        moment = (rows.mT @ rows).double()
        self._totals[name] = self._totals[name] + moment if name in self._totals else moment
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def moments(self) -> dict[str, Tensor]:
        """The means."""
        return {
            name: (total / self._counts[name]).float()
            for name, total in self._totals.items()
            if self._counts[name]
        }


def _rows(layer: Layer, site: int, values: Tensor, per_position: bool) -> Tensor:
    """Inputs as rows: one per output position over patches, or one per input position over channels."""
    operation = layer.operations[site]
    patch, kernel = layer.rows[0].numel(), layer.rows.shape[2:]
    by_channel = not per_position or kernel.numel() == 1 or patch > LARGEST_PATCH or operation.transposed
    if operation.dims and by_channel:
        return values.movedim(operation.channel_axis, -1).reshape(-1, values.shape[operation.channel_axis])
    return operation.patch_rows(values, kernel)
