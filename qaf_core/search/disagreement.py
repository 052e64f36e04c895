"""What plans do to a network's answers, measured on networks compressed as planned."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, RunCancelled
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.compress.compress import batch_size, compress_network
from qaf_core.pipeline.compress.result import read_options
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.divergence import squared_error
from qaf_core.pipeline.events import Progress, RunEvent, RunStatus
from qaf_core.pipeline.tasks.base import Arrays, Task, predict
from qaf_core.search.fastest import Judged
from qaf_core.search.selection import Step, plan_with
from qaf_core.text.said import say


class Answers:
    """Compares a network with what plans would make of it, on images without labels.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        images: Normalised calibration images ``(N, C, H, W)``.
        task: Reads the outputs, and says how far two networks agree.
        plan: What steps are set into.
        cache: Where solved layers are looked up and kept.
        progress: Told how far a comparison is (stage ``selecting``), and asked inside of it whether to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Sequence[LayerInfo],
        images: Tensor,
        *,
        task: Task,
        plan: Plan,
        cache: SolveCache,
        progress: Progress | None = None,
    ) -> None:
        self._original, self._inventory, self._images = copy.deepcopy(model).eval(), inventory, images
        self._task, self._plan, self._cache = task, plan, cache
        self._progress, self._judged = progress or Progress(), 0

    @property
    def images(self) -> int:
        """How many images are compared."""
        return len(self._images)

    @cached_property
    def can_count(self) -> bool:
        """Whether the task can read the network's outputs: of others it cannot be said what changed."""
        try:
            answers = predict(self._task, self._original, [(self._images[:1], None)])
        except DataError:
            return False
        ranked = answers.get("ranked")
        return ranked is None or ranked.shape[1] > 1  # of a single class nothing can be put first

    def judge(self, steps: Mapping[str, Step]) -> Judged:
        """What changes in the network compressed in this way: 1 less the task's agreement, or where answers
        cannot be counted the relative squared error of the outputs; and the layers' output errors.

        The network is calibrated front to back as in a run: later layers make up for much of what earlier
        ones lose. So the share is that of the run, but for the images.

        Raises:
            RunCancelled: If stopped.
        """
        plan = plan_with(self._plan, steps)
        self._judged += 1
        made = compress_network(
            self._original,
            plan,
            self._inventory,
            calibration=self._images,
            options=read_options(plan),
            progress=self._inside(len(plan.layers)),
            cache=self._cache,
        )
        if made.status != RunStatus.COMPLETED:
            raise RunCancelled
        errors = {row.name: row.output_error for row in made.layers if row.output_error is not None}
        try:
            share = self._share(made.model) if self.can_count else self._error(made.model)
        except DataError:  # scores that are not finite, say
            return Judged(share=1.0, errors=errors, finite=False)
        return Judged(share=share, errors=errors)

    def _inside(self, layers: int) -> Progress:
        """Tells how far a comparison is: half of it solves the layers, half calibrates them.

        How many there will be nobody knows beforehand: each has its number.
        """
        solved = 0
        message = say("Comparing the answers with the original's, plan {number}", number=self._judged)

        def tell(fraction: float) -> None:
            self._progress.step("selecting", message, fraction)

        def hear(event: RunEvent) -> None:
            nonlocal solved
            solved += event.kind == "layer_finished"
            if event.data.get("stage") == "calibrating":
                tell(0.5 + 0.5 * float(event.data["fraction"] or 0.0))
            else:
                tell(0.5 * min(solved / max(layers, 1), 1.0))

        tell(0.0)
        return Progress(hear, self._progress.stopped)

    def _share(self, model: nn.Module) -> float:
        return 1.0 - self._task.agreement(self._reference, self._predicted(model))

    @torch.inference_mode()
    def _error(self, model: nn.Module) -> float:
        batches = torch.split(self._images, batch_size(self._images))
        errors = [squared_error(self._original(batch), model(batch)) * len(batch) for batch in batches]
        return sum(errors) / len(self._images)

    @cached_property
    def _reference(self) -> Arrays:
        return self._predicted(self._original)

    def _predicted(self, model: nn.Module) -> Arrays:
        batches = torch.split(self._images, batch_size(self._images))
        return predict(self._task, model, ((batch, None) for batch in batches))
