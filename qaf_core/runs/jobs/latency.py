"""How fast a run's models are on this machine, by model and by layer, and whether they still say the same."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qaf_core.deploy.runtime.layer_profile import compare_layers, profile_layers
from qaf_core.deploy.runtime.measure_kit import (
    BUSY_SHARE,
    LEAST_AGREEMENT,
    Load,
    compare,
    describe_machine,
    measure_peak_memory,
    open_runs,
    time_models,
)
from qaf_core.deploy.runtime.model_files import PROFILED, ModelFile
from qaf_core.deploy.runtime.rapl import energy_per_run
from qaf_core.errors import WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.network.plan.energy_model import MODELLED
from qaf_core.pipeline.events import Progress
from qaf_core.records import from_plain
from qaf_core.runs.store.request import LatencyRequest
from qaf_core.text.said import say

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from qaf_core.data.load import ImageSet
    from qaf_core.runs.jobs.exported_models import RunModels
    from qaf_core.runs.store.record import JobRecord, RunRecord
    from qaf_core.runs.store.store import Store

SCHEMA_VERSION = 1
FILE_NAME = "latency.json"
ROUNDS = 300
JUDGED_SECONDS = 300.0  # for judging: of more images than that allows, as many as it does
MOST_NAMED = 5  # layers in a sentence
FILES = {ModelFile.FAST: "fast file (int8-fast)", ModelFile.EXACT: "exact file (int8)"}  # of: qaf export
JUDGED = (ModelFile.ORIGINAL, ModelFile.DENSE, *FILES)
HERE, DEVICE = "this machine", "device kit"


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
) -> dict[str, Any]:
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

    Returns:
        A JSON-ready object: run_id, threads, batch, latencies by model (median_ms, p5_ms, p95_ms, n),
        ratio_to_dense_int8 of the fast file with its interval, the same for every model under ratios,
        peak_memory_bytes and size_bytes by model, energy (joules of one inference by model where the
        processor tells it, else the reason; and modelled), accuracy of the INT8 files, layers, verdict in
        words, machine.

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
    given = _timing_images(models.source.input_shape, batch)
    progress.step("latency", "Timing the models side by side", 1 / 6)
    load = Load()
    times = time_models(models.paths, given, threads=threads, rounds=rounds, seconds=seconds)
    told = compare(times, load.others_share())
    progress.step("latency", "Timing their layers", 2 / 6)
    profiled: dict[str, Path] = {name: models.paths[name] for name in PROFILED}
    names = [info.name for info in models.inventory if info.planned]
    layers = compare_layers(
        profile_layers(profiled, given, names, threads=threads), models.record.plan_row.get("layers", ())
    )
    progress.step("latency", "Measuring their memory", 3 / 6)
    memory = {n: measure_peak_memory(p, given, threads=threads) for n, p in models.paths.items()}
    progress.step("latency", "Measuring their energy, where the processor tells it", 4 / 6)
    energy = energy_per_run(open_runs(models.paths, given, threads=threads))
    energy["modelled"] = _modelled_energy(models.record)
    progress.step("latency", "Judging the INT8 models on evaluation images", 5 / 6)
    if images is None:
        seconds_each = sum(row["median_ms"] for row in told["latencies"].values()) / 1e3 / batch
        images = max(1, int(JUDGED_SECONDS / seconds_each))
    accuracy = judge_files(store, models, images) if images else {}
    result = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "source": HERE,
        "measured_at": time.time(),
        "threads": threads,
        "batch": batch,
        "input_shape": list(models.source.input_shape),
        **told,
        "size_bytes": {name: path.stat().st_size for name, path in models.paths.items()},
        "peak_memory_bytes": memory,
        "energy": {**energy, "images": batch},
        "accuracy": accuracy,
        "layers": layers,
        "verdict": tell_verdict(told["ratios"], layers, accuracy, told["others_share"]),
        "machine": describe_machine(threads),
    }
    keep_latency(store, run_id, result, FILE_NAME)
    return result


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``latency``."""
    asked: LatencyRequest = job.request
    return measure_run(
        store, asked.run, threads=asked.threads, batch=asked.batch, seconds=asked.seconds,
        images=asked.images, progress=progress,
    )  # fmt: skip


def _modelled_energy(record: RunRecord) -> dict[str, Any]:
    """Joules for one image by the cost model, of the original and the compressed network."""
    costs = {"original": record.baseline_cost, "compressed": record.cost}
    told = {name: None if cost is None else cost.energy_joules for name, cost in costs.items()}
    return {**told, "source": MODELLED}


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
    found: dict[str, Any] = {}
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
        found[name] = {
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
        found[ModelFile.FAST]["agreement_with_exact"] = agreement
    return found


def spread_images(images: ImageSet, count: int) -> ImageSet:
    """At most ``count`` images, evenly from the first to the last: some sets are sorted by class."""
    if count >= len(images):
        return images
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.intp)
    return images.take(chosen, f"{count:,} of {images.name}")


def tell_verdict(
    ratios: Mapping[str, Mapping[str, float]],
    layers: Sequence[Mapping[str, Any]] = (),
    accuracy: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    others_share: float | None = None,
) -> str:
    """Whether each factorized INT8 file is faster than dense INT8, and which layers are not, in words.

    Args:
        ratios: By model: value, low and high of its time over that of dense INT8; those of other models than
            the two files are not looked at.
        layers: Rows of :func:`compare_layers`, measured on the fast file; empty where they were not.
        accuracy: As :func:`judge_files` gives it.
        others_share: What others used of the processors meanwhile, as a share; None where that is unknown.
    """
    text = " ".join(_tell_ratio(FILES[name], ratios[name]) for name in FILES if name in ratios)
    if not text:
        text = "Nothing can be said of dense INT8: it or the factorized file did not run."
    slower = [str(row["layer"]) for row in layers if row["slower_than_dense"]]
    if slower:
        more = f" and {len(slower) - MOST_NAMED} more" if len(slower) > MOST_NAMED else ""
        text += f" In the fast file slower than those they replace: {', '.join(slower[:MOST_NAMED])}{more}."
    if layers and all(row["slower_than_dense"] is None for row in layers):
        text += " No layer is factorized."
    agreement = accuracy.get(ModelFile.FAST, {}).get("agreement_with_exact")
    if agreement is not None:
        text += f" The fast file's answers agree with the evaluated network's to {agreement:.1%}"
        text += "." if agreement >= LEAST_AGREEMENT else ": too little for qaf export, unless forced."
    if (others_share or 0.0) > BUSY_SHARE:
        text += (
            f" Other programs used {others_share:.0%} of the processors meanwhile: the intervals are wider "
            "for it. Measure again when the machine is quiet."
        )
    return text


def _tell_ratio(file: str, ratio: Mapping[str, float]) -> str:
    faster, noise = "as fast as", ", within the noise of these rounds"
    if not ratio["low"] <= 1.0 <= ratio["high"]:
        faster, noise = "slower than" if ratio["low"] > 1.0 else "faster than", ""
    return f"The {file} is {faster} dense INT8{noise}: it takes {ratio['value']:.2f} times as long."


def keep_latency(store: Store, run_id: str, result: Mapping[str, Any], file_name: str) -> None:
    """Write a measurement into the run's folder and its rows into the run's result."""
    write_json(store.run_folder(run_id) / file_name, result, for_people=True)
    kept = [row for row in store.run(run_id).latencies if row.get("source") != result["source"]]
    rows = [
        {
            "model": name,
            "source": result["source"],
            "threads": result["machine"]["threads"],
            "batch": result["batch"],
            "processor": result["machine"]["processor"],
            "peak_memory_bytes": result["peak_memory_bytes"].get(name),
            **row,
        }
        for name, row in result["latencies"].items()
    ]
    store.add_to_result(run_id, {"latencies": [*map(dict, kept), *rows]})


def read_latency(folder: Path, file_name: str = FILE_NAME) -> dict[str, Any] | None:
    """The measurement kept in a run's folder; None if there is none or it is damaged."""
    told = read_json(folder / file_name)
    try:
        from_plain(_Measurement, told)
    except (TypeError, ValueError):
        return None
    return dict(told) if told["schema_version"] == SCHEMA_VERSION else None


# What screens read of a measurement.


@dataclass(frozen=True, kw_only=True)
class _Times:
    median_ms: float
    p5_ms: float
    p95_ms: float
    n: int


@dataclass(frozen=True, kw_only=True)
class _Ratio:
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Judged:
    value: float
    n: int
    metric: str | None = None
    drop: float | None = None
    agreement_with_exact: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Layer:
    layer: str
    structure: str | None = None
    dense_int8_ms: float | None = None
    factorized_int8_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Energy:
    joules: Mapping[str, float] | None = None
    images: int = 1
    reason: str | None = None
    modelled: Mapping[str, float | str | None] | None = None


@dataclass(frozen=True, kw_only=True)
class _Machine:
    processor: str
    onnxruntime: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    schema_version: int
    source: str
    threads: int
    batch: int
    verdict: str
    machine: _Machine
    latencies: Mapping[str, _Times]
    ratios: Mapping[str, _Ratio] | None = None
    ratio_to_dense_int8: _Ratio | None = None
    peak_memory_bytes: Mapping[str, int | None] | None = None
    accuracy: Mapping[str, _Judged] | None = None
    energy: _Energy | None = None
    layers: tuple[_Layer, ...] | None = None
    failed: Mapping[str, str] | None = None
    same_answers: Mapping[str, float] | None = None
    compared_images: int | None = None
    measured_at: float = 0.0
