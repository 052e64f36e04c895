"""How fast a run's models are on this machine, by model and by layer, and whether they still say the same."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qaf_core.deploy.runtime.layer_profile import compare_layers, profile_layers
from qaf_core.deploy.runtime.measure_kit import (
    Load,
    compare,
    describe_machine,
    measure_peak_memory,
    open_runs,
    time_models,
)
from qaf_core.deploy.runtime.model_files import PROFILED, ModelFile
from qaf_core.deploy.runtime.rapl import energy_per_run
from qaf_core.deploy.runtime.speed_report import FILES, HERE, SCHEMA_VERSION, SpeedReport
from qaf_core.errors import WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.network.plan.energy_model import MODELLED
from qaf_core.pipeline.events import Progress
from qaf_core.runs.store.request import LatencyRequest
from qaf_core.text.said import say

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qaf_core.data.load import ImageSet
    from qaf_core.runs.jobs.exported_models import RunModels
    from qaf_core.runs.store.record import JobRecord, RunRecord
    from qaf_core.runs.store.store import Store

FILE_NAME = "latency.json"
ROUNDS = 300
JUDGED_SECONDS = 300.0  # for judging: of more images than that allows, as many as it does
JUDGED = (ModelFile.ORIGINAL, ModelFile.DENSE, *FILES)


def measure_run(
    store: Store,
    run_id: str,
    *,
    threads: int,
    batch: int = 1,
    rounds: int = ROUNDS,
    seconds: float = LatencyRequest.seconds,
    images: int | None = None,
    progress: Progress | None = None,
) -> SpeedReport:
    """Time the models of a finished run side by side, and keep the result with the run.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        threads: Threads of one operation, at least 1.
        batch: Images at a time, at least 1.
        rounds, seconds: As in ``time_interleaved``.
        images: At most so many evaluation images judge the INT8 files, 0 for none; None for those the run
            was measured on, or as many as ``JUDGED_SECONDS`` allow.
        progress: Told what is measured (stage ``latency``), and asked between whether to stop.

    Raises:
        WorkspaceError: If the run has no compressed network, or a number is out of range.
        ModelError: If ONNX cannot express the network.
        RunCancelled: If stopped.
    """
    for name, value in (("threads", threads), ("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise WorkspaceError(say("{name} out of range", name=name), got=value, expected="at least 1")
    from qaf_core.runs.jobs.exported_models import prepare_models

    progress = progress or Progress()
    progress.step("latency", "Writing the models", 0.0)
    models = prepare_models(store, run_id)
    models.check_batch(batch)
    inputs = _timing_images(models.source.input_shape, batch)
    progress.step("latency", "Timing the models side by side", 1 / 6)
    load = Load()
    times = time_models(models.paths, inputs, threads=threads, rounds=rounds, seconds=seconds)
    compared = compare(times, load.others_share())
    progress.step("latency", "Timing their layers", 2 / 6)
    profiled: dict[str, Path] = {name: models.paths[name] for name in PROFILED}
    names = [info.name for info in models.inventory if info.planned]
    layers = compare_layers(
        profile_layers(profiled, inputs, names, threads=threads), models.record.plan_row.get("layers", ())
    )
    progress.step("latency", "Measuring their memory", 3 / 6)
    memory = {n: measure_peak_memory(p, inputs, threads=threads) for n, p in models.paths.items()}
    progress.step("latency", "Measuring their energy, where the processor tells it", 4 / 6)
    energy = energy_per_run(open_runs(models.paths, inputs, threads=threads))
    progress.step("latency", "Judging the INT8 models on evaluation images", 5 / 6)
    if images is None:
        seconds_each = sum(row["median_ms"] for row in compared["latencies"].values()) / 1e3 / batch
        images = max(1, int(JUDGED_SECONDS / seconds_each))
    report = SpeedReport.from_dict(
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "source": HERE,
            "measured_at": time.time(),
            "threads": threads,
            "batch": batch,
            "input_shape": models.source.input_shape,
            **compared,
            "size_bytes": {name: path.stat().st_size for name, path in models.paths.items()},
            "peak_memory_bytes": memory,
            "energy": {**energy, "images": batch, "modelled": _modelled_energy(models.record)},
            "accuracy": judge_files(store, models, images) if images else {},
            "layers": layers,
            "machine": describe_machine(threads),
        }
    )
    return keep_latency(store, report, FILE_NAME)


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``latency``."""
    request: LatencyRequest = job.request
    return measure_run(
        store, request.run, threads=request.threads, batch=request.batch, seconds=request.seconds,
        images=request.images, progress=progress,
    ).to_dict()  # fmt: skip


def _modelled_energy(record: RunRecord) -> dict[str, Any]:
    """Joules for one image by the cost model, of the original and the compressed network."""
    costs = {"original": record.baseline_cost, "compressed": record.cost}
    joules = {name: None if cost is None else cost.energy_joules for name, cost in costs.items()}
    return {**joules, "source": MODELLED}


def _timing_images(shape: tuple[int, int, int], batch: int) -> NDArray[np.float32]:
    """Normalised noise: what is in an image does not change how long it takes."""
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


def judge_files(store: Store, models: RunModels, limit: int) -> dict[str, Any]:
    """What the INT8 files lose against the original file, on the same evaluation images.

    Returns:
        For each file: metric, value, n, ci95, drop, drop_ci95, agreement; the original's under its own name;
        of the fast file also agreement_with_exact, with the file that is exactly the evaluated network.
    """
    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.deploy.onnx_export.ort_quantizer import OnnxNetwork
    from qaf_core.pipeline.tasks import find_task, predict
    from qaf_core.runs.jobs.images import load_evaluation_images

    task, source = find_task(models.source.task), models.source
    chosen = spread_images(load_evaluation_images(models.record.request, source, store.workspace), limit)
    targets = task.collate(chosen)
    losses: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for name in JUDGED:
        if name not in models.paths:
            continue
        network = OnnxNetwork(models.paths[name], any_batch=models.any_batch)
        predictions = predict(task, network, to_batches(chosen, source, BATCH_SIZE))
        answers[name] = predictions
        original = answers[ModelFile.ORIGINAL]
        measured = task.metric(predictions, targets, chosen.classes)
        drop, interval = task.compare(original, predictions, targets)
        losses[name] = {
            "metric": measured.metric,
            "value": measured.value,
            "n": measured.n,
            "ci95": list(measured.ci95),
            "drop": drop,
            "drop_ci95": list(interval),
            "agreement": task.agreement(original, predictions),
        }
    if ModelFile.EXACT in answers:
        agreement = task.agreement(answers[ModelFile.EXACT], answers[ModelFile.FAST])
        losses[ModelFile.FAST]["agreement_with_exact"] = agreement
    return losses


def spread_images(images: ImageSet, count: int) -> ImageSet:
    """At most ``count`` images, evenly from the first to the last: some sets are sorted by class."""
    if count >= len(images):
        return images
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.intp)
    return images.take(chosen, f"{count:,} of {images.name}")


def keep_latency(store: Store, report: SpeedReport, file_name: str) -> SpeedReport:
    """Put a measurement in words, write it into the run's folder and its rows into the run's result."""
    report = replace(report, verdict=" ".join(map(str, report.sentences())))
    write_json(store.run_folder(report.run_id) / file_name, report.to_dict(), for_people=True)
    kept = [row for row in store.run(report.run_id).latencies if row.get("source") != report.source]
    rows = [
        {
            "model": name,
            "source": report.source,
            "threads": report.machine.threads,
            "batch": report.batch,
            "processor": report.machine.processor,
            "peak_memory_bytes": report.peak_memory_bytes.get(name),
            **row.to_dict(),
        }
        for name, row in report.latencies.items()
    ]
    store.add_to_result(report.run_id, {"latencies": [*map(dict, kept), *rows]})
    return report


def read_latency(folder: Path, file_name: str = FILE_NAME) -> SpeedReport | None:
    """The measurement kept in a run's folder; None if there is none or it is damaged."""
    try:
        return SpeedReport.from_dict(read_json(folder / file_name))
    except (TypeError, ValueError):
        return None
