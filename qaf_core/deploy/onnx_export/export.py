"""Export to ONNX: a floating-point graph of the factors, or an integer graph ONNX Runtime runs as such."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.agreement import compare
from qaf_core.deploy.onnx_export.detectors import without_choice_of_boxes
from qaf_core.deploy.onnx_export.float_ops import write_float_chain
from qaf_core.deploy.onnx_export.integer_ops import IntegerWriter
from qaf_core.deploy.onnx_export.report import (
    Agreement,
    Check,
    ExportRejected,
    ExportReport,
    Precision,
)
from qaf_core.deploy.onnx_export.skeleton import CHAIN_DOMAIN, INPUT_NAME, OPSET, parts_of, trace_skeleton
from qaf_core.deploy.onnx_export.writer import Array, GraphBuilder, chain_of
from qaf_core.deploy.runtime.measure_kit import LEAST_AGREEMENT
from qaf_core.deploy.runtime.target import THIS, saturates_for
from qaf_core.deploy.runtime.tempdir import scratch_error, scratch_folder
from qaf_core.errors import ModelError, QafError
from qaf_core.files import write_file
from qaf_core.network.graph.network import chains_in
from qaf_core.network.modules.quantized import ActivationQuantizer, Link
from qaf_core.pipeline.compress.calibrate import fit_range
from qaf_core.text.said import say
from qaf_core.text.units import percent_text

if TYPE_CHECKING:
    import onnxruntime
    from onnx import ModelProto

PROVIDERS = ["CPUExecutionProvider"]
PROPERTY = "qaf"  # of the ONNX file: the model's card as JSON
INTEGER_OPERATORS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "MatMulNBits",
)  # fmt: skip
FLOAT_OPERATORS = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished graph and what is known of it.

    Attributes:
        content: The file's bytes.
        any_batch: Whether any number of images goes in at once.
        planned: How many nodes must run as integers.
        stored: How many weights are stored as what.
        target: Of its integers, see ``saturates_for``; None for floating point.
    """

    content: bytes
    any_batch: bool
    planned: int
    stored: Mapping[str, int]
    target: str | None


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    input_shape: Sequence[int],
    integer: bool = True,
    images: Iterable[Tensor] | None = None,
    card: Mapping[str, Any] | None = None,
    target: str = THIS,
    force: bool = False,
) -> ExportReport:
    """Write a compressed network as ONNX and check the file in ONNX Runtime.

    Args:
        model: The evaluated network, as ``load`` or ``load_packed`` return it, BatchNorm folded; it is
            not changed. A one-stage detector is exported up to its heads (``cls_logits`` and others).
        path: The file; written under a temporary name first, and only if the checks pass.
        input_shape: (C, H, W) of one image. Images go in normalised, under the name ``images``.
        integer: Integer convolutions with our codes and scales and 8-bit activations, whose ranges the
            network has (else :func:`with_ranges` gives them), or floating-point ones.
        images: Batches of normalised evaluation images ``(B, C, H, W)`` to compare both networks on; None
            leaves the comparison out.
        card: What the file tells about itself, ready for JSON.
        target: The processor that will run it: ``this`` one, or ``any``.
        force: Write the file even if a check fails.

    Returns:
        What was made and checked.

    Raises:
        ModelError: If ONNX cannot express the network, or ONNX Runtime cannot run it.
        ExportRejected: If a check fails, without ``force``.
        WorkspaceError: If the file cannot be written.
    """
    began = time.monotonic()
    reference = _reference(model, integer)
    written = _write_graph(reference, input_shape, integer, card or {}, target)
    precision = Precision.INT8 if integer else Precision.FP32
    return write_checked(
        written, reference, path, precision=precision, images=images, force=force, began=began
    )


def write_checked(
    written: Written,
    reference: nn.Module,
    path: Path,
    *,
    precision: Precision,
    images: Iterable[Tensor] | None,
    force: bool,
    began: float,
) -> ExportReport:
    """Check a finished graph in ONNX Runtime and write it.

    Args:
        written: The graph.
        reference: The network it must agree with.
        path, images, force: As in :func:`export_onnx`.
        precision: Of the report.
        began: Reading of ``time.monotonic`` when the export began.

    Returns, Raises: As in :func:`export_onnx`.
    """
    session, operators = open_session(written.content)
    agreement = None
    if images is not None:
        agreement = compare(reference, lambda batch: _run(session, batch, written.any_batch), images)
    report = ExportReport(
        format="onnx",
        path=str(path),
        written=False,
        precision=precision,
        target=written.target,
        size_bytes=len(written.content),
        checks=_checks(written, operators, agreement),
        agreement=agreement,
        integer_operators={kind: operators[kind] for kind in INTEGER_OPERATORS if operators[kind]},
        float_operators={kind: operators[kind] for kind in FLOAT_OPERATORS if operators[kind]},
        weights_stored_as=written.stored,
        any_batch=written.any_batch,
        opset=OPSET,
        seconds=time.monotonic() - began,
    )
    if not report.passed and not force:
        raise ExportRejected(report)
    write_file(path, written.content)
    return replace(report, written=True, seconds=time.monotonic() - began)


def open_session(content: bytes | Path) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """Open an ONNX model in ONNX Runtime, on the processor, with as many threads as PyTorch uses.

    Args:
        content: The model, or the file it is in.

    Returns:
        The session, and the operators it runs after its own optimizations, by kind.

    Raises:
        ModelError: If the runtime cannot run it.
        WorkspaceError: If the temporary folder is full.
    """
    import onnx
    import onnxruntime

    size = content.stat().st_size if isinstance(content, Path) else len(content)
    with scratch_folder(size) as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        source = str(content) if isinstance(content, Path) else content
        try:
            session = onnxruntime.InferenceSession(source, options, providers=PROVIDERS)
        except Exception as error:  # the runtime's errors have no base class of their own
            raise _session_error(source, error) from error
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return session, Counter(node.op_type for node in optimized.graph.node)


def _session_error(source: str | bytes, error: Exception) -> QafError:
    """Whether the model is at fault, or the disk that was to take what the runtime made of it."""
    import onnxruntime

    reason = " ".join(str(error).split())[:200]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(source, options, providers=PROVIDERS)
    except Exception:
        return ModelError("ONNX Runtime cannot run the network", got=reason)
    return scratch_error(reason)


def _run(session: onnxruntime.InferenceSession, batch: Array, any_batch: bool) -> Array:
    import numpy as np

    if any_batch:
        output: Array = session.run(None, {INPUT_NAME: batch})[0]
        return output
    return np.concatenate([session.run(None, {INPUT_NAME: image[None]})[0] for image in batch])


def _reference(model: nn.Module, integer: bool) -> nn.Module:
    """The network as it is to be exported: on codes, or without any rounding of activations."""
    reference = without_choice_of_boxes(copy.deepcopy(model).eval().cpu())
    if not integer:
        for link in _links_in(reference):
            link.input_quantizer = ActivationQuantizer()
    elif any(link.input_quantizer.qparams is None for link in _links_in(reference)):
        raise ModelError(
            "the network's activations have no 8-bit range",
            got=say("a network compressed with --act-bits 32"),
            remedy="export it with --precision fp32, or give calibration images",
        )
    for chain in chains_in(reference).values():
        if not (integer and chain.runs_on_codes):
            chain.use_codes()
    return reference


def _links_in(model: nn.Module) -> list[Link]:
    return [link for chain in chains_in(model).values() for link in chain.chain]


def with_ranges(model: nn.Module, calibration: Sequence[Tensor]) -> nn.Module:
    """A copy whose activations have 8-bit ranges, fitted where there were none.

    Args:
        model: As :func:`export_onnx` takes it.
        calibration: Batches of calibration images ``(B, C, H, W)``.
    """
    twin = copy.deepcopy(model).eval().cpu()
    quantizers = [link.input_quantizer for link in _links_in(twin)]
    _fit_ranges(twin, [one for one in quantizers if one.qparams is None], calibration)
    return twin


@torch.inference_mode()
def _fit_ranges(
    model: nn.Module, quantizers: Sequence[ActivationQuantizer], calibration: Sequence[Tensor]
) -> None:
    """Give ranges to quantizers that have none, all from one pass without rounding."""
    if not quantizers:
        return
    seen: dict[ActivationQuantizer, list[Tensor]] = {quantizer: [] for quantizer in quantizers}
    handles = [
        quantizer.register_forward_hook(lambda part, inputs, _output: seen[part].append(inputs[0].clone()))
        for quantizer in quantizers
    ]
    for batch in calibration:
        model(batch)
    for handle in handles:
        handle.remove()
    for quantizer, values in seen.items():
        if values:
            fit_range(quantizer, values)


def _write_graph(
    model: nn.Module,
    input_shape: Sequence[int],
    integer: bool,
    card: Mapping[str, Any],
    target: str,
) -> Written:
    skeleton = trace_skeleton(model, input_shape)
    builder = GraphBuilder()
    writer = IntegerWriter(builder, saturates=saturates_for(target)) if integer else None
    renamed: dict[str, str] = {}
    for node in skeleton.model.graph.node:
        values = renamed.get(node.input[0], node.input[0]) if node.input else ""
        if node.domain != CHAIN_DOMAIN:
            passed = None if writer is None else writer.pass_on(node, values)
            if passed is None:
                builder.copy_node(node, renamed)
            else:
                renamed[node.output[0]] = passed
            continue
        name, rank, site = chain_of(node)
        chain = skeleton.chains[name]
        renamed[node.output[0]] = (
            write_float_chain(builder, name, chain, values, rank, site)
            if writer is None
            else writer.write_chain(name, chain, values, rank, site)
        )
    properties = {
        **card,
        "precision": Precision.INT8 if integer else Precision.FP32,
        "input_shape": list(input_shape),
    }
    graph = builder.finish(skeleton, renamed, {PROPERTY: json.dumps(properties, separators=(",", ":"))})
    links = sum(len(parts_of(chain)) for chain in skeleton.chains.values())
    return Written(
        content=serialize(graph),
        any_batch=skeleton.any_batch,
        planned=0 if writer is None else writer.integer_nodes,
        stored={"float32": links} if writer is None else dict(writer.weights),
        target=None if writer is None else target,
    )


def write_float_graph(model: nn.Module, input_shape: Sequence[int]) -> tuple[bytes, bool]:
    """A network as it is in floating point, each layer's nodes named after it.

    Returns:
        The file's bytes, and whether it takes any number of images at once.

    Raises:
        ModelError: If ONNX cannot express the network.
    """
    written = _write_graph(model, input_shape, False, {}, THIS)
    return written.content, written.any_batch


def serialize(graph: ModelProto) -> bytes:
    """The bytes of a graph; ModelError if it is too large for one file."""
    try:
        content: bytes = graph.SerializeToString()
    except Exception as error:  # protobuf's own kinds of errors
        raise ModelError(
            "the network is too large for one ONNX file", expected="less than 2 GB", remedy="compress it more"
        ) from error
    return content


def _checks(written: Written, operators: Counter[str], agreement: Agreement | None) -> tuple[Check, ...]:
    checks = [Check.of(say("ONNX Runtime runs it"), True, say("on the processor, as it is"))]
    if written.target is not None:
        count = sum(operators[kind] for kind in INTEGER_OPERATORS)
        detail = say(
            "{found} of {planned} quantized convolutions and linear layers run as integers",
            found=count,
            planned=written.planned,
        )
        checks.append(Check.of(say("integer operators"), count >= written.planned, detail))
    if agreement is not None:
        detail = say(
            "{share} of {images:,} evaluation images agree, {identical} are the same to the last bit, "
            "largest difference {difference} of a range of {range}",
            share=percent_text(agreement.share, 2),
            images=agreement.images,
            identical=percent_text(agreement.identical, 2),
            difference=f"{agreement.largest_difference:.2g}",
            range=f"{agreement.output_range:.3g}",
        )
        name = say("agreement of at least {share}", share=percent_text(LEAST_AGREEMENT))
        checks.append(Check.of(name, agreement.share >= LEAST_AGREEMENT, detail))
    return tuple(checks)
