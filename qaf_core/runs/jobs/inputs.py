"""What a run works on, and how the networks it compares are measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qaf_core.data.images.split import describe_split
from qaf_core.data.load import BATCH_SIZE, ImageSet, to_batches
from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.network.plan.validation import validate_plan
from qaf_core.pipeline.compress.calibrate import LEAST_IMAGES
from qaf_core.pipeline.compress.result import CompressOptions, read_options
from qaf_core.pipeline.events import Progress, RunStatus
from qaf_core.pipeline.results import ImagesUsed
from qaf_core.pipeline.tasks import Arrays, Task, find_task, predict
from qaf_core.runs.evidence.predictions import describe_predictions, keep_predictions
from qaf_core.runs.jobs.baseline import find_predictions
from qaf_core.runs.jobs.images import load_evaluation_images, load_run_images
from qaf_core.runs.jobs.preview import write_preview
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest, source_of
from qaf_core.runs.store.store import Store
from qaf_core.text.said import Said, say, templates_of

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST_CLASS_NAMES = 300  # characters of all together that a packed file may spend on them
MOST_SKIPPED_NAMED = 100


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a run works on."""

    source: ModelSource
    task: Task
    model: nn.Module
    inventory: tuple[LayerInfo, ...]
    plan: Plan
    options: CompressOptions
    images: ImageSet | None
    calibration: Tensor
    calibration_set: ImageSet


@dataclass(frozen=True, kw_only=True)
class Made:
    """The network a run has made.

    Attributes:
        model: With chains in place of layers.
        layers: A row per layer that was changed, as in ``RunRecord.layers``.
        status: ``completed`` or ``cancelled``.
        seconds: By stage.
        extra: What else belongs in the run's result.
        notes: Sentences for people, shown with the run.
    """

    model: nn.Module
    layers: tuple[dict[str, Any], ...]
    status: RunStatus
    seconds: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[Said | str, ...] = ()


def load_subject(request: RunRequest, workspace: Path, progress: Progress) -> Subject:
    """Build the model, read the plan and the images.

    Raises:
        QafError: If any of them cannot be used.
        RunCancelled: If the run is to stop.
    """
    source = source_of(request, workspace)
    model = build_model(source)
    task = find_task(source.task)  # after the model is built: its module may register a task of its own
    inventory = take_inventory(model, source.input_shape)
    plan = Plan.from_dict(request.plan)
    validate_plan(plan, inventory, model=request.model)
    options = read_options(plan)
    progress.step("loading", "Loading images", 0.5)

    def report_read(done: int, total: int) -> None:
        progress.step("loading", say("Reading {total:,} images", total=total), done / total)

    calibration, images = load_run_images(request, source, workspace, report_read)
    batches = [batch for batch, _ in to_batches(calibration, source, BATCH_SIZE)]
    # Outputs that are not the task's, or another size of images, show here and not after minutes of solving.
    predict(task, model, [(batches[0][:2], None)])
    if images is not None:
        task.collate(images)
    return Subject(
        source=source,
        task=task,
        model=model,
        inventory=inventory,
        plan=plan,
        options=options,
        images=images,
        calibration=torch.cat(batches),
        calibration_set=calibration,
    )


def compare_networks(
    store: Store, record: RunRecord, subject: Subject, packed: nn.Module, progress: Progress
) -> dict[str, Any]:
    """Both networks on the same images: evaluations, drop and its interval, ready for JSON.

    The original comes second to the layers, so that the first curve appears at once.
    """
    images = subject.images
    if images is None:
        images = load_evaluation_images(record.request, subject.source, store.workspace)
    task, targets = subject.task, subject.task.collate(images)
    original = find_predictions(
        store.workspace, subject.model, subject.source, images,
        lambda: _predict(subject, subject.model, images, progress, "baseline", say("the original")),
    )  # fmt: skip
    before = task.metric(original, targets, images.classes).to_dict()
    progress.send("evaluated", which="original", **before)
    predictions = _predict(subject, packed, images, progress, "evaluating", say("the compressed network"))
    measured = task.metric(predictions, targets, images.classes)
    after = replace(measured, agreement=task.agreement(original, predictions)).to_dict()
    progress.send("evaluated", which="compressed", **after)
    drop, interval = task.compare(original, predictions, targets)
    keep_predictions(
        store.run_folder(record.id), describe_predictions(task.name, images, original, predictions, targets)
    )
    write_preview(store.run_folder(record.id), subject.model, packed, subject.source, images)
    return {
        "data": _describe_images(images, subject.calibration_set).to_dict(),
        "baseline": before,
        "compressed": after,
        "drop": drop,
        "drop_ci95": list(interval),
    }


def _describe_images(images: ImageSet, calibration: ImageSet) -> ImagesUsed:
    """Which images were used, how they were told apart, and which could not be read."""
    skipped = (*images.skipped, *calibration.skipped)
    split = images.split or describe_split(len(images), len(calibration), say("drawn separately"))
    warnings = _few_images(len(calibration))
    return ImagesUsed(
        evaluation=images.name,
        calibration=f"{calibration.name}, {len(calibration):,} images",
        split=str(split),
        warnings=tuple(map(str, warnings)),
        skipped=skipped[:MOST_SKIPPED_NAMED],
        skipped_count=len(skipped),
        said=templates_of(split, *warnings),
    )


def _few_images(calibration: int) -> tuple[Said, ...]:
    """What is to be said of so many calibration images."""
    if calibration >= LEAST_IMAGES:
        return ()
    if calibration == 1:
        return (
            say(
                "Only one calibration image: activation ranges are uncertain and no layer was fitted to "
                "outputs. Give at least {least}; they need no labels.", least=LEAST_IMAGES,
            ),
        )  # fmt: skip
    return (
        say(
            "Only {count} calibration images: activation ranges are uncertain and fits of outputs are "
            "uncertain. Give at least {least}; they need no labels.", count=calibration, least=LEAST_IMAGES,
        ),
    )  # fmt: skip


def _predict(
    subject: Subject, model: nn.Module, images: ImageSet, progress: Progress, stage: str, what: Said
) -> Arrays:
    message = say("Evaluating {what} on {count:,} images", what=what, count=len(images))
    count = -(-len(images) // BATCH_SIZE)
    batches = to_batches(images, subject.source, BATCH_SIZE)
    return predict(subject.task, model, progress.track(batches, count, stage, message))


def packed_card(record: RunRecord, subject: Subject) -> dict[str, Any]:
    """What the packed file tells besides its layers."""
    source = subject.source
    named = sum(map(len, source.classes)) <= LONGEST_CLASS_NAMES
    steps = source.preprocessing
    usual = Preprocessing(crop=steps.crop, mean=steps.mean, std=steps.std)
    return {
        "model": source.id,
        "architecture": source.architecture,
        "method": record.method,
        "activation_bits": subject.plan.activation_bits,
        "seed": subject.plan.seed,
        "input_shape": source.input_shape,
        "mean": steps.mean,
        "std": steps.std,
        "task": source.task,
        **({} if steps == usual else {"preprocessing": steps.to_dict()}),
        "classes": source.classes if named else len(source.classes),
    }


def result_header(record: RunRecord, status: RunStatus) -> dict[str, Any]:
    """What a run's result begins with."""
    request = record.request
    return {
        "run_id": record.id, "status": status, "name": request.name, "model": request.model,
        "method": request.method, "plan": dict(request.plan), "seed": request.seed,
    }  # fmt: skip
