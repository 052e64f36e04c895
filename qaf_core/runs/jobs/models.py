"""What a model is, layer by layer; and a model that is taken into the workspace's list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.catalogue import load_structure
from qaf_core.data.models.source import ModelSource
from qaf_core.data.workspace.registry import add_model
from qaf_core.runs.store.request import InspectRequest, source_of
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.store import Store


def inspect_model(request: InspectRequest, workspace: Path) -> dict[str, Any]:
    """A model's layers and graph, and what the user's files make of it; its weights need not be there.

    Returns:
        The object that ``qaf inspect --json`` prints.

    Raises:
        QafError: If there is no such model, or it cannot be built.
    """
    source = source_of(request, workspace)
    inventory, graph = load_structure(source)
    return {
        "model": request.model,
        "source": _source_row(source),
        "layers": [info.to_dict() for info in inventory],
        "graph": None if graph is None else graph.to_dict(),
    }


def _source_row(source: ModelSource) -> dict[str, Any]:
    """What the weights and the other options make of a model, for screens that load no torch."""
    return {
        "title": source.title,
        "architecture": source.architecture,
        "task": source.task,
        "classes": list(source.classes),
        "input_shape": list(source.input_shape),
        "preprocessing": source.preprocessing.to_dict(),
        "accuracy": source.accuracy,
        "weights": None if source.weights is None else str(source.weights),
        "weights_url": source.weights_url,
    }


def carry_out_inspection(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``inspect``."""
    progress.step("loading", say("Looking into {about}", about=job.request.about))
    return inspect_model(job.request, store.workspace)


def carry_out_registering(store: Store, job: JobRecord, _progress: Progress) -> dict[str, Any]:
    """The job ``register``: adds a model to the workspace's list."""
    entry = job.request
    added = add_model(
        store.workspace, model_id=entry.name, base=entry.model, weights=entry.weights, classes=entry.classes,
        preprocessing=entry.preprocessing, data=entry.data,
    )  # fmt: skip
    return {"added": added.id}
