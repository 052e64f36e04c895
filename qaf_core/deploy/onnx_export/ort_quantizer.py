"""The models a compressed network is timed against, and its own in the same form.

``dense`` is what ONNX Runtime's own quantizer makes of the original: 8-bit weights per output channel, 8-bit
activations, additions in 8 bits too. The factorized network goes through the very same quantizer, only that
its weights and the inputs of its links are given: our codes, our scales and our ranges. So the two differ in
nothing but their layers. That file is ``qaf export --precision int8-fast``. The exact one, ``--precision
int8``, gives the evaluated network's outputs to the last bit, and pays for it with additions in floating
point.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.integer_ops import LARGEST_SAFE_CODE, UNSIGNED_ZERO
from qaf_core.deploy.onnx_export.skeleton import INPUT_NAME
from qaf_core.deploy.runtime.measure_kit import open_session
from qaf_core.deploy.runtime.target import THIS, saturates_for
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import ModelError, QafError
from qaf_core.files import write_file
from qaf_core.network.graph.capture import capture
from qaf_core.network.modules.quantized import FactorizedLayer, Link
from qaf_core.network.passes.batchnorm_folding import fold_batchnorm
from qaf_core.network.plan.layer_info import LayerInfo

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

WEIGHT_OPERATORS = ("Conv", "Gemm", "MatMul")
JOINED_OPERATORS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
QUANTIZER_ROOM = 4  # files as large as its input that the quantizer writes on its way, about


class OnnxNetwork(nn.Module):
    """An ONNX file as a network, so that tasks can judge it.

    Args:
        path: The file.
        threads: Threads of one operation.
        any_batch: Whether it takes any number of images at once.
    """

    def __init__(self, path: Path, *, threads: int = 1, any_batch: bool = True) -> None:
        super().__init__()
        self._session = open_session(path, threads=threads)
        self._names = [row.name for row in self._session.get_outputs()]
        self._any_batch = any_batch

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The outputs: a tensor, or by name where the network has several."""
        parts = [images] if self._any_batch else list(torch.split(images, 1))
        runs = [self._session.run(None, {INPUT_NAME: part.contiguous().numpy()}) for part in parts]
        outputs = [torch.from_numpy(np.concatenate([run[i] for run in runs])) for i in range(len(runs[0]))]
        single = len(outputs) == 1 and self._names[0] in ("scores", "output")
        return outputs[0] if single else dict(zip(self._names, outputs, strict=True))


def write_original(
    model: nn.Module, inventory: Sequence[LayerInfo], path: Path, *, input_shape: Sequence[int]
) -> bool:
    """Write the original network as fp32 ONNX, BatchNorm folded.

    The nodes of a layer, and what ONNX Runtime joins with them, are named ``LAYER.0/OPERATOR``, as in an
    exported chain of one link.

    Returns:
        Whether any number of images goes in at once, or just one.

    Raises:
        ModelError: If ONNX cannot express the network.
    """
    import onnx

    from qaf_core.deploy.onnx_export.export import write_float_graph

    model = capture(model, input_shape)
    content, any_batch = write_float_graph(fold_batchnorm(model, inventory), input_shape)
    graph = onnx.load_from_string(content)
    _name_joined(graph, {f"{info.name}.0" for info in inventory if info.planned})
    write_file(path, graph.SerializeToString())
    return any_batch


def _name_joined(model: ModelProto, layers: Collection[str]) -> None:
    """Name what ONNX Runtime joins with a layer's last node after the layer too."""
    takers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    outputs = {row.name for row in model.graph.output}
    renamed: dict[str, str] = {}
    used: Counter[str] = Counter()
    for node in model.graph.node:
        layer = node.name.rpartition("/")[0]
        following = takers.get(node.output[0], [])
        while layer in layers and len(following) == 1 and following[0].op_type in JOINED_OPERATORS:
            (joined,) = following
            joined.name = f"{layer}/{joined.op_type}"
            used[joined.name] += 1
            if used[joined.name] > 1:  # a layer that runs more than once
                joined.name += f"_{used[joined.name]}"
            if joined.output[0] not in outputs:
                renamed[joined.output[0]] = joined.name
            following = takers.get(joined.output[0], [])
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    del model.graph.value_info[:]


def write_dense_int8(
    original: Path, path: Path, images: Sequence[Tensor], *, any_batch: bool = True, target: str = THIS
) -> None:
    """Quantize the original with ONNX Runtime's own quantizer.

    Args:
        original: What :func:`write_original` wrote.
        path: The file to write.
        images: Batches of normalised calibration images.
        any_batch: As :func:`write_original` said.
        target: The processor that will run it, see ``saturates_for``.

    Raises:
        ModelError: If the quantizer fails.
        WorkspaceError: If there is no room for its files.
    """
    content = _quantize(
        original, images, any_batch=any_batch, optimize=True, safe=saturates_for(target), overrides={}
    )
    write_file(path, content)


def write_factorized_int8(
    network: nn.Module,
    floating: Path,
    path: Path,
    images: Sequence[Tensor],
    *,
    any_batch: bool = True,
    target: str = THIS,
) -> None:
    """Quantize the factorized network with ONNX Runtime's own quantizer, given our codes and ranges.

    Args:
        network: The evaluated network, as ``load_packed`` returns it.
        floating: Its fp32 ONNX file, as ``export_onnx`` writes it.
        path: The file to write.
        images: Batches of normalised calibration images, for the ranges that are not ours: of additions,
            pooling and the outputs of layers.
        any_batch: Whether the fp32 file takes any number of images at once.
        target: The processor that will run it, see ``saturates_for``.

    Raises:
        ModelError: If the quantizer fails, or has changed a code.
        WorkspaceError: If there is no room for its files.
    """
    import onnx

    links = {
        f"{name}.{index}": link
        for name, part in network.named_modules()
        if isinstance(part, FactorizedLayer)
        for index, link in enumerate(part.chain)
        if not link.grid.is_float
    }
    safe = saturates_for(target)
    overrides: dict[str, list[dict[str, Any]]] = {}
    for node in onnx.load(str(floating)).graph.node:
        link = links.get(node.name.rpartition("/")[0])
        if link is None or node.op_type not in WEIGHT_OPERATORS:
            continue
        overrides[node.input[1]] = _weight_override(link, axis=int(node.op_type == "MatMul"))
        if link.input_quantizer.qparams is not None:  # of two layers that take the same, the first's grid
            overrides.setdefault(node.input[0], _input_override(link.input_quantizer.qparams))
    content = _quantize(floating, images, any_batch=any_batch, optimize=False, safe=safe, overrides=overrides)
    _check_codes(content, links)
    write_file(path, _store_unsigned(content, links) if safe else content)


def _weight_override(link: Link, axis: int) -> list[dict[str, Any]]:
    from onnxruntime.quantization import QuantType

    count = link.codes.shape[0]
    scales = np.broadcast_to(link.scales.detach().cpu().numpy().reshape(-1), (count,)).astype(np.float32)
    rows: list[dict[str, Any]] = [
        {"scale": np.array(scale), "zero_point": np.array(0, np.int8), "quant_type": QuantType.QInt8}
        for scale in scales
    ]
    rows[0]["axis"] = axis
    return rows


def _input_override(grid: tuple[float, int]) -> list[dict[str, Any]]:
    from onnxruntime.quantization import QuantType

    scale, zero = np.array(grid[0], np.float32), np.array(grid[1], np.uint8)
    return [{"scale": scale, "zero_point": zero, "quant_type": QuantType.QUInt8}]


def _quantize(
    source: Path,
    images: Sequence[Tensor],
    *,
    any_batch: bool,
    optimize: bool,
    safe: bool,
    overrides: Mapping[str, Any],
) -> bytes:
    """What ONNX Runtime's quantizer makes of a file.

    Activations are unsigned: signed ones ONNX Runtime turns into such on x86, but not those that two layers
    take, whose layers then run in floating point. ``safe`` keeps weights within ±64, where no product is cut
    off (``reduce_range``), but for those in ``overrides``.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands the images out one batch at a time."""

        def __init__(self) -> None:
            self._rest = _feeds(images, any_batch)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._rest, None)

    try:
        with scratch_folder(QUANTIZER_ROOM * source.stat().st_size) as folder, _quiet():
            prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
            quant_pre_process(str(source), str(prepared), skip_optimization=not optimize)
            quantize_static(
                str(prepared),
                str(quantized),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=safe,
                extra_options={"TensorQuantOverrides": dict(overrides)},
            )
            return quantized.read_bytes()
    except QafError:
        raise
    except Exception as error:  # the quantizer's faults have no base class of their own
        reason = " ".join(str(error).split())[:200]
        raise ModelError("ONNX Runtime cannot quantize the network", got=reason) from error


def _feeds(images: Sequence[Tensor], any_batch: bool) -> Iterator[dict[str, Any]]:
    for batch in images:
        for part in (batch,) if any_batch else torch.split(batch, 1):
            yield {INPUT_NAME: part.float().contiguous().numpy()}


def _check_codes(content: bytes, links: Mapping[str, Link]) -> None:
    """Raise ModelError unless the file's weights are our codes, one for one."""
    import onnx
    from onnx import numpy_helper

    initializers = {row.name: row for row in onnx.load_from_string(content).graph.initializer}
    for name, link in links.items():
        initializer = initializers.get(f"{name}.weight_quantized")
        codes = link.codes.detach().cpu().numpy()
        stored = codes if initializer is None else numpy_helper.to_array(initializer)
        if stored.shape != codes.shape:  # a product of matrices keeps its weight transposed
            stored = stored.T.reshape(codes.shape)
        if initializer is None or not np.array_equal(stored, codes):
            raise ModelError(
                "ONNX Runtime's quantizer changed the codes of a layer",
                got=name,
                remedy="use the file of: qaf export",
            )


def _store_unsigned(content: bytes, links: Iterable[str]) -> bytes:
    """The same file with our codes beyond ±64 stored unsigned, which other instructions multiply exactly."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    initializers = {row.name: row for row in model.graph.initializer}
    for name in links:
        codes = numpy_helper.to_array(initializers[f"{name}.weight_quantized"]).astype(np.int16)
        if np.abs(codes).max(initial=0) <= LARGEST_SAFE_CODE:
            continue
        zeros = numpy_helper.to_array(initializers[f"{name}.weight_zero_point"]).astype(np.int16)
        for part, values in (("quantized", codes + UNSIGNED_ZERO), ("zero_point", zeros + UNSIGNED_ZERO)):
            row = initializers[f"{name}.weight_{part}"]
            row.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), row.name))
    stored: bytes = model.SerializeToString()
    return stored


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice that does not apply; what is wrong it raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
