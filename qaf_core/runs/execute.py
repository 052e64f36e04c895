"""One compression run from its request to its stored result."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qaf_core.data.datasets import ImageSet, load_images, to_batches
from qaf_core.data.models import ModelSource, build_model, find_model
from qaf_core.errors import PlanError, QafError, RunCancelled
from qaf_core.network.cost import Cost, original_cost, plan_cost
from qaf_core.network.inventory import LayerInfo, take_inventory
from qaf_core.network.plan import LayerPlan, Plan, validate_plan
from qaf_core.pipeline.compress import Compression, CompressOptions, LayerOutcome, compress_network
from qaf_core.pipeline.evaluate import Evaluation, evaluate, paired_drop, predict
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.baseline import baseline_path, read_predictions, write_predictions
from qaf_core.runs.environment import describe_environment, peak_memory_bytes
from qaf_core.runs.progress import Recorder, StopSignal
from qaf_core.runs.record import CANCELLED, COMPLETED, FAILED, RunRecord
from qaf_core.runs.request import RunRequest
from qaf_core.runs.store import Store
from qaf_core.runs.workspace import write_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

CALIBRATION_IMAGES = 512
CALIBRATION_IMAGES_GIVEN = 1024
BATCH_SIZE = 256


class RunFailed(Exception):
    """A fault of ours, not of the input; says in one line what happened and where the traceback lies."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a run works on."""

    source: ModelSource
    model: nn.Module
    inventory: tuple[LayerInfo, ...]
    plan: Plan
    images: ImageSet
    calibration: Tensor


def execute_run(
    store: Store,
    run_id: str,
    on_event: Callable[[RunEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Execute a claimed run and store how it ended.

    A stop keeps what is done: the layers solved so far stay compressed, the others original, and that
    network is evaluated and stored as the result of a ``cancelled`` run.

    Args:
        store: The run store.
        run_id: A run this process has claimed.
        on_event: Told of every event kept.
        should_stop: Another reason to stop than a request in the store.

    Returns:
        The object that ``qaf compress --json`` prints.

    Raises:
        QafError: If the input cannot be used; the run is ``failed``.
        RunFailed: If anything else goes wrong; the run is ``failed``, the traceback in its folder.
    """
    recorder = Recorder(store, run_id, on_event)
    stop = StopSignal(store, run_id, should_stop)
    try:
        record = store.run(run_id)
        result = _execute(store, record, recorder, stop)
    except RunCancelled:
        result = {**_header(store.run(run_id), CANCELLED), "seconds": {"total": recorder.elapsed_seconds}}
    except QafError as error:
        store.finish(run_id, FAILED, error=str(error))
        raise
    except Exception as error:
        message = _keep_traceback(store, run_id, error)
        store.finish(run_id, FAILED, error=message)
        raise RunFailed(message) from error
    except KeyboardInterrupt:
        store.finish(run_id, CANCELLED, error="Stopped before the layers done so far could be evaluated.")
        raise
    store.finish(run_id, result["status"], result)
    return result


def _execute(store: Store, record: RunRecord, recorder: Recorder, stop: StopSignal) -> dict[str, Any]:
    request = record.request
    recorder.stage("loading", f"Loading {request.model}", 0.0)
    subject = _load(request, recorder, stop)
    before, original_predictions, seconds_before = _evaluate_original(
        store.workspace, subject, recorder, stop
    )
    recorder.evaluated("original", before)
    compression = _compress(store, record, subject, recorder, stop)
    began = time.monotonic()
    after, drop, interval = _evaluate_compressed(subject, compression, original_predictions, recorder)
    recorder.evaluated("compressed", after)
    seconds_after = time.monotonic() - began
    recorder.stage("saving", "Saving the packed model")
    done = plan_done(subject.plan, compression.layers)
    file = _save(store.run_folder(record.id), record, subject, compression, done)
    status = CANCELLED if compression.status == CANCELLED else COMPLETED
    return {
        **_header(record, status),
        "data": {"evaluation": subject.images.name, "calibration_images": len(subject.calibration)},
        "baseline": before,
        "compressed": after,
        "drop": drop,
        "drop_ci95": interval,
        "cost": _cost(plan_cost(subject.inventory, done)),
        "baseline_cost": _cost(original_cost(subject.inventory)),
        "layers": [_layer_row(outcome) for outcome in compression.layers],
        "seconds": {
            "factorize": compression.seconds.get("factorize", 0.0),
            "calibrate": compression.seconds.get("calibrate", 0.0),
            "evaluate": seconds_before + seconds_after,
            "total": recorder.elapsed_seconds,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "environment": describe_environment(),
        "file": file,
    }


def _header(record: RunRecord, status: str) -> dict[str, Any]:
    request = record.request
    return {
        "run_id": record.id, "status": status, "name": request.name, "model": request.model,
        "method": request.method, "plan": dict(request.plan), "seed": request.seed,
    }  # fmt: skip


def _load(request: RunRequest, recorder: Recorder, stop: StopSignal) -> Subject:
    source = find_model(request.model, weights=None if request.weights is None else Path(request.weights))
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    plan = Plan.from_dict(request.plan)
    if plan.model != request.model:
        raise PlanError(
            "the plan is for another model",
            got=plan.model,
            expected=request.model,
            remedy="make one for this model, for instance with --ratio and --bits",
        )
    validate_plan(plan, inventory)
    recorder.stage("loading", "Loading images", 0.5)
    images = load_images(request.data, source, split="evaluation", limit=request.images, seed=request.seed)
    if stop():
        raise RunCancelled
    own = request.calibration is not None and request.calibration != "builtin"
    taken = load_images(
        request.calibration or request.data,
        source,
        split="calibration",
        limit=CALIBRATION_IMAGES_GIVEN if own else CALIBRATION_IMAGES,
        seed=request.seed,
    )
    calibration = torch.cat([batch for batch, _ in to_batches(taken, source, BATCH_SIZE)])
    return Subject(
        source=source, model=model, inventory=inventory, plan=plan, images=images, calibration=calibration
    )


def _evaluate_original(
    workspace: Path, subject: Subject, recorder: Recorder, stop: StopSignal
) -> tuple[dict[str, Any], NDArray[Any], float]:
    """The original's evaluation, its predictions, and the seconds that took."""
    began = time.monotonic()
    message = f"Evaluating the original on {len(subject.images.labels):,} images"
    recorder.stage("baseline", message, 0.0)
    path = baseline_path(workspace, subject.model, subject.source, subject.images)
    predictions = read_predictions(path, len(subject.images.labels))
    if predictions is None:
        predictions = predict(subject.model, _batches(subject, recorder, "baseline", message, stop))
        write_predictions(path, predictions)
    evaluation = evaluate(predictions, subject.images.labels, subject.source.classes)
    return _evaluation(evaluation), predictions, time.monotonic() - began


def _evaluate_compressed(
    subject: Subject, compression: Compression, original: NDArray[Any], recorder: Recorder
) -> tuple[dict[str, Any], float, list[float]]:
    """The compressed network's evaluation, the drop and its interval."""
    message = f"Evaluating the compressed network on {len(subject.images.labels):,} images"
    recorder.stage("evaluating", message, 0.0)
    labels = subject.images.labels
    model = compression.model
    predictions = predict(model, _batches(subject, recorder, "evaluating", message))
    evaluation = evaluate(predictions, labels, subject.source.classes, original_predictions=original)
    drop, interval = paired_drop(_classes_of(original) == labels, _classes_of(predictions) == labels)
    return _evaluation(evaluation), float(drop), [float(bound) for bound in interval]


def _compress(
    store: Store, record: RunRecord, subject: Subject, recorder: Recorder, stop: StopSignal
) -> Compression:
    positions = {row.name: index for index, row in enumerate(subject.inventory)}

    def keep(event: RunEvent) -> None:
        if event.kind == "layer_finished" and event.layer is not None:
            row = {"name": event.layer, **event.data}
            store.put_layer(record.id, positions.get(event.layer, 0), row, {})
        recorder(event)

    compression = compress_network(
        subject.model,
        subject.plan,
        subject.inventory,
        method=record.request.method,
        calibration=subject.calibration,
        options=CompressOptions(),
        on_event=keep,
        should_stop=stop,
    )
    recorder.flush()
    for outcome in compression.layers:
        details = {"histograms": dict(outcome.histograms)}
        store.put_layer(record.id, positions.get(outcome.name, 0), _layer_row(outcome), details)
    return compression


def plan_done(plan: Plan, outcomes: Sequence[LayerOutcome]) -> Plan:
    """The plan as far as it was carried out: layers without an outcome stay as they were."""
    solved = {outcome.name for outcome in outcomes}
    rows = (
        row if row.name in solved or row.structure == "keep" else LayerPlan(name=row.name, structure="keep")
        for row in plan.layers
    )
    return replace(plan, layers=tuple(rows))


def _save(
    folder: Path, record: RunRecord, subject: Subject, compression: Compression, done: Plan
) -> dict[str, Any] | None:
    return None


def _batches(
    subject: Subject, recorder: Recorder, stage: str, message: str, stop: StopSignal | None = None
) -> Any:
    count = -(-len(subject.images.labels) // BATCH_SIZE)
    batches = to_batches(subject.images, subject.source, BATCH_SIZE)
    return recorder.track(batches, count, stage, message, stop)


def _classes_of(predictions: NDArray[Any]) -> NDArray[Any]:
    """Class numbers, whether predictions are those already or a row of scores per image."""
    return predictions if predictions.ndim == 1 else np.argmax(predictions, axis=1)


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "metric": evaluation.metric,
        "value": float(evaluation.value),
        "n": int(evaluation.n),
        "ci95": [float(bound) for bound in evaluation.ci95],
        "per_class": {name: float(value) for name, value in evaluation.per_class.items()},
        "agreement": None if evaluation.agreement is None else float(evaluation.agreement),
    }


def _cost(cost: Cost) -> Mapping[str, Any]:
    return asdict(cost)


def _layer_row(outcome: LayerOutcome) -> dict[str, Any]:
    fields = (
        "name", "structure", "rank", "bits", "relative_error", "float_relative_error", "status", "iterations",
        "seconds", "output_error",
    )  # fmt: skip
    row = {field: getattr(outcome, field) for field in fields}
    return {**row, "status": getattr(row["status"], "value", row["status"])}


def _keep_traceback(store: Store, run_id: str, error: Exception) -> str:
    path = store.run_folder(run_id) / "traceback.txt"
    summary = " ".join(str(error).split())[:200] or "no message"
    try:
        write_file(path, "".join(traceback.format_exception(error)).encode())
    except QafError:
        return f"Internal error: {type(error).__name__}: {summary}."
    return f"Internal error: {type(error).__name__}: {summary}. Details are in {path}."
