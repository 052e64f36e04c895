"""What is known of a model before a run: sensitivity, baseline, how divergence becomes wrong answers; and
what its runs have taught.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.files import ContentCache
from qaf_core.network.plan.layer_info import LayerInfo, inventory_from_rows
from qaf_core.network.plan.validation import check_activations
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.kinds import digest_request
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import ImagesRequest, SensitivityRequest, source_of
from qaf_core.search.budget.predict import (
    Curve,
    Observation,
    Predictor,
    Scores,
    curve_from_errors,
    curve_from_scores,
    temperature_for,
)
from qaf_core.search.sensitivity.settings import Sensitivity, sensitivity_from_dict
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qaf_core.data.models.source import ModelSource
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.store import Store

FOLDER = Path("cache") / "sensitivity"
LEARNT_METHODS = ("joint", "dense")
ACCURACY = "top1"  # the metric that a certainty can be compared with
MOST_TEACHING = 300  # of the newest runs
MOST_SCORES = 20_000  # rows of scores from which the curve is drawn
EVALUATED_IMAGES = 1024  # of those for evaluation, whose scores are looked at


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known of a model.

    Attributes:
        sensitivity: Of all its layers.
        curve: From divergence to answers.
        baseline: The original's evaluation: ``metric``, ``value``, ``n``, ``ci95``.
        inventory: Its rows.
    """

    sensitivity: Sensitivity
    curve: Curve
    baseline: Mapping[str, Any]
    inventory: tuple[LayerInfo, ...]

    def predictor(self, store: Store, request: SensitivityRequest) -> Predictor:
        """Predicts plans of the model, by what its runs in a workspace have taught."""
        first = Predictor(self.sensitivity, self.curve, self.baseline)
        runs = [run for run in store.list_runs(request.model, MOST_TEACHING) if teaches(run, request)]
        return Predictor(self.sensitivity, self.curve, self.baseline, [_observed(run, first) for run in runs])


@dataclass(frozen=True, kw_only=True)
class Explored:
    """A model and its images, loaded."""

    source: ModelSource
    model: nn.Module
    inventory: tuple[LayerInfo, ...]
    calibration: Tensor


def read_knowledge(digest: str, workspace: Path) -> Knowledge | None:
    """What is known already, by the digest of its request; None if nothing is. Loads no torch."""
    return ContentCache(workspace / FOLDER).read(digest, _parse)


def load_explored(request: SensitivityRequest, workspace: Path, progress: Progress) -> Explored:
    """Build the model and read its calibration images.

    Raises:
        QafError: If either cannot be used.
    """
    import torch

    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.data.models.catalogue import build_model
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.runs.jobs.images import load_run_images

    progress.step("loading", say("Loading {model}", model=request.model), 0.0)
    source = source_of(request, workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    images, _ = load_run_images(request, source, workspace)
    calibration = torch.cat([batch for batch, _ in to_batches(images, source, BATCH_SIZE)])
    mixed = shuffled(calibration, request.seed)
    return Explored(source=source, model=model, inventory=inventory, calibration=mixed)


def shuffled(images: Tensor, seed: int) -> Tensor:
    """Images in another order: a set may be sorted by class, and the first of them would speak for all."""
    import torch

    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


def find_knowledge(request: SensitivityRequest, workspace: Path, progress: Progress) -> Knowledge:
    """What is known of a model, measured now if it is not yet.

    Raises:
        QafError: If the model, its images or so many activation bits cannot be used.
        RunCancelled: If stopped; layers that were finished are kept.
    """
    check_activations(request.activation_bits)
    digest = digest_request(request, workspace)
    known = read_knowledge(digest, workspace)
    if known is not None:
        return known
    from qaf_core.search.sensitivity.measure import measure_sensitivity

    explored = load_explored(request, workspace, progress)
    cache = ContentCache(workspace / FOLDER)
    progress.step("evaluating", "Evaluating the original")
    baseline = _baseline(request, explored, workspace, progress)
    scores = _scores(explored.model, explored.calibration, baseline)
    temperature = 1.0 if scores is None else scores.temperature
    sensitivity = measure_sensitivity(
        explored.model,
        explored.inventory,
        explored.calibration,
        activation_bits=request.activation_bits,
        temperature=temperature,
        seed=request.seed,
        cache=cache,
        progress=progress,
    )
    curve = curve_from_errors() if scores is None else _curve(request, explored, scores, baseline, workspace)
    knowledge = Knowledge(
        sensitivity=sensitivity, curve=curve, baseline=baseline, inventory=explored.inventory
    )
    cache.keep(digest, _to_dict(knowledge))
    return knowledge


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``sensitivity``; its result is the object that ``qaf sensitivity --json`` prints."""
    return describe_sensitivity(find_knowledge(job.request, store.workspace, progress), job.request.model)


def describe_sensitivity(knowledge: Knowledge, model: str) -> dict[str, Any]:
    """The object that ``qaf sensitivity --json`` prints."""
    values = knowledge.sensitivity.to_dict()
    return {"model": model, **values, "baseline": dict(knowledge.baseline)}


def _baseline(
    request: SensitivityRequest, explored: Explored, workspace: Path, progress: Progress
) -> dict[str, Any]:
    """The original on the evaluation images, as a run evaluates it."""
    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.pipeline.tasks import Arrays, find_task, predict
    from qaf_core.runs.jobs.baseline import find_predictions
    from qaf_core.runs.jobs.images import load_evaluation_images

    images = load_evaluation_images(request, explored.source, workspace)
    task = find_task(explored.source.task)

    def make() -> Arrays:
        batches = to_batches(images, explored.source, BATCH_SIZE)
        count = -(-len(images) // BATCH_SIZE)
        tracked = progress.track(batches, count, "evaluating", "Evaluating the original")
        return predict(task, explored.model, tracked)

    predictions = find_predictions(workspace, explored.model, explored.source, images, make)
    return task.metric(predictions, task.collate(images), images.classes).to_dict()


def _scores(model: nn.Module, images: Tensor, baseline: Mapping[str, Any]) -> Scores | None:
    """Some rows of the original's class scores; None where there are none."""
    import torch

    from qaf_core.data.load import BATCH_SIZE
    from qaf_core.pipeline.divergence import class_scores

    rows: list[Tensor] = []
    model = model.eval()
    with torch.inference_mode():
        for batch in torch.split(images, BATCH_SIZE):
            scores = class_scores(model(batch))
            if scores is None:
                return None
            flat = scores.movedim(1, -1).flatten(0, -2)
            rows.append(flat[:: max(1, scores[0, 0].numel() * len(images) // MOST_SCORES)])
    array = torch.cat(rows).double().numpy()
    # On images it was trained on a network is surer of itself than it has a right to be.
    is_accuracy = baseline["metric"] == ACCURACY
    return Scores(
        rows=array, temperature=temperature_for(array, float(baseline["value"])) if is_accuracy else 1.0
    )


def _curve(
    request: SensitivityRequest,
    explored: Explored,
    measured: Scores,
    baseline: Mapping[str, Any],
    workspace: Path,
) -> Curve:
    """The curve, from the original's scores on images of either kind."""
    import numpy as np
    import torch

    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.pipeline.divergence import class_scores
    from qaf_core.runs.jobs.images import load_evaluation_images

    images = load_evaluation_images(request, explored.source, workspace)
    some = np.random.default_rng(request.seed).permutation(len(images))[:EVALUATED_IMAGES]
    batches = to_batches(images.take(np.sort(some), "some"), explored.source, BATCH_SIZE)
    shown = torch.cat([batch for batch, _ in batches])
    evaluated = _scores(explored.model, shown, baseline)
    curve = curve_from_scores(measured, measured if evaluated is None else evaluated)
    # Divergences of an image are the sums of those of its pixels.
    with torch.inference_mode():
        scores = class_scores(explored.model(explored.calibration[:1]))
    positions = 1 if scores is None else scores[0, 0].numel()
    return replace(curve, divergence=tuple(value * positions for value in curve.divergence))


def explored_by(run: RunRecord) -> SensitivityRequest:
    """What would be asked to explore a run's model on its images."""
    fields_of = {item.name: getattr(run.request, item.name) for item in fields(ImagesRequest)}
    return SensitivityRequest(**fields_of, activation_bits=run.plan.activation_bits)


def teaches(run: RunRecord, request: SensitivityRequest) -> bool:
    """Whether a run's result can be held against what was expected of its plan."""
    own = run.request
    named = ("weights", "classes", "preprocessing", "data")
    same = all(getattr(own, name) == getattr(request, name) for name in named)
    return (
        same
        and run.status == RunStatus.COMPLETED
        and run.compressed is not None
        and own.finetune is None
        and own.method in LEARNT_METHODS
        and bool(run.plan.layers)
        and run.plan.activation_bits == request.activation_bits
    )


def _observed(run: RunRecord, predictor: Predictor) -> Observation:
    agreement = None if run.compressed is None else run.compressed.agreement
    base = 0.0 if run.baseline is None else run.baseline.value
    return Observation(
        harm=predictor.harm(run.plan),
        changed=None if agreement is None else 1.0 - agreement,
        drop=None if run.drop is None or base <= 0 else run.drop / base,
        images=0 if run.compressed is None else run.compressed.n,
    )


def _to_dict(knowledge: Knowledge) -> dict[str, Any]:
    return {
        "sensitivity": knowledge.sensitivity.to_dict(),
        "curve": knowledge.curve.to_dict(),
        "baseline": dict(knowledge.baseline),
        "inventory": [info.to_dict() for info in knowledge.inventory],
    }


def _parse(path: Path) -> Knowledge | None:
    from qaf_core.files import read_json

    content = read_json(path)
    if content is None:
        return None
    return Knowledge(
        sensitivity=sensitivity_from_dict(content["sensitivity"]),
        curve=Curve(**{item.name: tuple(content["curve"][item.name]) for item in fields(Curve)}),
        baseline=content["baseline"],
        inventory=inventory_from_rows(content["inventory"]),
    )
