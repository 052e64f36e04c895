"""Both networks of a finished run, opened again, and their predictions made anew where none are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qaf_core.data.load import ImageSet, to_batches
from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.source import ModelSource
from qaf_core.deploy.packed.read import load_packed
from qaf_core.errors import WorkspaceError
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.tasks import Arrays, find_task, predict
from qaf_core.runs.evidence.predictions import (
    PairedPredictions,
    describe_predictions,
    keep_predictions,
    read_predictions,
)
from qaf_core.runs.jobs.baseline import PredictionCache, predictions_key
from qaf_core.runs.jobs.images import BATCH_SIZE, load_evaluation_images
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME

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
    packed = store.run_folder(run_id) / PACKED_NAME
    if not packed.is_file():
        raise WorkspaceError(
            "this run has no compressed network",
            got=f"{run_id} ({record.status})",
            expected="a completed run",
            remedy="list them with: qaf runs",
        )
    source = source_of(record.request, store.workspace)
    return RunNetworks(
        source=source,
        original=build_model(source).eval(),
        compressed=load_packed(packed, build_model(source)).eval(),
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
        def tell(done: int) -> None:
            message = f"Asking both networks again on {len(run.images):,} images"
            progress.step("evaluating", message, (before + done) / total)

        return predict(task, network, to_batches(run.images, run.source, BATCH_SIZE), tell)

    cache, key = PredictionCache(store.workspace), predictions_key(run.original, run.source, run.images)
    original = cache.read(key)
    if original is None:
        original = answers(run.original, 0)
        cache.keep(key, original)
    compressed = answers(run.compressed, len(run.images))
    paired = describe_predictions(task.name, run.images, original, compressed, task.collate(run.images))
    keep_predictions(store.run_folder(run_id), paired)
    return paired


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``answers``."""
    found = load_predictions(store, job.request.run, progress)
    return {"run": job.request.run, "images": found.images, "data_sha256": found.data_sha256}
