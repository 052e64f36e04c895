"""True divergences of a network some of whose weights are exchanged, each run from where the first acts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.graph.network import GraphNetwork, layer_of
from qaf_core.network.graph.program import Execution
from qaf_core.pipeline.divergence import class_scores, output_divergence
from qaf_core.search.sensitivity.changes import Weight

Changes = Mapping[str, Tensor]


class Exchange:
    """A network whose weights can be exchanged, and images on which that is judged.

    Layers that are tried in the order they run share the run up to them.

    Args:
        network: Captured; a copy that may be changed for a moment.
        images: Normalised ``(N, C, H, W)``, all run at once.
        weights: Of the layers that may change.
        temperature: What class scores are divided by.

    Attributes:
        reference: What the unchanged network puts out.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, weights: Mapping[str, Weight], temperature: float
    ) -> None:
        self.network, self.images, self.weights, self.temperature = network, images, weights, temperature
        with torch.inference_mode():
            self.reference: Any = network(images)
        self._run: Execution | None = None
        self._changed_in_run: dict[str, Tensor] = {}

    @property
    def scored(self) -> bool:
        """Whether there are class scores among the outputs."""
        return class_scores(self.reference) is not None

    def divergence(self, changes: Changes, *, without: str | None = None) -> float:
        """The divergence, an image, when weights are changed and biases take up the mean.

        Args:
            changes: Of weights, by layer.
            without: A layer that is left as it is, and run from where it acts.
        """
        base = {} if without is None else dict(changes)
        made = {name: change for name, change in changes.items() if name != without}
        outputs = self._outputs(base, made, list(made) if without is None else [without])
        return output_divergence(self.reference, outputs, self.temperature)

    @torch.inference_mode()
    def _outputs(self, base: Changes, made: Changes, differing: Sequence[str]) -> Any:
        """The outputs under ``made``, which is ``base`` but for some layers."""
        if not isinstance(self.network, GraphNetwork):
            with self._made(made):
                return self.network(self.images)
        with self._made(base):
            run = self._run_before(base, differing)
        with self._made(made):
            return run.finish()

    def _run_before(self, base: Changes, layers: Sequence[str]) -> Execution:
        """A run under changes that stands before the first call of any of some layers."""
        assert isinstance(self.network, GraphNetwork)
        run = self._run if _same(base, self._changed_in_run) else None
        run = run or self.network.start_run(self.images)
        program = run.program
        calls = (program.calls[name][0] for name in layers if name in program.calls)
        position = min((program.index(node) for node in calls), default=len(program.steps))
        if run.position > position:
            run = self.network.start_run(self.images)
        run.run_to(position)
        self._run, self._changed_in_run = run, dict(base)
        return run.copy()

    @contextlib.contextmanager
    def _made(self, changes: Changes) -> Iterator[None]:
        """Weights changed for a moment."""
        before = []
        try:
            for name, change in changes.items():
                layer, weight = layer_of(self.network, name), self.weights[name]
                before.append((layer, layer.weight, layer.bias))
                moved = change.reshape(weight.matrix.shape)
                rows = (weight.matrix + moved).reshape(weight.rows.shape)
                layer.weight = nn.Parameter(layer.operation.as_stored(rows).contiguous(), requires_grad=False)
                if weight.statistics is not None and not layer.operation.transposed:
                    shift = -(moved @ weight.statistics.mean)
                    bias = shift if layer.bias is None else layer.bias + shift
                    layer.bias = nn.Parameter(bias, requires_grad=False)
            yield
        finally:
            for layer, stored, own_bias in before:
                layer.weight, layer.bias = stored, own_bias


def _same(one: Changes, other: Changes) -> bool:
    return one.keys() == other.keys() and all(change is other[name] for name, change in one.items())
