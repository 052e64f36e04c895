"""Export of a stored run: its packed file, or ONNX, checked on the run's own evaluation images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.load import BATCH_SIZE, to_batches
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.deploy.onnx_export.export import export_onnx, with_ranges
from qaf_core.deploy.onnx_export.export_fast import export_fast
from qaf_core.deploy.onnx_export.report import (
    FORMATS,
    PACKED,
    Check,
    ExportRejected,
    ExportReport,
    Precision,
    keep_report,
)
from qaf_core.deploy.packed.open import describe_packed, load
from qaf_core.deploy.packed.read import verify_packed
from qaf_core.deploy.runtime.target import THIS, saturates_for
from qaf_core.errors import PlanError, WeightsError, WorkspaceError
from qaf_core.files import write_file, write_json
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.runs.jobs.exported_models import range_images
from qaf_core.runs.jobs.images import load_evaluation_images, load_run_images
from qaf_core.runs.listing import refresh_row
from qaf_core.runs.store.request import ExportRequest, source_of
from qaf_core.runs.store.workspace import EXPORTS_FOLDER
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qaf_core.runs.store.record import JobRecord, RunRecord
    from qaf_core.runs.store.store import Store

SIZE_TOLERANCE = 0.01
CALIBRATION_BATCHES = 8
# What an ONNX file tells of its network.
CARD_KEYS: tuple[str, ...] = ("model", "method", "task", "mean", "std", "preprocessing", "classes")


def export_run(
    store: Store,
    run_id: str,
    path: Path,
    *,
    format: str,
    precision: str = Precision.INT8,
    target: str = THIS,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a run and keep the report in its folder.

    Args:
        store: The run store.
        run_id: A run that has a packed model.
        path: The file to write; written under a temporary name first, and only if the checks pass.
        format: ``packed`` or ``onnx``.
        precision: Of ONNX, see ``Precision``.
        target: Of ONNX with integers: for ``this`` machine's processor, or ``any``.
        force: Write the file even if a check fails.
        progress: Told what is being done (stage ``exporting``), and asked whether to stop.

    Returns:
        What was made and checked.

    Raises:
        ExportRejected: If a check fails, without ``force``; its report is kept too.
        QafError: If the run, its packed file, its images or the target cannot be used.
    """
    if format not in FORMATS:
        raise PlanError("unknown format", got=format, expected=", ".join(FORMATS))
    if precision not in tuple(Precision):
        raise PlanError("unknown precision", got=precision, expected=", ".join(Precision))
    saturates_for(target)  # refuses what is no target
    record, folder = store.run(run_id), store.run_folder(run_id)
    packed = store.packed_file(record, say("this run has no compressed network to export"))
    try:
        if format == PACKED:
            report = _export_packed(store, record, packed, path, force)
        else:
            report = _export_onnx(
                store, record, packed, path, precision, target, force, progress or Progress()
            )
    except ExportRejected as error:
        if not store.read_only:
            keep_report(folder, error.report)
        raise
    if not store.read_only:
        keep_report(folder, report)
        with contextlib.suppress(WorkspaceError):  # a full disk: the list follows later
            refresh_row(store, run_id)
    return report


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``export``."""
    request: ExportRequest = job.request
    path = Path(request.path or store.run_folder(request.run) / EXPORTS_FOLDER / request.file_name)
    report = export_run(
        store, request.run, path, format=request.format, precision=request.precision, target=request.target,
        force=request.force, progress=progress,
    ).to_dict()  # fmt: skip
    if request.path is None:
        write_json(path.with_suffix(".json"), report)
    return report


def _export_packed(store: Store, record: RunRecord, packed: Path, path: Path, force: bool) -> ExportReport:
    began = time.monotonic()
    index = verify_packed(packed)
    content = packed.read_bytes()
    predicted = None if record.cost is None else record.cost.size_bytes
    checks = [
        Check(name="checksum", passed=True, detail="every byte is as it was written"),
        _opens(store, record, packed),
    ]
    if predicted is not None:
        near = abs(predicted - len(content)) <= SIZE_TOLERANCE * len(content)
        detail = f"{len(content):,} bytes, {predicted:,} promised"
        checks.append(Check(name="size as promised, within 1 %", passed=near, detail=detail))
    report = ExportReport(
        format=PACKED,
        path=str(path),
        written=False,
        precision=None,
        target=None,
        size_bytes=len(content),
        checks=tuple(checks),
        agreement=None,
        integer_operators={},
        float_operators={},
        weights_stored_as=_widths(index["layers"]),
        any_batch=True,
        opset=None,
        seconds=time.monotonic() - began,
    )
    if not report.passed and not force:
        raise ExportRejected(report)
    write_file(path, content)
    return replace(report, written=True, seconds=time.monotonic() - began)


def _opens(store: Store, record: RunRecord, packed: Path) -> Check:
    """Whether the file opens without any weights file, as it will where it is deployed."""
    name, detail = "opens on its own", "built from what the file tells, without a weights file"
    try:
        source = describe_packed(packed)
        if ":" in source.architecture:
            detail = f"without a weights file, by the factory {source.architecture}"
            source = _source_of(store, record, packed)
        _open(packed, source)
    except WeightsError as error:
        return Check(name=name, passed=False, detail=str(error))
    return Check(name=name, passed=True, detail=detail)


def _widths(layers: list[list[object]]) -> dict[str, int]:
    """How many layers are packed at which bit-widths."""
    counts: dict[str, int] = {}
    for _, _, _, bits, _ in layers:
        widths = bits if isinstance(bits, list) else [bits]
        kind = "float16" if widths == [FLOAT.bits] else "/".join(str(width) for width in widths) + " bits"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _export_onnx(
    store: Store,
    record: RunRecord,
    packed: Path,
    path: Path,
    precision: str,
    target: str,
    force: bool,
    progress: Progress,
) -> ExportReport:
    progress.step("exporting", "Opening the packed model")
    index = verify_packed(packed)
    source = _source_of(store, record, packed)
    model = _open(packed, source)
    progress.step("exporting", "Loading the evaluation images")
    images = load_evaluation_images(record.request, source, store.workspace)
    card = {key: index[key] for key in CARD_KEYS if key in index}
    progress.step(
        "exporting", say("Writing ONNX, and comparing both networks on {count:,} images", count=len(images))
    )
    arguments: dict[str, Any] = {
        "input_shape": source.input_shape,
        "images": (batch for batch, _ in to_batches(images, source, BATCH_SIZE)),
        "card": {**card, "run": record.id},
        "target": target,
        "force": force,
    }
    if precision == Precision.FAST:
        return export_fast(
            model, path, calibration=range_images(record, source, store.workspace), **arguments
        )
    if calibration := _calibration(store, record, source, index["activation_bits"], precision):
        model = with_ranges(model, calibration)
    return export_onnx(model, path, integer=precision == Precision.INT8, **arguments)


def _source_of(store: Store, record: RunRecord, packed: Path) -> ModelSource:
    """The run's model; its weights need no longer be there."""
    request, card = record.request, describe_packed(packed)
    try:
        return source_of(request, store.workspace)
    except WeightsError:
        known = find_model(request.model, workspace=store.workspace)
        same = len(known.classes) == len(card.classes)
        return known if same else replace(known, classes=card.classes, default_data=None)


def _open(packed: Path, source: ModelSource) -> nn.Module:
    if ":" not in source.architecture:
        return load(packed)
    from qaf_core.data.models.catalogue import build_model

    # A registered factory is found through the workspace's settings, which the file cannot know.
    return load(packed, build_model(source, with_weights=False))


def _calibration(
    store: Store, record: RunRecord, source: ModelSource, activation_bits: int, precision: str
) -> list[Tensor]:
    """Calibration images, where activation ranges are still to be found."""
    if precision != Precision.INT8 or not Grid.of(activation_bits).is_float:
        return []
    images, _ = load_run_images(record.request, source, store.workspace)
    batches: Iterator[Tensor] = (batch for batch, _ in to_batches(images, source, BATCH_SIZE))
    return [batch for _, batch in zip(range(CALIBRATION_BATCHES), batches, strict=False)]
