"""The fastest integer file: our codes in ONNX Runtime's own quantized form, which rounds more than we do.

It is the very file that ``qaf latency`` times as ``factorized_int8``. The outputs of layers and additions are
rounded to 8 bits too, so that its answers are near those of the evaluated network, not the same: how near is
measured at every export.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.deploy.onnx_export.detectors import without_choice_of_boxes
from qaf_core.deploy.onnx_export.export import PROPERTY, Written, export_onnx, serialize, write_checked
from qaf_core.deploy.onnx_export.ort_quantizer import write_factorized_int8
from qaf_core.deploy.onnx_export.report import ExportReport, Precision
from qaf_core.deploy.runtime.target import THIS
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.network.modules.quantized import FactorizedLayer

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

CODES_ENDING = ".weight_quantized"


def export_fast(
    model: nn.Module,
    path: Path,
    *,
    input_shape: Sequence[int],
    calibration: Sequence[Tensor],
    images: Iterable[Tensor] | None = None,
    card: Mapping[str, Any] | None = None,
    target: str = THIS,
    force: bool = False,
) -> ExportReport:
    """Write a compressed network in ONNX Runtime's quantized form and check how near it stays.

    Args:
        model: The evaluated network, as for ``export_onnx``.
        path, images, card, target, force: As for ``export_onnx``; its outputs are compared with those of the
            evaluated network as it is.
        input_shape: (C, H, W) of one image.
        calibration: Batches of normalised calibration images, for the ranges that are not ours.

    Returns:
        What was made and checked.

    Raises:
        ModelError: If ONNX cannot express the network, or ONNX Runtime cannot quantize or run it.
        ExportRejected: If a check fails, without ``force``.
        WorkspaceError: If the file cannot be written.
    """
    began = time.monotonic()
    reference = without_choice_of_boxes(copy.deepcopy(model).eval().cpu())
    with scratch_folder() as folder:
        floating, integer = folder / "floating.onnx", folder / "integer.onnx"
        float_report = export_onnx(model, floating, input_shape=input_shape, integer=False)
        write_factorized_int8(
            reference, floating, integer, calibration, any_batch=float_report.any_batch, target=target
        )
        properties = {**(card or {}), "precision": Precision.FAST, "input_shape": list(input_shape)}
        content, stored = _with_card(integer.read_bytes(), properties)
    chains = [part for part in reference.modules() if isinstance(part, FactorizedLayer)]
    written = Written(
        content=content,
        any_batch=float_report.any_batch,
        planned=sum(not link.grid.is_float for chain in chains for link in chain.chain),
        stored=stored,
        target=target,
    )
    return write_checked(
        written, reference, path, precision=Precision.FAST, images=images, force=force, began=began
    )


def _with_card(content: bytes, card: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """The file with its card, and how many weights it holds as what."""
    import onnx

    graph: ModelProto = onnx.load_from_string(content)
    row = graph.metadata_props.add()
    row.key, row.value = PROPERTY, json.dumps(card, separators=(",", ":"))
    kinds = [row.data_type for row in graph.graph.initializer if row.name.endswith(CODES_ENDING)]
    return serialize(graph), dict(Counter(onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds))
