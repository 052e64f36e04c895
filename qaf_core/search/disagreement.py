"""How many of a network's answers change under a plan, and which layers are to blame."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.writer import Array
from qaf_core.errors import DataError, RunCancelled
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.modules.quantized import FactorizedLayer, swap_layer
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.compress.compress import batch_size, compress_network
from qaf_core.pipeline.compress.result import read_options
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.divergence import divergence
from qaf_core.pipeline.events import Progress, RunStatus
from qaf_core.pipeline.tasks.base import Arrays, Task, predict
from qaf_core.search.selection import Step, plan_with

HARM_IMAGES = (32, 256)  # divergences settle sooner than shares of changed answers do
HARM_PIXELS = 32 * 224 * 224  # of a batch


class Answers:
    """Compares a network with what plans would make of it, on images without labels.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        images: Normalised calibration images ``(N, C, H, W)``.
        task: Reads the outputs, and says how far two networks agree.
        plan: What steps are set into.
        chains: By layer and step what :meth:`harm` is asked for, fitted to the original layer's outputs.
        cache: Where solved layers are looked up and kept.
        progress: Asked between solver iterations whether to stop; told nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Sequence[LayerInfo],
        images: Tensor,
        *,
        task: Task,
        plan: Plan,
        chains: Mapping[tuple[str, Step], FactorizedLayer],
        cache: SolveCache,
        progress: Progress | None = None,
    ) -> None:
        self._original, self._inventory, self._images = copy.deepcopy(model).eval(), inventory, images
        self._task = task
        self._plan, self._chains, self._cache = plan, chains, cache
        self._progress = Progress() if progress is None else progress.quiet()
        self._harms: dict[tuple[str, Step], float] = {}
        at_once = max(HARM_PIXELS // (images.shape[-1] * images.shape[-2]), 1)
        few = images[: min(max(at_once, HARM_IMAGES[0]), HARM_IMAGES[1])]
        self._few = torch.split(few, at_once)

    @property
    def images(self) -> int:
        """How many images are compared."""
        return len(self._images)

    def can_count(self) -> bool:
        """Whether the task can read the network's outputs: of others it cannot be said what changed."""
        try:
            found = predict(self._task, self._original, [(self._images[:1], None)])
        except DataError:
            return False
        ranked = found.get("ranked")
        return ranked is None or ranked.shape[1] > 1  # of a single class nothing can be put first

    def harm(self, layer: str, step: Step) -> float:
        """The divergence from the original when this layer alone is exchanged; 0 for dense."""
        if step[0] not in FACTORIZED:
            return 0.0
        if (layer, step) not in self._harms:
            self._progress.check()
            model = copy.deepcopy(self._original)
            swap_layer(model, layer, self._chains[layer, step])
            total = divergence(self._original, model, self._few)
            self._harms[layer, step] = max(total / sum(map(len, self._few)), 0.0)
        return self._harms[layer, step]

    def changed(self, steps: Mapping[str, Step]) -> float:
        """The share of answers that the network compressed in this way changes: 1 less the task's agreement.

        The network is calibrated front to back as in a run: later layers make up for much of what earlier
        ones lose. So the share is that of the run, but for the images.

        Raises:
            RunCancelled: If stopped.
        """
        plan = plan_with(self._plan, steps)
        found = compress_network(
            self._original,
            plan,
            self._inventory,
            calibration=self._images,
            options=read_options(plan),
            progress=self._progress,
            cache=self._cache,
        )
        if found.status != RunStatus.COMPLETED:
            raise RunCancelled

        try:
            return self._share(found.model)
        except DataError:  # scores that are not finite, say
            return 1.0

    def changed_by(self, run: Callable[[Array], Array]) -> float:
        """The share of answers that another way to compute the network changes.

        Args:
            run: Maps normalised images ``(B, C, H, W)`` to the first output.
        """
        return self._share(_Computed(run))

    def _share(self, model: nn.Module) -> float:
        return 1.0 - self._task.agreement(self._wanted, self._predicted(model))

    @cached_property
    def _wanted(self) -> Arrays:
        return self._predicted(self._original)

    def _predicted(self, model: nn.Module) -> Arrays:
        batches = torch.split(self._images, batch_size(self._images))
        return predict(self._task, model, ((batch, None) for batch in batches))


class _Computed(nn.Module):
    """A network that is computed elsewhere."""

    def __init__(self, run: Callable[[Array], Array]) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._run(images.numpy()))
