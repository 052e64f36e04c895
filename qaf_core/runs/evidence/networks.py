"""Both networks of a finished run, opened again, and their predictions made anew where none are kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qaf_core.data.load import BATCH_SIZE, ImageSet, to_batches
from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.source import ModelSource
from qaf_core.deploy.packed.read import load_packed
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.tasks import Arrays, find_task, predict
from qaf_core.runs.evidence.answers import forget_answers
from qaf_core.runs.evidence.predictions import (
    PairedPredictions,
    describe_predictions,
    keep_predictions,
    read_predictions,
)
from qaf_core.runs.jobs.baseline import find_predictions
from qaf_core.runs.jobs.images import load_evaluation_images
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.runs.store.record import JobRecord


@dataclass(frozen=True, kw_only=True)
class RunNetworks:
    """What a run compared: two networks and the images both were evaluated on."""

    source: ModelSource
    original: nn.Module
    compressed: nn.Module
    images: ImageSet


def open_networks(store: Store, run_id: str) -> RunNetworks:
    """Both networks of a run, the compressed one read from its packed file, and its evaluation images.

    Raises:
        WorkspaceError: If the run has no compressed network.
        QafError: If model, weights or images are no longer there.
    """
    record = store.run(run_id)
    packed = store.packed_file(record)
    source = source_of(record.request, store.workspace)
    original = build_model(source)
    return RunNetworks(
        source=source,
        original=original,
        compressed=load_packed(packed, copy.deepcopy(original)),
        images=load_evaluation_images(record.request, source, store.workspace),
    )


def load_predictions(
    store: Store,
    run_id: str,
    progress: Progress | None = None,
) -> PairedPredictions:
    """The predictions of both networks of a run: those kept, else made anew and kept.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        progress: Told how far it is (stage ``evaluating``); may stop it.

    Raises:
        WorkspaceError: If the run has no compressed network, or what is kept is damaged.
        RunCancelled: If stopped.
    """
    kept = read_predictions(store.run_folder(run_id))
    if kept is not None:
        return kept
    progress = progress or Progress()
    run = open_networks(store, run_id)
    task, total = find_task(run.source.task), 2 * len(run.images)

    def answers(network: nn.Module, before: int) -> Arrays:
        def report(done: int) -> None:
            message = say("Asking both networks again on {count:,} images", count=len(run.images))
            progress.step("evaluating", message, (before + done) / total)

        return predict(task, network, to_batches(run.images, run.source, BATCH_SIZE), report)

    original = find_predictions(
        store.workspace, run.original, run.source, run.images, lambda: answers(run.original, 0)
    )
    compressed = answers(run.compressed, len(run.images))
    paired = describe_predictions(task.name, run.images, original, compressed, task.collate(run.images))
    keep_predictions(store.run_folder(run_id), paired)
    forget_answers(store, run_id)
    return paired


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``answers``."""
    predictions = load_predictions(store, job.request.run, progress)
    return {"run": job.request.run, "images": predictions.images, "data_sha256": predictions.data_sha256}
