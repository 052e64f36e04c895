"""The packed file of a compressed network: integer codes at their own bit-width, all else in half precision.

One safetensors file with these tensors and a JSON index in its metadata:

- ``codes`` (uint8): the codes of every link, packed without gaps, every link starting on a byte;
- ``halves`` (fp16): scales and biases of the links and all kept tensors, one segment after the other;
- ``gains`` (int8): the power of two each segment of ``halves`` is multiplied with, so that fp16's range will
  do;
- ``steps`` (fp32) and ``zeros`` (uint8): the activation quantizer of each link's input; a step of 0: none;
- ``exact.N``: integer, Boolean and complex tensors, as they are.

Beside the index stands a checksum over it and all tensors, which is verified whenever a file is loaded.
BatchNorm is folded into the layer before it, or kept as one factor and one shift per channel.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from torch import Tensor, nn

from qaf_core.deploy.packed.kept_tensors import (
    EXACT_KEY,
    exact_tensors,
    fits_half,
    is_fixed,
    is_within,
    made_otherwise,
    put_back,
    read_exact,
    smallest_type,
    split_packed,
)
from qaf_core.errors import ModelError, WeightsError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.files import write_file
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import chains_in, layer_of, networks_in
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import BatchNorm, FactorizedLayer, Folded, Layer, Link, swap_layer
from qaf_core.network.passes.requantization import connect_chains
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.quantization.packing import pack_codes, packed_size_bytes, unpack_codes
from qaf_core.quantization.spec import BITS_FLOAT

FORMAT_VERSION = 3  # 1 had no checksum, 2 no exact tensors
OLDEST_VERSION = 2
INDEX_KEY, CHECKSUM_KEY = "qaf", "sha256"
# Segments are scaled to just below 2**15: fp16 ends at 65504, and rounds up.
_TOP_EXPONENT = 15


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """What is written so far, in the order it will be read."""

    codes: list[Tensor] = field(default_factory=list)
    halves: list[Tensor] = field(default_factory=list)
    gains: list[int] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    zeros: list[int] = field(default_factory=list)

    def add_half(self, values: Tensor) -> None:
        """One segment: ``values`` over a power of two, in fp16."""
        flat = values.detach().reshape(-1).to(torch.float64)
        largest = float(flat.abs().max()) if flat.numel() else 0.0
        exponent = int(np.frexp(largest)[1]) - _TOP_EXPONENT if largest > 0 else 0
        exponent = min(max(exponent, -128), 127)
        self.halves.append((flat * 2.0**-exponent).to(torch.float16))
        self.gains.append(exponent)

    def add_link(self, link: Link, factor: Tensor | None, bias: Tensor | None) -> None:
        """A link's codes, scales, bias and quantizer; its output multiplied by ``factor`` per channel."""
        outputs = link.codes.shape[0]
        if link.bits == BITS_FLOAT:
            weight = link.weight.detach().reshape(outputs, -1)
            self.add_half(weight if factor is None else weight * factor[:, None])
        else:
            scales = link.scales.detach().expand(outputs, *link.scales.shape[1:]).reshape(outputs)
            self.codes.append(pack_codes(link.codes, link.bits))
            self.add_half(scales if factor is None else scales * factor)
        if bias is not None:
            self.add_half(bias)
        quantizer = link.input_quantizer
        enabled = bool(quantizer.enabled)
        self.steps.append(float(quantizer.scale) if enabled else 0.0)
        self.zeros.append(int(quantizer.zero_point) if enabled else 0)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The file's tensors."""
        codes = torch.cat(self.codes) if self.codes else torch.zeros(0, dtype=torch.uint8)
        halves = torch.cat(self.halves) if self.halves else torch.zeros(0, dtype=torch.float16)
        return {
            "codes": codes.numpy(),
            "halves": halves.numpy(),
            "gains": np.array(self.gains, np.int8),
            "steps": np.array(self.steps, np.float32),
            "zeros": np.array(self.zeros, np.uint8),
        }


class _Reader:
    """What ``_Packed`` wrote, taken out in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._at = dict.fromkeys(("codes", "halves", "gains", "steps", "zeros"), 0)

    def _take(self, name: str, count: int) -> Tensor:
        begin = self._at[name]
        self._at[name] = begin + count
        if begin + count > len(self._tensors[name]):
            raise ValueError(f"{name} ends early")
        return self._tensors[name][begin : begin + count]

    def finish(self) -> None:
        """Raise ValueError unless all of the file has been taken."""
        for name, end in self._at.items():
            if end < len(self._tensors[name]):
                raise ValueError(f"the index leaves out {len(self._tensors[name]) - end} of {name}")

    def half(self, shape: Sequence[int]) -> Tensor:
        """The next segment, float32, in this shape."""
        values = self._take("halves", prod(shape)).to(torch.float32)
        return (values * 2.0 ** int(self._take("gains", 1))).reshape(tuple(shape))

    def fill_link(self, link: Link, has_bias: bool) -> None:
        """The next link's codes, scales, bias and quantizer."""
        outputs = link.codes.shape[0]
        scale_shape = (outputs, *(1,) * (link.codes.ndim - 1))
        if link.bits == BITS_FLOAT:
            link.codes = self.half(link.codes.shape)
            link.scales = torch.ones(scale_shape)
        else:
            packed = self._take("codes", packed_size_bytes(link.codes.numel(), link.bits))
            link.codes = unpack_codes(packed, link.bits, link.codes.numel()).reshape(link.codes.shape)
            link.scales = self.half(scale_shape)
        link.bias = nn.Parameter(self.half([outputs]), requires_grad=False) if has_bias else None
        step, zero = float(self._take("steps", 1)), int(self._take("zeros", 1))
        if step > 0:
            # set_range rounds to the same step and zero point again.
            link.input_quantizer.set_range(-zero * step, (255 - zero) * step)


def save_packed(
    path: Path,
    model: nn.Module,
    inventory: Sequence[LayerInfo],
    card: Mapping[str, Any],
    anew: nn.Module | None = None,
) -> int:
    """Write a compressed network as one packed file.

    Args:
        path: The file; written under a temporary name first.
        model: The network with its chains in place.
        inventory: The rows of the original network.
        card: What else the file tells, such as model, method and seed; small, ready for JSON.
        anew: The network as whoever reads the file builds it, captured, with other weights; not changed.
            Tensors that its code makes otherwise, from its weights or at random, are then in the file. None:
            none are.

    Returns:
        The file's size in bytes.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    packed = _Packed()
    folds = _find_folds(model, inventory)
    layers, chains = [], chains_in(model)
    for info in inventory:
        module = chains.get(info.name)
        if module is not None:
            layers.append(_add_chain(packed, info, module, folds.get(info.name)))
    outside = _kept_tensors(model, [row[0] for row in layers], folds)
    kept = {key: tensor for key, tensor in outside.items() if fits_half(tensor)}
    for tensor in kept.values():
        packed.add_half(tensor)
    exact = {key: tensor for key, tensor in outside.items() if key not in kept} | exact_tensors(model)
    exact |= {} if anew is None else made_otherwise(model, anew)
    index = {
        **card,
        "format": FORMAT_VERSION,
        "layers": layers,
        "folded": [name for name, _ in folds.values()],
        "kept": [[key, list(tensor.shape)] for key, tensor in kept.items()],
    }
    if exact:
        index["exact"] = [[key, str(value.dtype).removeprefix("torch.")] for key, value in exact.items()]
    text, tensors = json.dumps(index, separators=(",", ":")), packed.tensors()
    tensors |= {f"{EXACT_KEY}{number}": smallest_type(value) for number, value in enumerate(exact.values())}
    content = to_safetensors(tensors, {INDEX_KEY: text, CHECKSUM_KEY: _checksum(text, tensors)})
    write_file(path, content)
    return len(content)


def read_index(path: Path) -> dict[str, Any]:
    """The index of a packed file, the checksum left unverified.

    Raises:
        WeightsError: If it is no packed file of a version known here.
    """
    return _read(path, with_tensors=False)[0]


def verify_packed(path: Path) -> dict[str, Any]:
    """The index of a packed file whose checksum holds.

    Raises:
        WeightsError: If it is no packed file of a version known here, incomplete or altered.
    """
    return _read(path, with_tensors=True)[0]


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            text = metadata[INDEX_KEY]
            index: dict[str, Any] = json.loads(text)
            _check_version(path, index["format"])
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
            if with_tensors and metadata[CHECKSUM_KEY] != _checksum(text, tensors):
                raise WeightsError(
                    "the packed model has been altered or damaged",
                    got=f"{path} (its checksum does not hold)",
                    remedy="take an intact copy, or compress it again",
                )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(
            "this is no complete packed model",
            got=f"{path} ({_in_one_line(error)})",
            remedy="take an intact copy, or compress it again",
        ) from error
    return index, tensors


def _check_version(path: Path, version: int) -> None:
    if version > FORMAT_VERSION:
        raise WeightsError(
            "the packed model was made by a newer version of qaf",
            got=f"{path}, format {version}",
            expected=f"format {FORMAT_VERSION}",
            remedy="update qaf",
        )
    if version < OLDEST_VERSION:
        raise WeightsError(
            "the packed model was made by an older version of qaf",
            got=f"{path}, format {version}",
            expected=f"format {FORMAT_VERSION}",
            remedy="compress it again",
        )


def _checksum(index: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 over the index and every tensor with its name, type and length."""
    digest = hashlib.sha256(index.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def load_packed(path: Path, model: nn.Module) -> nn.Module:
    """Turn a freshly built original network into the compressed one a packed file holds.

    Args:
        path: The file.
        model: The original architecture, whatever its weights; changed in place.

    Returns:
        ``model``, in evaluation mode. Its integer chains compute as an integer runtime does, so that an
        export to ONNX gives the same numbers.

    Raises:
        WeightsError: If the file is damaged, altered, of another version or for another network.
    """
    index, tensors = _read(path, with_tensors=True)
    try:
        if "input_shape" in index:
            model = capture(model, index["input_shape"])
        _fill(model, index, tensors)
    except (KeyError, AttributeError, RuntimeError, ValueError, IndexError, TypeError, ModelError) as error:
        raise WeightsError(
            "the packed model is for another network",
            got=f"{path} ({_in_one_line(error)})",
            remedy="build the network it was made from",
        ) from error
    return model.eval()


def without_numbers(model: nn.Module) -> nn.Module:
    """A copy of a captured network with other numbers in all that a file is to hold: if a file left something
    out, the network read back would show it.
    """
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in _outside(copied, ()).values():
        tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor)
    return copied


def _fill(model: nn.Module, index: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Put what a file holds into a captured network."""
    reader = _Reader({name: torch.from_numpy(values) for name, values in tensors.items()})
    for name, structure, rank, bits, has_bias in index["layers"]:
        chain = _empty_chain(layer_of(model, name), structure, rank, bits)
        for link in chain.chain:
            reader.fill_link(link, bool(has_bias) and link is chain.last)
        chain.use_codes()
        swap_layer(model, name, chain)
    for name in index["folded"]:
        swap_layer(model, name, Folded())
    kept = {key: reader.half(shape) for key, shape in index["kept"]}
    reader.finish()
    known = _outside(model, ()).keys()
    older = split_packed({key: tensor for key, tensor in kept.items() if key not in known})
    kept = {**kept, **older, **read_exact(index.get("exact", ()), tensors)}
    _restore_kept(model, kept, [row[0] for row in index["layers"]])
    for part in networks_in(model).values():
        part.read_from_file = True
    connect_chains(model.eval())


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# Writing


def _find_folds(model: nn.Module, inventory: Sequence[LayerInfo]) -> dict[str, tuple[str, nn.Module]]:
    """Layer -> name and module of the BatchNorm it takes up."""
    folds = {}
    for info in inventory:
        if info.kind == "batchnorm" and info.folded_into is not None:
            source, norm = model.get_submodule(info.folded_into), model.get_submodule(info.name)
            known = isinstance(norm, BatchNorm | Folded)
            if isinstance(source, FactorizedLayer | Layer) and known:
                folds[info.folded_into] = (info.name, norm)
    return folds


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and shift per channel of a BatchNorm that is kept as those; None of other modules, and where
    the network reads its numbers besides.
    """
    return norm.factor_and_shift() if isinstance(norm, BatchNorm) and not norm.read_elsewhere else None


def _add_chain(
    packed: _Packed, info: LayerInfo, chain: FactorizedLayer, fold: tuple[str, nn.Module] | None
) -> list[Any]:
    """Write a layer's links; its row of the index."""
    statistics = None if fold is None else _statistics(fold[1])
    bias = None if chain.last.bias is None else chain.last.bias.detach()
    factor = None
    if statistics is not None:
        factor, shift = statistics
        bias = shift if bias is None else shift + bias.double() * factor
    for link in chain.chain:
        on_output_side = link is chain.last
        packed.add_link(link, factor if on_output_side else None, bias if on_output_side else None)
    widths = [link.bits for link in chain.chain]
    bits = widths[0] if len(set(widths)) == 1 else widths
    return [info.name, chain.structure, _rank_of(chain), bits, int(bias is not None)]


def _rank_of(chain: FactorizedLayer) -> int | list[int] | None:
    widths = tuple(int(link.codes.shape[0]) for link in chain.chain[:-1])
    rank = STRUCTURES[chain.structure].rank_of(widths)
    return list(rank) if isinstance(rank, tuple) else rank


def _kept_tensors(
    model: nn.Module, chains: Sequence[str], folds: Mapping[str, tuple[str, nn.Module]]
) -> dict[str, Tensor]:
    """All tensors outside the chains, BatchNorm as factor and shift; shared ones once."""
    gone = (*chains, *(name for name, _ in folds.values()))
    changed = _as_factor_and_shift(model, gone)
    for source, (_, norm) in folds.items():
        statistics = _statistics(norm)
        if source not in chains and statistics is not None:
            factor, shift = statistics
            layer = layer_of(model, source)
            rows = layer.rows.detach().double()
            rows = rows * factor.reshape(-1, *(1,) * (rows.ndim - 1))
            changed[f"{source}.weight"] = layer.operation.as_stored(rows)
            bias = layer.bias
            changed[f"{source}.bias"] = shift if bias is None else shift + bias.detach().double() * factor
    return {key: tensor for key, tensor in _each_once(model, gone, changed) if not is_within(key, gone)}


def _as_factor_and_shift(model: nn.Module, gone: Sequence[str]) -> dict[str, Tensor]:
    """Weight and bias that stand for a BatchNorm and its statistics."""
    changed = {}
    for name, module in model.named_modules():
        statistics = _statistics(module)
        if statistics is not None and name not in gone:
            changed[f"{name}.weight"], changed[f"{name}.bias"] = statistics
    return changed


def _each_once(
    model: nn.Module, gone: Sequence[str], changed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What a file keeps: a tensor with several names once, or under all of them where one is changed."""
    outside = _outside(model, gone)
    names: dict[int, list[str]] = {}
    for key, tensor in outside.items():
        names.setdefault(id(tensor), []).append(key)
    yield from changed.items()
    for key, tensor in outside.items():
        alike = names[id(tensor)]
        if key not in changed and (key == alike[0] or any(other in changed for other in alike)):
            yield key, tensor.detach()


def _outside(model: nn.Module, gone: Sequence[str]) -> dict[str, Tensor]:
    """The parameters and floating-point buffers that a file keeps, under all their names, outside ``gone``.

    The statistics of BatchNorm are none of them where a file keeps what they amount to.
    """
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    replaced = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if _statistics(module) is not None
        for part in ("running_mean", "running_var")
    }
    return {
        key: value
        for key, value in tensors.items()
        if value.is_floating_point()
        and not is_fixed(key)
        and not is_within(key, gone)
        and key not in replaced
    }


# Reading


def _empty_chain(
    layer: Layer, structure: str, rank: int | list[int] | None, bits: int | list[int]
) -> FactorizedLayer:
    """The links of a layer with no weights yet."""
    shape, form = tuple(layer.rows.shape), STRUCTURES[structure]
    shapes = form.factor_shapes(shape, (rank[0], rank[1]) if isinstance(rank, list) else rank)
    return build_chain(
        layer,
        Factors(
            structure=structure,
            weight_shape=shape,
            codes=tuple(torch.zeros(part, dtype=torch.int8) for part in shapes),
            scales=tuple(torch.ones((1,) * len(part)) for part in shapes),
            bits=(bits,) * len(shapes) if isinstance(bits, int) else form.by_factor(bits),
        ),
    )


def _restore_kept(model: nn.Module, kept: Mapping[str, Tensor], chains: Sequence[str]) -> None:
    """Put the kept tensors where they belong; older files hold some that no prediction reads.

    Layers and BatchNorms get tensors of their own first: a file may hold them changed, where another part of
    the network has the same ones unchanged.
    """
    names: dict[int, list[str]] = {}
    for key, tensor in _outside(model, chains).items():
        names.setdefault(id(tensor), []).append(key)
    alike = {key: group for group in names.values() for key in group}
    for module in model.modules():
        if isinstance(module, Layer | BatchNorm):
            _own_tensors(module)
        if isinstance(module, BatchNorm):
            _set_statistics(module)
    modules = dict(model.named_modules())
    outside = _outside(model, chains)
    needed = {*outside, *_as_factor_and_shift(model, chains)}
    for key in needed - kept.keys():
        source = next((other for other in alike.get(key, ()) if other in kept), None)
        if source is None and not _is_statistic(modules, key):
            raise ValueError(f"nothing in the file for {key}")
        if source is not None:
            put_back(model, {key: kept[source]})
    present = {*outside, *exact_tensors(model)}
    for key, tensor in kept.items():
        owner, _, part = key.rpartition(".")
        if key in present or is_fixed(key) or _is_statistic(modules, key):
            put_back(model, {key: tensor})
        elif part in ("weight", "bias") and isinstance(modules.get(owner), Layer | BatchNorm):
            setattr(modules[owner], part, nn.Parameter(tensor, requires_grad=False))


def _is_statistic(modules: Mapping[str, nn.Module], key: str) -> bool:
    owner, _, part = key.rpartition(".")
    return part in ("running_mean", "running_var") and isinstance(modules.get(owner), BatchNorm)


def _own_tensors(module: nn.Module) -> None:
    for name, value in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.clone())


def _set_statistics(norm: BatchNorm) -> None:
    """Factor and shift will stand in weight and bias: let the statistics change nothing."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
