"""Reading a packed file, see ``format``: into the network it was made from, checked as it is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qaf_core.deploy.packed.format import (
    CHECKSUM_KEY,
    FORMAT_VERSION,
    INDEX_KEY,
    OLDEST_VERSION,
    as_factor_and_shift,
    checksum_of,
    in_one_line,
    kept_outside,
)
from qaf_core.deploy.packed.kept_tensors import (
    exact_tensors,
    is_fixed,
    put_back,
    read_exact,
    split_packed,
)
from qaf_core.errors import ModelError, WeightsError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of, networks_in
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import BatchNorm, FactorizedLayer, Folded, Layer, Link, swap_layer
from qaf_core.network.passes.requantization import connect_chains
from qaf_core.quantization.grid import ACTIVATION_GRID
from qaf_core.quantization.packing import unpack_codes
from qaf_core.text.said import say


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
        if link.grid.is_float:
            link.codes = self.half(link.codes.shape)
            link.scales = torch.ones(scale_shape)
        else:
            packed = self._take("codes", link.grid.packed_bytes(link.codes.numel()))
            link.codes = unpack_codes(packed, link.grid, link.codes.numel()).reshape(link.codes.shape)
            link.scales = self.half(scale_shape)
        link.bias = nn.Parameter(self.half([outputs]), requires_grad=False) if has_bias else None
        step, zero = float(self._take("steps", 1)), int(self._take("zeros", 1))
        if step > 0:
            # set_range rounds to the same step and zero point again.
            link.input_quantizer.set_range(-zero * step, (ACTIVATION_GRID.high - zero) * step)


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
            if with_tensors and metadata[CHECKSUM_KEY] != checksum_of(text, tensors):
                raise WeightsError(
                    "the packed model has been altered or damaged",
                    got=say("{path} (its checksum does not hold)", path=path),
                    remedy="take an intact copy, or compress it again",
                )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(
            "this is no complete packed model",
            got=f"{path} ({in_one_line(error)})",
            remedy="take an intact copy, or compress it again",
        ) from error
    return index, tensors


def _check_version(path: Path, version: int) -> None:
    if version > FORMAT_VERSION:
        raise WeightsError(
            "the packed model was made by a newer version of qaf",
            got=say("{path}, format {version}", path=path, version=version),
            expected=say("format {version}", version=FORMAT_VERSION),
            remedy="update qaf",
        )
    if version < OLDEST_VERSION:
        raise WeightsError(
            "the packed model was made by an older version of qaf",
            got=say("{path}, format {version}", path=path, version=version),
            expected=say("format {version}", version=FORMAT_VERSION),
            remedy="compress it again",
        )


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
            got=f"{path} ({in_one_line(error)})",
            remedy="build the network it was made from",
        ) from error
    return model.eval()


def without_numbers(model: nn.Module, *, of_code: bool = False) -> nn.Module:
    """A copy of a captured network with other numbers in all that a file is to hold: if a file left something
    out, the network read back would show it.

    Args:
        model: The network.
        of_code: A file is to hold what follows from the network's code too: whoever reads it may have the
            network built otherwise, as at random.
    """
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in kept_outside(copied, ()).values():
        tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor)
    for key, tensor in (*copied.named_parameters(), *copied.named_buffers()):
        if of_code and is_fixed(key):
            tensor.data = (tensor == 0).to(tensor.dtype)
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
    known = kept_outside(model, ()).keys()
    older = split_packed({key: tensor for key, tensor in kept.items() if key not in known})
    kept = {**kept, **older, **read_exact(index.get("exact", ()), tensors)}
    _restore_kept(model, kept, [row[0] for row in index["layers"]])
    for part in networks_in(model).values():
        part.read_from_file = True
    connect_chains(model.eval())


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
    for key, tensor in kept_outside(model, chains).items():
        names.setdefault(id(tensor), []).append(key)
    alike = {key: group for group in names.values() for key in group}
    for module in model.modules():
        if isinstance(module, Layer | BatchNorm):
            _own_tensors(module)
        if isinstance(module, BatchNorm):
            _set_statistics(module)
    modules = dict(model.named_modules())
    outside = kept_outside(model, chains)
    needed = {*outside, *as_factor_and_shift(model, chains)}
    state = {}
    for key in needed - kept.keys():
        source = next((other for other in alike.get(key, ()) if other in kept), None)
        if source is None and not _is_statistic(modules, key):
            raise ValueError(f"nothing in the file for {key}")
        if source is not None:
            state[key] = kept[source]
    present = {*outside, *exact_tensors(model)}
    for key, tensor in kept.items():
        owner, _, part = key.rpartition(".")
        if key in present or is_fixed(key) or _is_statistic(modules, key):
            state[key] = tensor
        elif part in ("weight", "bias") and isinstance(modules.get(owner), Layer | BatchNorm):
            setattr(modules[owner], part, nn.Parameter(tensor, requires_grad=False))
    put_back(model, state)


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
