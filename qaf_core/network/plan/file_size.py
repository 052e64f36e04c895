"""Bytes of a compressed network in the packed file, to the byte but for the text of its index. Free of torch.

A link holds its codes at their bit-width, starting on a byte, one fp16 scale per output channel and the
quantizer of its input; a link in floating point holds fp16 numbers instead. Biases and kept tensors are
fp16. Every run of fp16 numbers has one exponent that brings it into range.
"""

from __future__ import annotations

from math import prod

from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.chains import chain_structure, factor_shapes
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.quantization.grid import Grid

HALF_BYTES = 2
GAIN_BYTES = 1  # exponent of a run of fp16 numbers
QUANTIZER_BYTES = 5  # step and zero point of a link's input

# Header and index, fitted to real files; names of layers come on top. The model's card
# and the checksum are in the fixed part.
CONTAINER_BYTES_FIXED = 800
CONTAINER_BYTES_PER_LAYER = 23  # structure, rank and bits of a compressed layer
CONTAINER_BYTES_PER_FOLD = 5  # a folded BatchNorm
CONTAINER_BYTES_PER_TENSOR = 26  # part of the layer and shape of a kept tensor


def bias_count(info: LayerInfo) -> int:
    """Biases a layer holds once it has taken up the BatchNorm that follows it."""
    return info.out_channels if info.bias or info.folds_batchnorm else 0


def chain_bytes(info: LayerInfo, structure: str, rank: Rank, bits: tuple[int, ...]) -> int:
    """Bytes of a compressed layer without its row of the index.

    Args:
        info: The layer.
        structure: ``cp``, ``svd``, ``tucker2`` or ``dense``.
        rank: Of that structure.
        bits: Of each factor, in the order of ``factor_shapes``.
    """
    shapes, descriptor = factor_shapes(info, structure, rank), chain_structure(structure, rank)
    outputs = (info.out_channels,) if descriptor is None else descriptor.outputs(info.weight_shape, rank)
    total = 0
    for shape, width, channels in zip(shapes, bits, outputs, strict=True):
        numbers = prod(shape)
        total += (
            HALF_BYTES * numbers
            if Grid.of(width).is_float
            else Grid.of(width).packed_bytes(numbers) + HALF_BYTES * channels
        )
        total += GAIN_BYTES + QUANTIZER_BYTES
    biases = bias_count(info)
    return total + HALF_BYTES * biases + GAIN_BYTES * (biases > 0)


def chain_index_bytes(info: LayerInfo) -> int:
    """Bytes of a compressed layer's row of the index."""
    return CONTAINER_BYTES_PER_LAYER + _name_bytes(info)


def kept_index_bytes(info: LayerInfo) -> int:
    """Bytes a layer that stays spends beside its fp16 numbers: exponents and rows of the index."""
    if info.folded_into is not None:
        return CONTAINER_BYTES_PER_FOLD + _name_bytes(info)
    tensors = 2 if info.kind == "batchnorm" else (info.params > 0) + (bias_count(info) > 0)
    return tensors * (CONTAINER_BYTES_PER_TENSOR + _name_bytes(info) + GAIN_BYTES)


def _name_bytes(info: LayerInfo) -> int:
    return len(info.name.encode())
