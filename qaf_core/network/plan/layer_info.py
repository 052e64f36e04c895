"""One row per weight layer of a network: shape, operations, what may become of it. Imports without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from qaf_core.errors import ModelError
from qaf_core.factorization.structures import FACTORIZED, STRUCTURES
from qaf_core.records import Record
from qaf_core.text.said import say

Sizes = tuple[int, ...]

KEEP = "keep"  # of a layer that stays; no structure
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PLANNED_KINDS = (*CONVOLUTIONS, "linear")


@dataclass(frozen=True, kw_only=True)
class LayerInfo(Record):
    """A weight layer as one forward pass of one image saw it.

    Attributes:
        name: Of the weight, without ``.weight`` (but for a layer that stands alone between Python code, as in
            a network that decides by values); ``(model)`` for parameters of the network itself.
        kind: ``conv2d``, ``conv_transpose1d``, ``linear``, ``batchnorm``, or another: ``layernorm``,
            ``attention``, ``parameter`` …
        weight_shape: Shape of the weight; a convolution's, transposed or not, is (C_out, C_in / groups, k…).
        kernel: Kernel sizes; (1, 1) where there is no kernel, as for the next three.
        stride: Stride in each dimension.
        padding: Padding in pixels, before each dimension; ``same`` and ``valid`` are resolved to numbers.
        dilation: Dilation in each dimension.
        groups: Groups of a convolution.
        bias: Whether the layer has a bias of its own.
        input_hw: Spatial sizes of the input, in its largest call; None unless a convolution that runs.
        output_hw: The same of the output.
        macs: Multiply-accumulates per image, summed over all calls.
        params: Trainable numbers; a tensor shared between layers counts where it comes first.
        structures: What a plan may make of the layer; empty for BatchNorm.
        skip_reason: Why the layer cannot be factorized, in words, or None.
        calls: How often the layer runs in one forward pass.
        output_elements: Numbers it puts out per image, summed over all calls.
        input_elements: Numbers it takes in per image, summed over all calls (0: derived from the shapes).
        folds_batchnorm: A BatchNorm follows that can be folded into this layer's weight and bias.
        folded_into: For a BatchNorm: the layer it can be folded into, or None.
        padding_mode: Always ``zeros``: other paddings are operations of their own before the layer.
        after_choice: What reaches the layer was selected by value, as a detector selects boxes: two networks
            that select differently agree in no row of it.
        final: What the layer puts out reaches the network's output, and no other layer: a classifier, or one
            of several heads.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    kernel: Sizes = (1, 1)
    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    groups: int = 1
    bias: bool = False
    input_hw: Sizes | None = None
    output_hw: Sizes | None = None
    macs: int = 0
    params: int = 0
    structures: tuple[str, ...] = (KEEP,)
    skip_reason: str | None = None
    calls: int = 1
    output_elements: int = 0
    input_elements: int = 0
    folds_batchnorm: bool = False
    folded_into: str | None = None
    padding_mode: str = "zeros"
    after_choice: bool = False
    final: bool = False

    def __post_init__(self) -> None:
        if not self.input_elements and self.kind in CONVOLUTIONS and self.input_hw is not None:
            elements = self.calls * self.in_channels * prod(self.input_hw)
            object.__setattr__(self, "input_elements", elements)
        elif not self.input_elements and self.kind == "linear" and self.output_elements:
            elements = self.output_elements // self.out_channels * self.in_channels
            object.__setattr__(self, "input_elements", elements)

    @property
    def eligible(self) -> bool:
        """Whether the layer has a factorized structure."""
        return any(structure in FACTORIZED for structure in self.structures)

    @property
    def planned(self) -> bool:
        """Whether a plan must list the layer."""
        return self.kind in PLANNED_KINDS

    @property
    def out_channels(self) -> int:
        """C_out of a convolution or out_features of a linear layer (first dimension of any other weight)."""
        return self.weight_shape[0] if self.weight_shape else 0

    @property
    def in_channels(self) -> int:
        """C_in of a convolution (of all groups) or in_features of a linear layer."""
        return self.weight_shape[1] * self.groups if len(self.weight_shape) > 1 else 0

    @property
    def kernel_elements(self) -> int:
        """k_h · k_w; 1 for a linear layer."""
        return prod(self.kernel)

    @property
    def weight_numel(self) -> int:
        """Numbers in the weight, without the bias."""
        return prod(self.weight_shape)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> LayerInfo:
        """Read a row written by ``to_dict``.

        Raises:
            ModelError: If a field is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(row) - known)
        missing = sorted({"name", "kind", "weight_shape"} - set(row))
        if unknown or missing:
            raise ModelError(
                say("damaged inventory row {get!r}", get=row.get("name", "")),
                got=say(
                    "unknown fields {unknown}, missing fields {missing}", unknown=unknown, missing=missing
                ),
                remedy="take the inventory again from the model",
            )
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        return cls(**values)


def possible_structures(weight_shape: Sequence[int]) -> tuple[str, ...]:
    """What a plan may make of a layer of one group with such a weight by rows."""
    return (*(name for name, structure in STRUCTURES.items() if structure.takes(weight_shape)), KEEP)


def inventory_from_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[LayerInfo, ...]:
    """Read rows written by ``LayerInfo.to_dict``.

    Raises:
        ModelError: If a row is damaged.
    """
    return tuple(LayerInfo.from_dict(row) for row in rows)


def first_convolution(inventory: Iterable[LayerInfo]) -> LayerInfo | None:
    """The first convolution in forward order, or None."""
    return next((info for info in inventory if info.kind in CONVOLUTIONS and info.calls), None)


def output_layers(inventory: Sequence[LayerInfo]) -> tuple[LayerInfo, ...]:
    """The layers whose outputs are the network's: the classifier, or the last layer of each head."""
    last = tuple(info for info in inventory if info.planned and info.final)
    if last:
        return last
    single = classifier(inventory)  # an inventory of an older file does not say which layers are final
    return () if single is None else (single,)


def classifier(inventory: Iterable[LayerInfo]) -> LayerInfo | None:
    """The last linear layer in forward order (the last convolution where there is none), or None."""
    running = [info for info in inventory if info.planned and info.calls]
    candidates = [info for info in running if info.kind == "linear"] or running
    return candidates[-1] if candidates else None
