"""The check of an original: by itself, or before a run, then once for the same weights and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.formats.zip import add_archive
from qaf_core.data.load import Split, has_parts, load_images
from qaf_core.data.models.catalogue import build_model
from qaf_core.data.workspace.registry import add_weights
from qaf_core.errors import DataError
from qaf_core.files import ContentCache, digest_of, read_json
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.pipeline.check.classifier import MOST_IMAGES, check_original
from qaf_core.pipeline.check.plausibility import Plausibility
from qaf_core.pipeline.events import Progress
from qaf_core.records import from_plain
from qaf_core.runs.jobs.baseline import predictions_key
from qaf_core.runs.store.request import CheckRequest, source_of
from qaf_core.text.said import said_of, say

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.store import Store

# Raised whenever the check may come to another result.
_FORMAT = 2
CHUNK_BYTES = 1 << 20


MOST_SKIPPED_NAMED = 100
#: Which part of data that have two is looked at.
_SPLITS = {
    "calibration": "the part that calibrates is looked at; runs are evaluated on the other one.",
    "evaluation": "the part that runs are evaluated on is looked at; they calibrate with the other one.",
}


def check_model(request: CheckRequest, workspace: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Find wrong class order (of classifiers) and wrong preparation of images.

    Returns:
        The object that ``qaf check --json`` prints.

    Raises:
        QafError: If the model or the images cannot be used.
        RunCancelled: If stopped.
    """
    from qaf_core.pipeline.preview import preview_predictions

    progress = progress or Progress()
    progress.step("check", "Running the original on the images")
    source = source_of(request, workspace)
    limit = MOST_IMAGES if request.images is None else request.images
    # Of the built-in images those for calibration: the others are for measuring.
    chosen, cache = request.data or source.data or "builtin", workspace / "cache"
    split: Split = "calibration" if chosen == "builtin" else "evaluation"
    images = load_images(chosen, source, split=split, limit=limit, cache=cache)
    network = build_model(source)
    macs = sum(row.macs for row in take_inventory(network, source.input_shape))
    plausibility = check_original(network, source, images, macs=macs, images=limit, on_batch=progress.check)
    report = {
        "model": request.model,
        "data": images.name,
        "plausible": plausibility.serious is None,
        "split": _SPLITS[split] if has_parts(chosen, cache) else "",
        "skipped": [asdict(image) for image in images.skipped[:MOST_SKIPPED_NAMED]],
        "skipped_count": len(images.skipped),
        "weights_note": source.weights_note,
        **plausibility.to_dict(),
    }
    if request.preview:
        report["preview"] = preview_predictions(network, source, images)
    return report


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``check``: stores what was uploaded for it first, and tells where, under ``stored``."""
    request: CheckRequest = job.request
    request = _store_uploads(request, store.workspace, progress)
    report = check_model(request, store.workspace, progress)
    return {**report, "stored": {"weights": request.weights, "data": request.data}}


def _store_uploads(request: CheckRequest, workspace: Path, progress: Progress) -> CheckRequest:
    """Check and keep the uploads of a request; it then names what is kept."""
    try:
        if (weights := request.uploads.get("weights")) is not None:
            chunks = _chunks(Path(weights["path"]), progress)
            request = replace(request, weights=str(add_weights(workspace, weights["name"], chunks)))
        if (data := request.uploads.get("data")) is not None:

            def report(written: int, total: int) -> None:
                progress.step("images", "Unpacking the images", written / max(1, total))

            kept = add_archive(workspace, Path(data["path"]), data["name"], on_written=report)
            request = replace(request, data=str(kept))
        return request
    finally:
        for upload in request.uploads.values():
            Path(upload["path"]).unlink(missing_ok=True)


def _chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    total, read = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            progress.step("weights", "Storing and checking the weights", read / max(1, total))
            read += len(chunk)
            yield chunk


def needs_check(source: ModelSource, data: str) -> bool:
    """Whether a run is checked: not for the shipped networks on the images they are shipped with."""
    return not (source.shipped and data == "builtin")


def checked(
    workspace: Path,
    model: nn.Module,
    source: ModelSource,
    images: ImageSet,
    *,
    macs: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Plausibility:
    """What `check_original` finds, from an earlier check of the same or carried out now.

    Args:
        workspace: Where results are kept.
        model, source: The original.
        images: Labelled images.
        macs: Multiplications for one image.
        on_batch: Called before every batch; may raise to end the check.
    """
    targets = [
        part
        for name, values in (("labels", images.labels), *sorted(images.targets.items()))
        for part in ([name, str(values.dtype), *values.shape], values.tobytes())
    ]
    parts = [_FORMAT, source.classes, source.accuracy, macs, predictions_key(model, source, images)]
    cache, key = ContentCache(workspace / "cache" / "checks"), digest_of(parts, *targets)
    plausibility = cache.read(key, lambda path: from_plain(Plausibility, read_json(path)))
    if plausibility is None:
        plausibility = check_original(model, source, images, macs=macs, on_batch=on_batch)
        cache.keep(key, plausibility.to_dict())
    return plausibility


def refuse_serious(plausibility: Plausibility) -> None:
    """Stop a run whose original is not what it should be.

    Raises:
        DataError: With the first serious finding and what to do about it.
    """
    if plausibility.serious is not None:
        serious = plausibility.serious
        sentence, remedy = (said_of(line, serious.said) for line in (serious.sentence, serious.remedy))
        raise DataError(
            sentence, remedy=say("{remedy} To compress it all the same, pass --no-check", remedy=remedy)
        )
