"""One compression run from its request to its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.catalogue import build_model
from qaf_core.deploy.packed.read import load_packed, without_numbers
from qaf_core.deploy.packed.write import save_packed
from qaf_core.errors import RunCancelled
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.rules import plan_done
from qaf_core.pipeline.check.equivalence import file_differs
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.compress.solver_pool import spare_cores
from qaf_core.pipeline.events import Progress, RunEvent, RunStatus
from qaf_core.runs.estimate import EVENT, count_work, read_history
from qaf_core.runs.jobs.check import checked, needs_check, refuse_serious
from qaf_core.runs.jobs.environment import describe_environment, peak_memory_bytes
from qaf_core.runs.jobs.finetune import finetune_parent
from qaf_core.runs.jobs.images import load_evaluation_images
from qaf_core.runs.jobs.inputs import (
    Made,
    Subject,
    compare_networks,
    load_subject,
    packed_card,
    result_header,
)
from qaf_core.runs.store.record import JobRecord, RunRecord
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.said import say, templates_of

if TYPE_CHECKING:
    from torch import nn


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """Compress a network, or fine-tune a compressed one, and evaluate what came of it.

    A stop keeps what is done: the layers solved so far stay compressed, the others original, and that
    network is evaluated and stored as the result of a ``cancelled`` run.

    Returns:
        The object that ``qaf compress --json`` prints.
    """
    record = store.run(job.id)
    try:
        return _execute(store, record, progress)
    except RunCancelled:
        return {**result_header(record, RunStatus.CANCELLED), "seconds": {"total": progress.elapsed_seconds}}


def _execute(store: Store, record: RunRecord, progress: Progress) -> dict[str, Any]:
    progress.stage("loading", say("Loading {model}", model=record.model), 0.0)
    subject = load_subject(record.request, store.workspace, progress)
    images = None if subject.images is None else len(subject.images)
    work = count_work(
        record.request, subject.inventory, read_history(store, record.request), images=images,
        calibration=len(subject.calibration),
    )  # fmt: skip
    progress.send(EVENT, **work.to_dict())
    checks = _check(store.workspace, record.request, subject, progress)
    make = _compress if record.request.finetune is None else finetune_parent
    outcome = make(store, record, subject, progress)
    progress.stage("saving", "Saving the packed model")
    path = store.run_folder(record.id) / PACKED_NAME
    anew = _build_anew(subject)
    file_bytes = save_packed(path, outcome.model, subject.inventory, packed_card(record, subject), anew)
    # What is evaluated is the file, read back: so the accuracy is that of exactly these bytes.
    packed = load_packed(path, anew)
    began = progress.elapsed_seconds
    comparison = compare_networks(store, record, subject, packed, progress)
    of_file = file_differs(outcome.model, packed, subject.calibration[:2])
    notes = [*outcome.notes, *(note for note in (subject.source.weights_note, of_file) if note is not None)]
    comparison["data"]["warnings"] = [*comparison["data"]["warnings"], *map(str, notes)]
    comparison["data"]["said"] |= templates_of(*notes)
    done = plan_done(subject.plan, [str(row["name"]) for row in outcome.layers])
    return {
        **result_header(record, outcome.status),
        **comparison,
        "checks": checks,
        "cost": plan_cost(subject.inventory, done).to_dict(),
        "baseline_cost": original_cost(subject.inventory).to_dict(),
        "layers": list(outcome.layers),
        **outcome.extra,
        "seconds": {
            **outcome.seconds,
            "evaluate": progress.elapsed_seconds - began,
            "total": progress.elapsed_seconds,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "environment": describe_environment(),
        "file": {"path": str(path.relative_to(store.workspace)), "size_bytes": file_bytes},
    }


def _build_anew(subject: Subject) -> nn.Module:
    """The original network with other numbers: a user's code is run again, as whoever opens the file will."""
    if ":" in subject.source.architecture:
        return build_model(subject.source, with_weights=False)
    return without_numbers(subject.model)


def _check(
    workspace: Path, request: RunRequest, subject: Subject, progress: Progress
) -> dict[str, Any] | None:
    """Look whether the original does what it should; None where that is not asked for or not needed.

    Raises:
        DataError: If it clearly does not.
    """
    if not request.check or not needs_check(subject.source, request.data):
        return None

    progress.stage("loading", "Checking the original: class order and preparation of images", 0.8)
    images = subject.images
    if images is None:
        images = load_evaluation_images(request, subject.source, workspace)
    plausibility = checked(
        workspace,
        subject.model,
        subject.source,
        images,
        macs=sum(row.macs for row in subject.inventory),
        on_batch=progress.check,
    )
    refuse_serious(plausibility)
    return plausibility.to_dict()


def _compress(store: Store, record: RunRecord, subject: Subject, progress: Progress) -> Made:
    positions = {row.name: index for index, row in enumerate(subject.inventory)}

    def keep(event: RunEvent) -> None:
        if event.kind == "layer_finished" and event.layer is not None:
            row = {"name": event.layer, **event.data}
            store.put_layer(record.id, positions[event.layer], row, {})

    compression = compress_network(
        subject.model,
        subject.plan,
        subject.inventory,
        method=record.method,
        calibration=subject.calibration,
        options=subject.options,
        progress=progress.with_listener(keep),
        cache=SolveCache(store.workspace / "cache" / "layers", helpers=spare_cores()),
    )
    progress.flush()
    if compression.status == RunStatus.CANCELLED and not compression.layers:
        raise RunCancelled
    for outcome in compression.layers:
        details = {"histograms": outcome.histograms}
        store.put_layer(record.id, positions[outcome.name], outcome.row.to_dict(), details)
    return Made(
        model=compression.model,
        layers=tuple(outcome.row.to_dict() for outcome in compression.layers),
        status=compression.status,
        seconds=compression.seconds,
        notes=compression.notes,
    )
