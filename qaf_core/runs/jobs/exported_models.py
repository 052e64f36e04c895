"""The ONNX models of a finished run, ready to be timed here or on another device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qaf_core.data.load import to_batches
from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.source import ModelSource
from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8, write_factorized_int8, write_original
from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.runtime.measure_kit import checksum
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.target import THIS, saturates_for, saturates_products
from qaf_core.errors import ModelError
from qaf_core.files import read_json, write_json
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.quantization.grid import ACTIVATION_GRID
from qaf_core.runs.jobs.images import load_run_images
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER, SAFE_FOLDER = "onnx", "onnx-any"  # for processors like this one; for any, where that differs
STAMP = "models.json"
# Raised whenever the files are made in another way: older ones are then made again.
FORMAT = 2
RANGE_IMAGES = 128
RANGE_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """A run's models as files.

    Attributes:
        record: The run.
        source: Its model.
        inventory: The original's layers.
        paths: ONNX files by name, see ``ModelFile``; the exact one only where activations have 8 bits.
        any_batch: Whether they take any number of images at once, or just one.
    """

    record: RunRecord
    source: ModelSource
    inventory: tuple[LayerInfo, ...]
    paths: dict[str, Path]
    any_batch: bool

    def check_batch(self, batch: int) -> None:
        """Raise ModelError if the models do not take so many images at once."""
        if batch != 1 and not self.any_batch:
            raise ModelError(
                "this network takes one image at a time",
                got=say("a batch of {batch}", batch=batch),
                remedy="leave out --batch",
            )


def prepare_models(store: Store, run_id: str, *, target: str = THIS) -> RunModels:
    """Write a run's models into its folder, or find them written.

    Args:
        store: The run store.
        run_id: A run that has a compressed network.
        target: The processor that will run them, see ``saturates_for``.

    Raises:
        PlanError: If the target is unknown.
        WorkspaceError: If it has none.
        ModelError: If ONNX cannot express the network.
    """
    safe = saturates_for(target)
    record = store.run(run_id)
    packed = store.packed_file(record)
    source = source_of(record.request, store.workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    folder = store.run_folder(run_id) / (FOLDER if safe == saturates_products() else SAFE_FOLDER)
    stamp = folder / STAMP
    made_from = {"format": FORMAT, "packed": checksum(packed), "safe": safe}
    names, any_batch = _read_stamp(stamp, made_from)
    if not names or not all((folder / f"{name}.onnx").is_file() for name in names):
        images = range_images(record, source, store.workspace)
        network = load_packed(packed, copy.deepcopy(model))
        exact = record.plan.activation_bits == ACTIVATION_GRID.bits
        names = [file.value for file in ModelFile if exact or file is not ModelFile.EXACT]
        paths = {name: folder / f"{name}.onnx" for name in names}
        any_batch = _write_models(paths, network, model, inventory, images, source.input_shape, target)
        write_json(stamp, {**made_from, "models": names, "any_batch": any_batch})
    paths = {name: folder / f"{name}.onnx" for name in names}
    return RunModels(record=record, source=source, inventory=inventory, paths=paths, any_batch=any_batch)


def _read_stamp(stamp: Path, made_from: Mapping[str, object]) -> tuple[list[str], bool]:
    try:
        content = read_json(stamp)
        current = all(content[key] == value for key, value in made_from.items())
        return (list(content["models"]), bool(content["any_batch"])) if current else ([], False)
    except (KeyError, TypeError):
        return [], False


def _write_models(
    paths: Mapping[str, Path],
    network: nn.Module,
    model: nn.Module,
    inventory: tuple[LayerInfo, ...],
    images: Sequence[Tensor],
    shape: tuple[int, int, int],
    target: str,
) -> bool:
    """Write the files of ``paths``; whether they take any number of images."""
    original, floating = paths[ModelFile.ORIGINAL], paths[ModelFile.FLOAT]
    any_batch = write_original(model, inventory, original, input_shape=shape)
    any_batch &= export_onnx(network, floating, input_shape=shape, integer=False).any_batch
    write_dense_int8(original, paths[ModelFile.DENSE], images, any_batch=any_batch, target=target)
    fast = paths[ModelFile.FAST]
    write_factorized_int8(network, floating, fast, images, any_batch=any_batch, target=target)
    if ModelFile.EXACT in paths:
        export_onnx(network, paths[ModelFile.EXACT], input_shape=shape, target=target)
    return any_batch


def range_images(record: RunRecord, source: ModelSource, workspace: Path) -> list[Tensor]:
    """The first of a run's calibration images, in batches: for the ranges ONNX Runtime's quantizer takes."""
    calibration, _ = load_run_images(record.request, source, workspace)
    batches = (batch for batch, _ in to_batches(calibration, source, RANGE_BATCH))
    return list(islice(batches, RANGE_IMAGES // RANGE_BATCH))
