"""The stability check of a run's exported model, kept with the run as ``stability.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import WorkspaceError
from qaf_core.files import write_json
from qaf_core.pipeline.events import Progress
from qaf_core.runs.store.request import STABILITY_MINUTES, StabilityRequest
from qaf_core.runs.store.store import Store
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.runs.store.record import JobRecord

FILE_NAME = "stability.json"
FORMAT = 1
LONGEST_MINUTES = 24 * 60


def check_run_stability(
    store: Store,
    run_id: str,
    *,
    minutes: float = STABILITY_MINUTES,
    file: str = ModelFile.FAST,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Soak a run's exported model, restart it, damage it, fall back; keep the result with the run.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        minutes: Length of the soak.
        file: Which of the exported models.
        threads: Of one operation.
        progress: Told what it is about (stage ``stability``); may stop it.

    Returns:
        What ``check_stability`` returns, with ``format``, ``file`` and ``minutes``.

    Raises:
        WorkspaceError: If the run has no compressed network or no such file, or ``minutes`` is out of range.
        ModelError: If ONNX cannot express the network.
        RunCancelled: If stopped; nothing is kept.
    """
    if not 0 < minutes <= LONGEST_MINUTES:
        raise WorkspaceError(
            "minutes out of range",
            got=minutes,
            expected=say("up to {most:,}", most=LONGEST_MINUTES),
        )
    from qaf_core.deploy.runtime.soak import check_stability
    from qaf_core.runs.jobs.exported_models import prepare_models

    progress = progress or Progress()
    progress.step("stability", "Writing the models")
    models = prepare_models(store, run_id)
    if file not in models.paths:
        raise WorkspaceError("no such exported model", got=file, expected=", ".join(models.paths))
    progress.step("stability", say("Running {file} for {minutes:g} minutes", file=file, minutes=minutes))
    result = check_stability(
        models.paths[file],
        models.paths[ModelFile.ORIGINAL],
        (1, *models.source.input_shape),
        seconds=60 * minutes,
        threads=threads,
        should_stop=progress.stopped,
    )
    record = {"format": FORMAT, "run_id": run_id, "file": file, "minutes": minutes, **result}
    write_json(store.run_folder(run_id) / FILE_NAME, record, for_people=True)
    return record


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``stability``."""
    request: StabilityRequest = job.request
    return check_run_stability(
        store, request.run, minutes=request.minutes, file=request.file, progress=progress
    )
