"""The robustness check of a run, kept with it as ``robustness.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qaf_core.errors import WorkspaceError
from qaf_core.files import write_json
from qaf_core.runs.store.request import ROBUSTNESS_IMAGES, RobustnessRequest
from qaf_core.runs.store.store import Store

if TYPE_CHECKING:
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.store.record import JobRecord

FILE_NAME = "robustness.json"
FORMAT = 1


def check_run_robustness(
    store: Store,
    run_id: str,
    *,
    images: int = ROBUSTNESS_IMAGES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure both networks of a run on disturbed and odd images, and keep the result with the run.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        images: At most so many evaluation images, spread evenly.
        seed, progress: As in ``check_robustness``.

    Returns:
        What ``check_robustness`` returns, with ``format``.

    Raises:
        WorkspaceError: If the run has no compressed network, or ``images`` is out of range.
        RunCancelled: If stopped; nothing is kept.
    """
    if images < 1:
        raise WorkspaceError("number of images out of range", got=images, expected="at least 1")
    from qaf_core.pipeline.robustness import Pair, check_robustness
    from qaf_core.pipeline.tasks import find_task
    from qaf_core.runs.evidence.networks import open_networks
    from qaf_core.runs.jobs.latency import spread_images

    run = open_networks(store, run_id)
    pair = Pair(
        task=find_task(run.source.task), source=run.source, original=run.original, compressed=run.compressed
    )
    result = check_robustness(pair, spread_images(run.images, images), seed=seed, progress=progress)
    record = {"format": FORMAT, "run_id": run_id, **result}
    write_json(store.run_folder(run_id) / FILE_NAME, record, for_people=True)
    return record


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``robustness``."""
    request: RobustnessRequest = job.request
    return check_run_robustness(store, request.run, images=request.images, progress=progress)
