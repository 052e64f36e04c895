"""Writing a packed file, see ``format``: codes bit by bit, all else in half precision or exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as to_safetensors
from torch import Tensor, nn

from qaf_core.deploy.packed.format import (
    CHECKSUM_KEY,
    FORMAT_VERSION,
    INDEX_KEY,
    TOP_EXPONENT,
    as_factor_and_shift,
    checksum_of,
    kept_outside,
    statistics_of,
)
from qaf_core.deploy.packed.kept_tensors import (
    EXACT_KEY,
    exact_tensors,
    fits_half,
    is_within,
    made_otherwise,
    smallest_type,
)
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.files import write_file
from qaf_core.network.graph.network import chains_in, layer_of
from qaf_core.network.modules.quantized import BatchNorm, FactorizedLayer, Folded, Layer, Link
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.quantization.packing import pack_codes


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
        exponent = int(np.frexp(largest)[1]) - TOP_EXPONENT if largest > 0 else 0
        exponent = min(max(exponent, -128), 127)
        self.halves.append((flat * 2.0**-exponent).to(torch.float16))
        self.gains.append(exponent)

    def add_link(self, link: Link, factor: Tensor | None, bias: Tensor | None) -> None:
        """A link's codes, scales, bias and quantizer; its output multiplied by ``factor`` per channel."""
        outputs = link.codes.shape[0]
        if link.grid.is_float:
            weight = link.weight.detach().reshape(outputs, -1)
            self.add_half(weight if factor is None else weight * factor[:, None])
        else:
            scales = link.scales.detach().expand(outputs, *link.scales.shape[1:]).reshape(outputs)
            self.codes.append(pack_codes(link.codes, link.grid))
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
    exact = {key: tensor.float() for key, tensor in outside.items() if key not in kept}
    exact |= exact_tensors(model)
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
    content = to_safetensors(tensors, {INDEX_KEY: text, CHECKSUM_KEY: checksum_of(text, tensors)})
    write_file(path, content)
    return len(content)


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


def _add_chain(
    packed: _Packed, info: LayerInfo, chain: FactorizedLayer, fold: tuple[str, nn.Module] | None
) -> list[Any]:
    """Write a layer's links; its row of the index."""
    statistics = None if fold is None else statistics_of(fold[1])
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
    skip = (*chains, *(name for name, _ in folds.values()))
    changed = as_factor_and_shift(model, skip)
    for source, (_, norm) in folds.items():
        statistics = statistics_of(norm)
        if source not in chains and statistics is not None:
            factor, shift = statistics
            layer = layer_of(model, source)
            rows = layer.rows.detach().double()
            rows = rows * factor.reshape(-1, *(1,) * (rows.ndim - 1))
            changed[f"{source}.weight"] = layer.operation.as_stored(rows)
            bias = layer.bias
            changed[f"{source}.bias"] = shift if bias is None else shift + bias.detach().double() * factor
    return {key: tensor for key, tensor in _each_once(model, skip, changed) if not is_within(key, skip)}


def _each_once(
    model: nn.Module, skip: Sequence[str], changed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What a file keeps: a tensor with several names once, or under all of them where one is changed."""
    outside = kept_outside(model, skip)
    names: dict[int, list[str]] = {}
    for key, tensor in outside.items():
        names.setdefault(id(tensor), []).append(key)
    yield from changed.items()
    for key, tensor in outside.items():
        alike = names[id(tensor)]
        if key not in changed and (key == alike[0] or any(other in changed for other in alike)):
            yield key, tensor.detach()
