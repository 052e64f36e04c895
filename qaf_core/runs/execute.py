"""One compression run from its request to its stored result."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qaf_core.data.datasets import ImageSet, to_batches
from qaf_core.data.models import ModelSource, build_model, find_model
from qaf_core.data.splitting import describe_split
from qaf_core.errors import PlanError, QafError, RunCancelled
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.cost import original_cost, plan_cost
from qaf_core.network.inventory import LayerInfo, take_inventory
from qaf_core.network.plan import LayerPlan, Plan, validate_plan
from qaf_core.pipeline.ahead import spare_cores
from qaf_core.pipeline.cache import SolveCache
from qaf_core.pipeline.compress import Compression, CompressOptions, LayerOutcome, compress_network
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.plausibility import TASK as CHECKED_TASK
from qaf_core.pipeline.tasks import Arrays, Task, find_task, predict
from qaf_core.runs.artifact import PACKED_NAME, load_packed, save_packed
from qaf_core.runs.baseline import baseline_path, read_predictions, write_predictions
from qaf_core.runs.checks import checked, needs_check, refuse_serious
from qaf_core.runs.environment import describe_environment, peak_memory_bytes
from qaf_core.runs.images import BATCH_SIZE, load_evaluation_images, load_run_images
from qaf_core.runs.previews import write_preview
from qaf_core.runs.progress import Recorder, StopSignal
from qaf_core.runs.record import CANCELLED, COMPLETED, FAILED, RunRecord
from qaf_core.runs.request import RunRequest
from qaf_core.runs.store import Store
from qaf_core.runs.workspace import write_file

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST_CLASS_NAMES = 300  # characters of all together that a packed file may spend on them
MOST_SKIPPED_NAMED = 100
TELL_SECONDS = 0.25


class RunFailed(Exception):
    """A fault of ours, not of the input; says in one line what happened and where the traceback lies."""


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
    recorder.stage("loading", f"Loading {record.model}", 0.0)
    subject = _load(record.request, store.workspace, recorder, stop)
    checks = _check(store.workspace, record.request, subject, recorder, stop)
    compression = _compress(store, record, subject, recorder, stop)
    recorder.stage("saving", "Saving the packed model")
    path = store.run_folder(record.id) / PACKED_NAME
    file_bytes = save_packed(path, compression.model, subject.inventory, _card(record, subject))
    # What is evaluated is the file, read back: so the accuracy is that of exactly these bytes.
    packed = load_packed(path, copy.deepcopy(subject.model))
    began = recorder.elapsed_seconds
    comparison = _compare(store, record, subject, packed, recorder)
    done = plan_done(subject.plan, compression.layers)
    return {
        **_header(record, CANCELLED if compression.status == CANCELLED else COMPLETED),
        **comparison,
        "checks": checks,
        "cost": plan_cost(subject.inventory, done).to_dict(),
        "baseline_cost": original_cost(subject.inventory).to_dict(),
        "layers": [_layer_row(outcome) for outcome in compression.layers],
        "seconds": {
            "factorize": compression.seconds["factorize"],
            "calibrate": compression.seconds["calibrate"],
            "evaluate": recorder.elapsed_seconds - began,
            "total": recorder.elapsed_seconds,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "environment": describe_environment(),
        "file": {"path": str(path.relative_to(store.workspace)), "size_bytes": file_bytes},
    }


def _header(record: RunRecord, status: str) -> dict[str, Any]:
    request = record.request
    return {
        "run_id": record.id, "status": status, "name": request.name, "model": request.model,
        "method": request.method, "plan": dict(request.plan), "seed": request.seed,
    }  # fmt: skip


def _load(request: RunRequest, workspace: Path, recorder: Recorder, stop: StopSignal) -> Subject:
    source = find_model(
        request.model,
        request.weights,
        classes=request.classes,
        preprocessing=request.preprocessing,
        workspace=workspace,
    )
    model = build_model(source)
    task = find_task(source.task)  # after the model is built: its module may register a task of its own
    inventory = take_inventory(model, source.input_shape)
    plan = Plan.from_dict(request.plan)
    validate_plan(plan, inventory, model=request.model)
    options = read_options(plan)
    if stop():
        raise RunCancelled
    recorder.stage("loading", "Loading images", 0.5)
    calibration, images = load_run_images(request, source, workspace, _tell_reading(recorder, stop))
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


def _check(
    workspace: Path, request: RunRequest, subject: Subject, recorder: Recorder, stop: StopSignal
) -> dict[str, Any] | None:
    """Look whether the original does what it should; None where that is not asked for or not needed.

    Raises:
        DataError: If it clearly does not.
    """
    if not request.check or not needs_check(subject.source, request.data):
        return None

    def stop_if_asked() -> None:
        if stop():
            raise RunCancelled

    recorder.stage("loading", "Checking the original: class order and preparation of images", 0.8)
    images = subject.images
    if images is None:
        images = load_evaluation_images(request, subject.source, workspace)
    found = checked(
        workspace,
        subject.model,
        subject.source,
        images,
        macs=sum(row.macs for row in subject.inventory),
        on_batch=stop_if_asked,
    )
    refuse_serious(found)
    return found


def read_options(plan: Plan) -> CompressOptions:
    """The options a plan carries by name, the solver's and the compression's.

    Raises:
        QafError: If one is unknown or out of range.
    """
    of_solver = {item.name for item in fields(SolverOptions)}
    of_compression = {item.name for item in fields(CompressOptions)} - {"solver"}
    unknown = sorted(set(plan.options) - of_solver - of_compression)
    if unknown:
        known = ", ".join(sorted(of_solver | of_compression))
        raise PlanError("the plan has unknown options", got=", ".join(unknown), expected=known)
    solver = SolverOptions(**{key: value for key, value in plan.options.items() if key in of_solver})
    own = {key: value for key, value in plan.options.items() if key in of_compression}
    return CompressOptions(solver=solver, **own)


def _tell_reading(recorder: Recorder, stop: StopSignal) -> Callable[[int, int], None]:
    """Tells a few times a second how many images are read, and stops where that is asked."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            if stop():
                raise RunCancelled
            recorder.stage("loading", f"Reading {total:,} images", done / total)

    return tell


def _compare(
    store: Store, record: RunRecord, subject: Subject, packed: nn.Module, recorder: Recorder
) -> dict[str, Any]:
    """Both networks on the same images: evaluations, drop and its interval, ready for JSON.

    The original comes second to the layers, so that the first curve appears at once.
    """
    images = subject.images
    if images is None:
        images = load_evaluation_images(record.request, subject.source, store.workspace)
    task, targets = subject.task, subject.task.collate(images)
    kept = baseline_path(store.workspace, subject.model, subject.source, images)
    original = read_predictions(kept)
    if original is None:
        original = _predict(subject, subject.model, images, recorder, "baseline", "the original")
        write_predictions(kept, original)
    before = task.metric(original, targets, images.classes).to_dict()
    recorder.evaluated("original", before)
    predictions = _predict(subject, packed, images, recorder, "evaluating", "the compressed network")
    measured = task.metric(predictions, targets, images.classes)
    after = replace(measured, agreement=task.agreement(original, predictions)).to_dict()
    recorder.evaluated("compressed", after)
    drop, interval = task.compare(original, predictions, targets)
    if task.name == CHECKED_TASK:
        write_preview(store.run_folder(record.id), subject.model, packed, subject.source, images)
    return {
        "data": _describe_images(images, subject.calibration_set),
        "baseline": before,
        "compressed": after,
        "drop": drop,
        "drop_ci95": list(interval),
    }


def _describe_images(images: ImageSet, calibration: ImageSet) -> dict[str, Any]:
    """Which images were used, how they were told apart, and which could not be read."""
    skipped = [asdict(image) for image in (*images.skipped, *calibration.skipped)]
    return {
        "evaluation": images.name,
        "calibration": f"{calibration.name}, {len(calibration):,} images",
        "split": images.split or describe_split(len(images), len(calibration), "drawn separately"),
        "skipped": skipped[:MOST_SKIPPED_NAMED],
        "skipped_count": len(skipped),
    }


def _predict(
    subject: Subject, model: nn.Module, images: ImageSet, recorder: Recorder, stage: str, what: str
) -> Arrays:
    message = f"Evaluating {what} on {len(images):,} images"
    recorder.stage(stage, message, 0.0)
    count = -(-len(images) // BATCH_SIZE)
    batches = to_batches(images, subject.source, BATCH_SIZE)
    return predict(subject.task, model, recorder.track(batches, count, stage, message))


def _compress(
    store: Store, record: RunRecord, subject: Subject, recorder: Recorder, stop: StopSignal
) -> Compression:
    positions = {row.name: index for index, row in enumerate(subject.inventory)}

    def keep(event: RunEvent) -> None:
        if event.kind == "layer_finished" and event.layer is not None:
            row = {"name": event.layer, **event.data}
            store.put_layer(record.id, positions[event.layer], row, {})
        recorder(event)

    compression = compress_network(
        subject.model,
        subject.plan,
        subject.inventory,
        method=record.method,
        calibration=subject.calibration,
        options=subject.options,
        on_event=keep,
        should_stop=stop,
        cache=SolveCache(store.workspace / "cache" / "layers"),
        helpers=spare_cores(),
    )
    recorder.flush()
    if compression.status == CANCELLED and not compression.layers:
        raise RunCancelled
    for outcome in compression.layers:
        details = {"histograms": outcome.histograms}
        store.put_layer(record.id, positions[outcome.name], _layer_row(outcome), details)
    return compression


def plan_done(plan: Plan, outcomes: Sequence[LayerOutcome]) -> Plan:
    """The plan as far as it was carried out: layers without an outcome stay as they were."""
    solved = {outcome.name for outcome in outcomes}
    rows = (row if row.name in solved else LayerPlan(name=row.name, structure="keep") for row in plan.layers)
    return replace(plan, layers=tuple(rows))


def _card(record: RunRecord, subject: Subject) -> dict[str, Any]:
    """What the packed file tells besides its layers."""
    source = subject.source
    named = sum(map(len, source.classes)) <= LONGEST_CLASS_NAMES
    own = source.preprocessing
    return {
        "model": source.id,
        "architecture": source.architecture,
        "method": record.method,
        "activation_bits": subject.plan.activation_bits,
        "seed": subject.plan.seed,
        "input_shape": source.input_shape,
        "mean": source.mean,
        "std": source.std,
        "task": source.task,
        **({} if own is None else {"preprocessing": own.to_dict()}),
        "classes": source.classes if named else len(source.classes),
    }


def _layer_row(outcome: LayerOutcome) -> dict[str, Any]:
    return {key: value for key, value in outcome.to_dict().items() if key != "histograms"}


def _keep_traceback(store: Store, run_id: str, error: Exception) -> str:
    path = store.run_folder(run_id) / "traceback.txt"
    summary = " ".join(str(error).split())[:200] or "no message"
    if isinstance(error, MemoryError) or "can't allocate memory" in summary:
        summary = "memory ran out; choose a smaller model or fewer images, or close other programs"
    try:
        write_file(path, "".join(traceback.format_exception(error)).encode())
    except QafError:
        return f"Internal error: {type(error).__name__}: {summary}."
    return f"Internal error: {type(error).__name__}: {summary}. Details are in {path}."
