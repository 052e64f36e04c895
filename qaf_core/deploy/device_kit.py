"""A run's models in a folder that measures them on any device, and the result read back into the run."""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qaf_core.deploy import timing
from qaf_core.deploy.latency import DEVICE, SCHEMA_VERSION, keep_latency, spread_images, tell_verdict
from qaf_core.deploy.timing import KIT_SCHEMA_VERSION, checksum
from qaf_core.errors import WorkspaceError
from qaf_core.runs.workspace import write_file

if TYPE_CHECKING:
    from qaf_core.runs.store import Store

MANIFEST, INPUTS, SCRIPT, README = "manifest.json", "inputs.npz", "measure.py", "README.txt"
KEPT_MANIFEST = "device-kit.json"
RESULT_NAME = "device-latency.json"
LATENCY_FIELDS = ("median_ms", "p5_ms", "p95_ms", "n")
LARGEST_RESULT_BYTES = 2**20

_README = """Measure a compressed network on this device
===========================================

Run {run} of model {model}. You need Python 3.10 or later with onnxruntime and numpy:

    pip install onnxruntime numpy
    python measure.py

It takes about two minutes, uses all processors (--threads N for another number), needs no network, and
writes result.json. Bring that file back to where this folder was made:

    qaf device-kit {run} --result result.json

{models}
{inputs} holds {batch} image(s) and the answers of each model where the kit was made; measure.py tells how
many of them this device agrees with.{note}
"""
_SATURATION_NOTE = """
The INT8 files multiply unsigned by signed 8-bit numbers. On an x86 processor without VNNI such products are
cut off at 16 bits: the times hold there, the answers may not."""
_TITLES = {
    "original_fp32": "the original network, 32-bit floating point",
    "dense_int8": "the original network, quantized by ONNX Runtime's own quantizer",
    "factorized_fp32": "the factorized network, 32-bit floating point",
    "factorized_int8": "the factorized network in INT8, additions too",
    "factorized_int8_exact": "the same, additions in floating point: exactly the evaluated network",
}


def write_kit(store: Store, run_id: str, folder: Path, *, batch: int = 1) -> dict[str, Any]:
    """Write a folder that measures a run's models wherever onnxruntime and numpy are.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        folder: Made if missing; must be empty.
        batch: Images at a time.

    Returns:
        The manifest: schema_version, run_id, model, models, files with their SHA-256.

    Raises:
        WorkspaceError: If the run has no compressed network, or the folder cannot be used.
        ModelError: If ONNX cannot express the network.
    """
    _check_folder(folder)
    if batch < 1:
        raise WorkspaceError("batch out of range", got=batch, expected="at least 1")
    from qaf_core.deploy.processor import saturates_products
    from qaf_core.deploy.run_models import prepare_models
    from qaf_core.runs.images import load_evaluation_images

    models = prepare_models(store, run_id)
    models.check_batch(batch)
    names = {name: f"{name}.onnx" for name in models.paths}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in models.paths.items():
            shutil.copyfile(path, folder / names[name])
        shutil.copyfile(Path(timing.__file__), folder / SCRIPT)
    except OSError as error:
        raise WorkspaceError(
            "the kit cannot be written",
            got=f"{folder} ({error.strerror or error})",
            remedy="choose another --out",
        ) from error
    chosen = load_evaluation_images(models.record.request, models.source, store.workspace)
    images = _kit_images(spread_images(chosen, batch), models.source)
    write_file(folder / INPUTS, _with_answers(images, models.paths))
    manifest = {
        "schema_version": KIT_SCHEMA_VERSION,
        "run_id": run_id,
        "model": models.record.model,
        "models": names,
        "files": {name: checksum(folder / name) for name in (*names.values(), INPUTS, SCRIPT)},
    }
    listed = "".join(f"{file:30} {_TITLES[name]}\n" for name, file in names.items())
    note = "" if saturates_products() else _SATURATION_NOTE
    text = _README.format(
        run=run_id, model=models.record.model, models=listed, inputs=INPUTS, batch=len(images), note=note
    )
    write_file(folder / README, text.encode())
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    write_file(store.run_folder(run_id) / KEPT_MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


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
    from qaf_core.data.datasets import to_batches

    batches = [images.contiguous().numpy() for images, _ in to_batches(chosen, source, len(chosen))]
    return np.concatenate(batches)


def _with_answers(images: np.ndarray[Any, Any], paths: Mapping[str, Path]) -> bytes:
    """The archive of the images and of each model's first output for them."""
    answers = {}
    for name, path in paths.items():
        session = timing.open_session(path, threads=1)
        answers[name] = session.run(None, {session.get_inputs()[0].name: images})[0]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, **answers)
    return buffer.getvalue()


def read_kit_result(store: Store, run_id: str, path: Path) -> dict[str, Any]:
    """Check what a kit measured elsewhere and keep it with its run.

    Args:
        store: The run store.
        run_id: The run the kit was made from.
        path: The ``result.json`` of the kit.

    Returns:
        The measurement as ``measure_run`` gives it, without layers and accuracy.

    Raises:
        WorkspaceError: If the file is no such result, of another run or kit, or of another version.
    """
    record = store.run(run_id)
    told = _read_result(path)
    _check_origin(told, store.run_folder(record.id) / KEPT_MANIFEST, record.id)
    latencies = _read_latencies(told)
    ratio = told.get("ratio_to_dense_int8")
    if not isinstance(ratio, dict) or not all(_is_number(ratio.get(key)) for key in ("value", "low", "high")):
        raise _not_a_result("no ratio to dense INT8")
    memory = told.get("peak_memory_bytes")
    machine = told.get("machine")
    if not isinstance(machine, dict) or not {"processor", "threads", "onnxruntime"} <= machine.keys():
        raise _not_a_result("no description of the device")
    result = {
        "schema_version": SCHEMA_VERSION,
        "run_id": record.id,
        "source": DEVICE,
        "measured_at": time.time(),
        "threads": machine["threads"],
        "batch": told.get("batch"),
        "input_shape": told.get("input_shape"),
        "latencies": latencies,
        "ratio_to_dense_int8": ratio,
        "peak_memory_bytes": memory if isinstance(memory, dict) else {},
        "same_answers": told.get("same_answers"),
        "layers": [],
        "verdict": tell_verdict(ratio),
        "machine": machine,
    }
    keep_latency(store, record.id, result, RESULT_NAME)
    return result


def _read_result(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_RESULT_BYTES:
            raise _not_a_result("a file that is too large")
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkspaceError(
            "the kit's result cannot be read",
            got=f"{path} ({error.strerror or error})",
            remedy="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _not_a_result("a file that is not JSON") from error
    if not isinstance(told, dict) or "schema_version" not in told:
        raise _not_a_result("another JSON file")
    if told["schema_version"] != KIT_SCHEMA_VERSION:
        raise WorkspaceError(
            "the kit's result has another version",
            got=f"schema_version {told['schema_version']}",
            expected=f"schema_version {KIT_SCHEMA_VERSION}",
            remedy="make the kit again and measure with it",
        )
    if told.get("checksum") != timing.result_checksum(told):
        raise WorkspaceError(
            "the kit's result was changed after it was measured", got=str(path), remedy="measure again"
        )
    return told


def _check_origin(told: Mapping[str, Any], kept: Path, run_id: str) -> None:
    if told.get("run_id") != run_id:
        raise WorkspaceError(
            "the kit's result is of another run",
            got=told.get("run_id"),
            expected=run_id,
            remedy="name that run, or bring the result of this one",
        )
    try:
        manifest = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            "no kit was made from this run here", got=run_id, remedy=f"qaf device-kit {run_id} --out DIR"
        ) from error
    if told.get("files") != manifest.get("files"):
        raise WorkspaceError(
            "the kit's result was measured with other files",
            got="checksums that differ from the kit made last",
            remedy="copy the kit again and measure with it",
        )


def _read_latencies(told: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = told.get("latencies")
    if not isinstance(rows, dict) or not {"dense_int8", "factorized_int8"} <= rows.keys():
        raise _not_a_result("no latencies")
    for name, row in rows.items():
        if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in LATENCY_FIELDS):
            raise _not_a_result(f"a damaged row of {name}")
        if not row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]:
            raise _not_a_result(f"quantiles of {name} that are not in order")
    return rows


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )


def _not_a_result(found: str) -> WorkspaceError:
    return WorkspaceError(
        "this is not the result of a device kit", got=found, expected="the result.json that measure.py wrote"
    )
