"""Means and second moments of layers' inputs, collected in one pass over the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """What reaches a layer, of patches ``(P = C_in·k…)`` or of channels ``(P = C_in)``.

    Attributes:
        mean: ``E[x] (P,)``.
        moment: ``E[x xᵀ] (P, P)``.
    """

    mean: Tensor
    moment: Tensor

    @cached_property
    def covariance(self) -> Tensor:
        """``E[x xᵀ] - E[x] E[x]ᵀ``."""
        return self.moment - torch.outer(self.mean, self.mean)

    def of_patches(self, columns: int) -> InputStatistics:
        """The statistics of patches of so many numbers; those of channels hold at all kernel positions alike,
        which vary independently.
        """
        positions = columns // len(self.mean)
        if positions == 1:
            return self
        mean = self.mean.repeat_interleave(positions)
        covariance = torch.kron(self.covariance, torch.eye(positions).to(mean))
        return InputStatistics(mean=mean, moment=covariance + torch.outer(mean, mean))


def collect_moments(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], *, per_position: bool
) -> dict[str, Tensor]:
    """``E[x xᵀ]`` of what reaches each layer, as :func:`collect_statistics`."""
    statistics = collect_statistics(model, layers, batches, per_position=per_position)
    return {name: row.moment for name, row in statistics.items()}


@torch.inference_mode()
def collect_statistics(
    model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], *, per_position: bool
) -> dict[str, InputStatistics]:
    """Means and second moments of what reaches each layer.

    Args:
        model: Captured, in evaluation mode.
        layers: Names of layers.
        batches: Images ``(B, C, H, W)``.
        per_position: Collect ``(C_in·k…, C_in·k…)`` over patches where that is not too large, else
            ``(C_in, C_in)``.

    Returns:
        In float32, by layer; layers of several groups, transposed convolutions where ``per_position``
        is asked for, and layers that nothing reaches, are left out.
    """
    modules = layers_in(model)
    names = {id(modules[name]): name for name in layers if modules[name].operation.groups == 1}
    collector = _Collector(names, per_position, len(batches))
    with observed(model, collector.look):
        for batch in batches:
            model(batch)
    return collector.statistics()


class _Collector:
    """Adds up second moments while a network runs."""

    def __init__(self, names: dict[int, str], per_position: bool, batches: int) -> None:
        self._names, self._per_position, self._batches = names, per_position, batches
        self._totals: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def look(self, execution: Execution, node: Node, _result: Any) -> None:
        """One step has been run."""
        if node.op != "call_module":
            return
        layer = execution.root.get_submodule(str(node.target))
        name = self._names.get(id(layer))
        if name is not None and isinstance(layer, Layer):
            self._add(name, layer, site_of(node), execution.operand(node))

    def _add(self, name: str, layer: Layer, site: int, values: Tensor) -> None:
        rows = _rows(layer, site, values, self._per_position)
        # An odd step does not fall on the same columns of every image, whose sizes are mostly even.
        step = len(rows) * self._batches // POSITIONS | 1
        rows = rows[::step]
        moment = (rows.mT @ rows).double()
        total = rows.sum(dim=0, dtype=torch.float64)
        self._totals[name] = self._totals[name] + moment if name in self._totals else moment
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def statistics(self) -> dict[str, InputStatistics]:
        """The means."""
        return {
            name: InputStatistics(
                mean=(self._sums[name] / count).float(), moment=(self._totals[name] / count).float()
            )
            for name, count in self._counts.items()
            if count
        }


def _rows(layer: Layer, site: int, values: Tensor, per_position: bool) -> Tensor:
    """Inputs as rows: one per output position over patches, or one per input position over channels."""
    operation = layer.operations[site]
    patch, kernel = layer.rows[0].numel(), layer.rows.shape[2:]
    by_channel = not per_position or kernel.numel() == 1 or patch > LARGEST_PATCH or operation.transposed
    if operation.dims and by_channel:
        return values.movedim(operation.channel_axis, -1).reshape(-1, values.shape[operation.channel_axis])
    return operation.patch_rows(values, kernel)
