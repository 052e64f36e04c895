"""A run's models in a folder that measures them on any device, and the result read back into the run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from qaf_core.deploy.runtime import measure_kit
from qaf_core.deploy.runtime.measure_kit import KIT_SCHEMA_VERSION, checksum
from qaf_core.deploy.runtime.model_files import COMPARED, ModelFile
from qaf_core.deploy.runtime.speed_report import DEVICE, SCHEMA_VERSION, SpeedReport
from qaf_core.deploy.runtime.target import ANY, THIS
from qaf_core.errors import WorkspaceError, escape_text
from qaf_core.files import read_json, share, write_file
from qaf_core.runs.jobs.latency import keep_latency, spread_images
from qaf_core.runs.store.workspace import EXPORTS_FOLDER
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.jobs.exported_models import RunModels
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.request import DeviceKitRequest
    from qaf_core.runs.store.store import Store

MANIFEST, INPUTS, SCRIPT, README = "manifest.json", "inputs.npz", "measure.py", "README.txt"
KEPT_MANIFESTS = "device-kit*.json"  # of every kit made of a run
RESULT_NAME = "device-latency.json"
LATENCY_FIELDS = ("median_ms", "p5_ms", "p95_ms", "n")
LARGEST_RESULT_BYTES, LARGEST_NUMBER, LONGEST_TEXT = 2**20, 1e12, 200
COMPARED_IMAGES = 64

_README = """Measure a compressed network on this device
===========================================

Run {run} of model {model}. You need Python 3.10 or later with onnxruntime {least} or later and numpy:

    pip install "onnxruntime>={least}" numpy
    python measure.py

It takes about two minutes, uses all processors (--threads N for another number), needs no network, and
writes result.json. Bring that file back to where this folder was made:

    qaf device-kit {run} --result result.json

{models}
{inputs} holds {count} images and the answers of each model where the kit was made; measure.py tells how many
of them this device agrees with. It times {batch} image(s) at a time.

{target}
"""
_TARGETS = {
    THIS: """The INT8 files are for processors like that of the machine the kit was made on. On an x86
processor without VNNI, sums of their 8-bit products may be cut off at 16 bits: answers may then be wrong.""",
    ANY: """The INT8 files are for any processor: weights stay within 64 steps, or are stored unsigned, so
that an x86 processor without VNNI gives the right answers too. On one with VNNI, layers of 8-bit codes run
faster in a kit made with --target this on such a machine.""",
}


def write_kit(
    store: Store, run_id: str, folder: Path, *, batch: int = 1, target: str = ANY
) -> dict[str, Any]:
    """Write a folder that measures a run's models wherever onnxruntime and numpy are.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        folder: Made if missing; must be empty. It appears once the kit is whole.
        batch: Images at a time.
        target: The device's processor, see ``saturates_for``.

    Returns:
        The manifest: schema_version, run_id, model, models, batch, target, files with their SHA-256.

    Raises:
        WorkspaceError: If the run has no compressed network, or the folder cannot be used.
        ModelError: If ONNX cannot express the network.
        PlanError: If the target is unknown.
    """
    _check_folder(folder)
    if batch < 1:
        raise WorkspaceError("batch out of range", got=batch, expected="at least 1")
    from qaf_core.runs.jobs.exported_models import prepare_models
    from qaf_core.runs.jobs.images import load_evaluation_images

    models = prepare_models(store, run_id, target=target)
    models.check_batch(batch)
    chosen = load_evaluation_images(models.record.request, models.source, store.workspace)
    inputs = _with_answers(
        _kit_images(spread_images(chosen, COMPARED_IMAGES), models.source), models.paths, batch
    )
    aside = folder.parent / f".{folder.name}.{os.getpid()}.part"
    try:
        aside.mkdir(parents=True)
        manifest = _fill(aside, models, inputs, batch=batch, target=target)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
        share(folder)
    except OSError as error:
        raise WorkspaceError(
            "the kit cannot be written",
            got=f"{folder} ({error.strerror or error})",
            remedy="free some space, or choose another --out",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    content = json.dumps(manifest, indent=1).encode()
    name = KEPT_MANIFESTS.replace("*", hashlib.sha256(content).hexdigest()[:16])
    write_file(store.run_folder(run_id) / name, content)
    return manifest


def _fill(
    folder: Path, models: RunModels, inputs: Mapping[str, np.ndarray[Any, Any]], *, batch: int, target: str
) -> dict[str, Any]:
    """Write all files of a kit; its manifest."""
    names = {name: f"{name}.onnx" for name in models.paths}
    for name, path in models.paths.items():
        shutil.copyfile(path, folder / names[name])
    shutil.copyfile(Path(measure_kit.__file__), folder / SCRIPT)
    np.savez_compressed(folder / INPUTS, allow_pickle=False, **inputs)
    record, count = models.record, len(inputs["codes"])
    described: dict[str, str] = {file: file.description for file in ModelFile}
    text = _README.format(
        run=record.id,
        model=record.model,
        least=".".join(map(str, measure_kit.LEAST_RUNTIME)),
        models="".join(f"{file:30} {described[name]}\n" for name, file in names.items()),
        inputs=INPUTS,
        count=count,
        batch=batch,
        target=_TARGETS[target],
    )
    (folder / README).write_text(text, encoding="utf-8")
    manifest = {
        "schema_version": KIT_SCHEMA_VERSION,
        "run_id": record.id,
        "model": record.model,
        "models": names,
        "batch": batch,
        "target": target,
        "files": {name: checksum(folder / name) for name in (*names.values(), INPUTS, SCRIPT)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``device_kit``: a folder, or one zip in the run's folder of exports, its name as ``file``."""
    request: DeviceKitRequest = job.request
    progress.step("kit", "Writing the models, and their answers on this machine")
    if request.folder is not None:
        manifest = write_kit(
            store, request.run, Path(request.folder), batch=request.batch, target=request.target
        )
        return {**manifest, "folder": request.folder}
    exports = store.run_folder(request.run) / EXPORTS_FOLDER
    exports.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=exports) as temporary:
        folder = Path(temporary) / "device-kit"
        write_kit(store, request.run, folder, batch=request.batch, target=request.target)
        progress.step("kit", "Packing the kit")
        packed = shutil.make_archive(str(Path(temporary) / "kit"), "zip", temporary, folder.name)
        for old in exports.glob("device-kit*.zip"):
            old.unlink()
        path = exports / f"device-kit-{job.id}.zip"
        Path(packed).replace(path)
    return {"file": path.name}


def _check_folder(folder: Path) -> None:
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise WorkspaceError(
            "the kit's folder cannot be read", got=f"{folder} ({error.strerror or error})"
        ) from error
    if used:
        raise WorkspaceError(
            "the kit needs a folder of its own", got=str(folder), expected="a new or an empty folder"
        )


def _kit_images(chosen: Any, source: Any) -> np.ndarray[Any, Any]:
    from qaf_core.data.load import to_batches

    batches = [images.contiguous().numpy() for images, _ in to_batches(chosen, source, len(chosen))]
    return np.concatenate(batches)


def _with_answers(
    images: np.ndarray[Any, Any], paths: Mapping[str, Path], batch: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The images in 8 bits a number, 256 steps over each channel's range, and each model's answers."""
    low = images.min(axis=(0, 2, 3), keepdims=True)
    step = ((images.max(axis=(0, 2, 3), keepdims=True) - low) / 255).astype(np.float32)
    step[step == 0] = 1.0
    codes = ((images - low) / step).round().clip(0, 255).astype(np.uint8)
    stored = {"codes": codes, "step": step, "low": low}
    restored = measure_kit.restore_images(stored)
    return {**stored, **{name: measure_kit.answer(path, restored, batch) for name, path in paths.items()}}


def read_kit_result(store: Store, run_id: str, path: Path) -> SpeedReport:
    """Check what a kit measured elsewhere and keep it with its run.

    Args:
        store: The run store.
        run_id: The run the kit was made from.
        path: The ``result.json`` of the kit.

    Returns:
        The measurement, without layers, accuracy and energy.

    Raises:
        WorkspaceError: If the file is no such result, of another run or kit, or of another version.
    """
    record = store.run(run_id)
    content = _read_result(path)
    _check_origin(content, store.run_folder(record.id), record.id)
    failed = _read_failed(content)
    ratios = _read_ratios(content, failed)
    others = content.get("others_share")  # kits of earlier versions do not tell
    if others is not None and not _is_share(others):
        raise _not_a_result(say("a damaged share of the processors"))
    machine = _read_machine(content)
    report = SpeedReport.from_dict(
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": record.id,
            "source": DEVICE,
            "measured_at": time.time(),
            "threads": machine["threads"],
            "batch": _read_count(content, "batch"),
            "input_shape": _read_shape(content),
            "latencies": _read_latencies(content, failed),
            "ratio_to_dense_int8": ratios.get(ModelFile.FAST),
            "ratios": ratios,
            "others_share": others,
            "peak_memory_bytes": _read_memory(content),
            "same_answers": _read_answers(content),
            "compared_images": _read_count(content, "compared_images"),
            "failed": failed,
            "machine": machine,
        }
    )
    return keep_latency(store, report, RESULT_NAME)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_RESULT_BYTES:
            raise _not_a_result(say("a file that is too large"))
        result = json.loads(path.read_text(encoding="utf-8"))
        unchanged = isinstance(result, dict) and result.get("checksum") == measure_kit.result_checksum(result)
    except OSError as error:
        raise WorkspaceError(
            "the kit's result cannot be read",
            got=f"{path} ({error.strerror or error})",
            remedy="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _not_a_result(say("a file that is not JSON")) from error
    if not isinstance(result, dict) or "schema_version" not in result:
        raise _not_a_result(say("another JSON file"))
    if result["schema_version"] != KIT_SCHEMA_VERSION or isinstance(result["schema_version"], bool):
        raise WorkspaceError(
            "the kit's result has another version",
            got=f"schema_version {result['schema_version']}",
            expected=f"schema_version {KIT_SCHEMA_VERSION}",
            remedy="make the kit again and measure with it",
        )
    if not unchanged:
        raise WorkspaceError(
            "the kit's result was changed after it was measured", got=str(path), remedy="measure again"
        )
    return result


def _check_origin(result: Mapping[str, Any], folder: Path, run_id: str) -> None:
    if result.get("run_id") != run_id:
        raise WorkspaceError(
            "the kit's result is of another run",
            got=result.get("run_id"),
            expected=run_id,
            remedy="name that run, or bring the result of this one",
        )
    manifests = [read_json(path) for path in folder.glob(KEPT_MANIFESTS)]
    kept = [manifest for manifest in manifests if isinstance(manifest, dict) and manifest.get("files")]
    if not kept:
        raise WorkspaceError(
            "no kit was made from this run here",
            got=run_id,
            remedy=say("qaf device-kit {run} --out DIR", run=run_id),
        )
    if all(result.get("files") != manifest["files"] for manifest in kept):
        raise WorkspaceError(
            "the kit's result was measured with other files",
            got=say("checksums that differ from all kits of this run"),
            remedy="copy the kit again and measure with it",
        )


def _read_failed(result: Mapping[str, Any]) -> dict[str, str]:
    """Models that did not run on the device, with the reason."""
    failed = result.get("failed") or {}
    if not _is_by_model(failed) or not all(isinstance(reason, str) for reason in failed.values()):
        raise _not_a_result(say("a damaged list of models that failed"))
    return {name: escape_text(reason[:LONGEST_TEXT]) for name, reason in failed.items()}


def _read_latencies(result: Mapping[str, Any], failed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    rows = result.get("latencies")
    if not _is_by_model(rows) or not {*rows, *failed} >= COMPARED:
        raise _not_a_result(say("no latencies"))
    for name, row in rows.items():
        if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in LATENCY_FIELDS):
            raise _not_a_result(say("a damaged row of {name}", name=name))
        if not row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]:
            raise _not_a_result(say("quantiles of {name} that are not in order", name=name))
        if not _is_count(row["n"]):
            raise _not_a_result(say("a damaged number of rounds of {name}", name=name))
    return {name: {key: row[key] for key in LATENCY_FIELDS} for name, row in rows.items()}


def _read_ratios(result: Mapping[str, Any], failed: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Ratios to dense INT8 by model; none where that did not run."""
    ratios, fields = result.get("ratios") or {}, ("value", "low", "high")
    if not _is_by_model(ratios):
        raise _not_a_result(say("damaged ratios"))
    if not COMPARED & set(failed):
        ratios = {**ratios, ModelFile.FAST: result.get("ratio_to_dense_int8")}
    for name, ratio in ratios.items():
        if not isinstance(ratio, dict) or not all(_is_number(ratio.get(key)) for key in fields):
            raise _not_a_result(say("no ratio of {name} to dense INT8", name=name))
        if ratio["low"] > ratio["high"]:
            raise _not_a_result(say("an interval of {name} that is not in order", name=name))
    return {name: {key: ratio[key] for key in fields} for name, ratio in ratios.items()}


def _read_answers(result: Mapping[str, Any]) -> dict[str, float]:
    """Share of the kit's images on which the device gives the answers of where the kit was made."""
    same = result.get("same_answers") or {}
    if not _is_by_model(same) or not all(map(_is_share, same.values())):
        raise _not_a_result(say("damaged shares of the same answers"))
    return dict(same)


def _read_memory(result: Mapping[str, Any]) -> dict[str, int | None]:
    """Peak memory of one inference of each model; None where the device did not tell it."""
    memory = result.get("peak_memory_bytes") or {}
    if not _is_by_model(memory) or not all(size is None or _is_count(size) for size in memory.values()):
        raise _not_a_result(say("damaged sizes of memory"))
    return dict(memory)


def _read_machine(result: Mapping[str, Any]) -> dict[str, Any]:
    """The device, its texts as they may be shown."""
    machine = result.get("machine")
    if not isinstance(machine, dict) or not {"processor", "threads", "onnxruntime"} <= machine.keys():
        raise _not_a_result(say("no description of the device"))
    texts = {name: machine.get(name, "") for name in ("processor", "platform", "python", "onnxruntime")}
    counts = {name: machine.get(name) for name in ("cpu_count", "threads")}
    if not all(isinstance(text, str) for text in texts.values()) or not _is_count(counts["threads"]):
        raise _not_a_result(say("a damaged description of the device"))
    if counts["cpu_count"] is not None and not _is_count(counts["cpu_count"]):
        raise _not_a_result(say("a damaged description of the device"))
    return {**{name: escape_text(text[:LONGEST_TEXT]) for name, text in texts.items()}, **counts}


def _read_shape(result: Mapping[str, Any]) -> list[int]:
    shape = result.get("input_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise _not_a_result(say("a damaged input_shape"))
    return list(shape)


def _read_count(result: Mapping[str, Any], name: str) -> int:
    count = result.get(name)
    if not _is_count(count):
        raise _not_a_result(say("a damaged number: {name}", name=name))
    return int(count)  # type: ignore[arg-type]


def _is_by_model(values: object) -> TypeGuard[dict[str, Any]]:
    """Whether these are values by the names of models."""
    return isinstance(values, dict) and values.keys() <= set(ModelFile)


def _is_count(value: Any) -> bool:
    return type(value) is int and _is_number(value)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= LARGEST_NUMBER


def _not_a_result(fault: Said) -> WorkspaceError:
    return WorkspaceError(
        "this is not the result of a device kit", got=fault, expected="the result.json that measure.py wrote"
    )
