"""What may be made of each layer, as plain rows: setting, expected harm, cost. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaf_core.factorization.structures import STRUCTURES, Rank
from qaf_core.network.plan.chains import rank_for_ratio
from qaf_core.network.plan.cost import layer_cost
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import Bits, LayerPlan, Plan

RATIOS = (1.5, 2.0, 3.0, 4.5, 7.0)
BITS = (8, 6, 5, 4, 3, 2)
# Of factorized layers also with one bit less in the largest factor that is not fitted to outputs: what its
# rounding does wrong the fit makes up for. (Real ResNet-20, layer3.1.conv1, errors of outputs at equal size:
# CP of ratio 2 and 4, 4, 4 bits 0.180, of 4, 3, 4 bits 0.162; Tucker-2 of ratio 3 and 3, 3, 3 bits 0.421, of
# 3, 2, 3 bits 0.371.)
UNEVEN_BITS = (5, 4, 3)
SMALLEST_HARM = 1e-12
# Of layers together: a run fits later layers to make up for part of what those before them do, so that many
# small harms come to less than their sum (eleven plans of the real ResNet-20: a third less spread).
TOGETHER = 1.25
# Between settings: how many times harm halves with a bit more, and with ranks doubled.
HARM_OF_BITS, HARM_OF_RANKS = 1.0, 2.0
BITS_OF_A_RANK = 4.0  # bits that are as far away as a doubled rank


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that a layer may become.

    Attributes:
        row: The layer's row of a plan.
        harm: Expected divergence from the original, an image, if only this layer is changed.
        size_bytes: In the packed file.
        bops: Bit operations an image.
    """

    row: LayerPlan
    harm: float
    size_bytes: int
    bops: int

    @property
    def bits(self) -> float:
        """Weight bits, the mean over factors; 32 where the layer is kept."""
        bits = self.row.bits
        return float(sum(bits) / len(bits)) if isinstance(bits, tuple) else float(bits or 32)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**self.row.to_dict(), "harm": self.harm, "size_bytes": self.size_bytes, "bops": self.bops}


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What every setting of every layer is expected to harm.

    Attributes:
        activation_bits: Of all plans it speaks of.
        settings: By layer, in the order of the inventory.
        floor: Divergence of the network with all layers ``dense`` at 8 bits, and activations as said.
        unit: What harms are: ``divergence`` of class scores, or relative ``squared error`` of outputs.
        how: ``curvature``, or ``measured`` where no gradients pass the network.
        temperature: What class scores were divided by for that.
        images: Calibration images looked at.
        seconds: What it took.
    """

    activation_bits: int
    settings: Mapping[str, tuple[Setting, ...]]
    floor: float
    unit: str
    how: str
    temperature: float
    images: int
    seconds: float

    def harm_of(self, row: LayerPlan) -> float | None:
        """What a layer's setting is expected to harm, between those that were looked at; None where none of
        its structure was.
        """
        known = [
            setting for setting in self.settings.get(row.name, ()) if setting.row.structure == row.structure
        ]
        if row.structure == KEEP:
            return 0.0
        exact = [
            setting.harm for setting in known if (setting.row.rank, setting.row.bits) == (row.rank, row.bits)
        ]
        if exact:
            return exact[0]
        return _interpolated(row, known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            **{key: value for key, value in self.__dict__.items() if key != "settings"},
            "layers": [
                {"name": name, "settings": [setting.to_dict() for setting in settings]}
                for name, settings in self.settings.items()
            ],
        }


def harm_rows(
    info: LayerInfo, harms: Mapping[tuple[str, Rank, Bits], float], activation_bits: int
) -> tuple[Setting, ...]:
    """A layer's settings with what each harms and costs, ``keep`` first."""
    rows = [LayerPlan(name=info.name, structure=KEEP)]
    rows += [
        LayerPlan(name=info.name, structure=structure, rank=rank, bits=bits)
        for structure, rank, bits in harms
    ]
    settings = []
    for row, harm in zip(rows, (0.0, *harms.values()), strict=True):
        cost = layer_cost(info, row, activation_bits)
        settings.append(Setting(row=row, harm=harm, size_bytes=cost.size_bytes, bops=cost.bops))
    return tuple(settings)


def ranks_of(info: LayerInfo, structure: str) -> tuple[Rank, ...]:
    """The ranks that are looked at, falling, each once."""
    return tuple(dict.fromkeys(rank_for_ratio(info, structure, ratio) for ratio in RATIOS))


def factorized_structures(info: LayerInfo) -> tuple[str, ...]:
    """The factorized structures a layer can have."""
    return tuple(name for name in info.structures if name in STRUCTURES and STRUCTURES[name].factorizes)


def plain_structure(info: LayerInfo) -> str | None:
    """The structure in which a layer is quantized and not factorized; None where it can only be kept."""
    names = (name for name in info.structures if name in STRUCTURES and not STRUCTURES[name].factorizes)
    return next(names, None)


def uneven_bits(structure: str, rank: Rank, weight_shape: Sequence[int], bits: int) -> tuple[int, ...]:
    """Bits of each factor, one less in the largest that is not fitted to outputs."""
    sizes = [math.prod(shape) for shape in STRUCTURES[structure].factor_shapes(weight_shape, rank)]
    largest = max(range(1, len(sizes)), key=lambda factor: sizes[factor])
    return tuple(bits - (factor == largest) for factor in range(len(sizes)))


def between_bits(
    harms: Mapping[int, float], unrounded: float, wanted: Sequence[int] = BITS
) -> dict[int, float]:
    """Harms at all bit-widths from those at some: what rounding adds goes with the square of the step.

    Args:
        harms: By bit-width, the smallest wanted among them.
        unrounded: Of the same factors in floating point; 0 of the weight itself.
        wanted: Bit-widths.
    """
    added = {bits: max(harm - unrounded, SMALLEST_HARM) for bits, harm in harms.items()}
    finest = max(added)
    for bits in wanted:
        if bits > finest:
            added[bits] = added[finest] * ((2**finest - 1) / (2**bits - 1)) ** 2
    for bits in sorted(set(wanted) - set(added)):
        below, above = max(b for b in added if b < bits), min(b for b in added if b > bits)
        share = (bits - below) / (above - below)
        added[bits] = math.exp((1 - share) * math.log(added[below]) + share * math.log(added[above]))
    return {bits: unrounded + added[bits] for bits in wanted}


def _interpolated(row: LayerPlan, known: Iterable[Setting]) -> float:
    """From the settings nearest in rank and bits, each carried over by how harms mostly go with the two."""
    bits = row.bits if isinstance(row.bits, tuple) else (row.bits or 32,)
    mean, size = sum(bits) / len(bits), math.log2(_rank_size(row.rank))
    total, weights = 0.0, 0.0
    for setting in known:
        finer, larger = mean - setting.bits, size - math.log2(_rank_size(setting.row.rank))
        weight = 1.0 / (abs(finer) + BITS_OF_A_RANK * abs(larger) + 0.02) ** 4
        carried = math.log2(max(setting.harm, SMALLEST_HARM)) - HARM_OF_BITS * finer - HARM_OF_RANKS * larger
        total += weight * carried
        weights += weight
    return float(2.0 ** (total / weights))


def _rank_size(rank: Rank) -> float:
    if isinstance(rank, tuple):
        return math.sqrt(max(math.prod(rank), 1))
    return float(rank or 1)


def harm_together(harms: Iterable[float]) -> float:
    """What layers' harms come to in one network."""
    return math.pow(math.fsum(harm**TOGETHER for harm in harms), 1.0 / TOGETHER)


def plan_harms(sensitivity: Sensitivity, plan: Plan) -> dict[str, float | None]:
    """What each layer of a plan is expected to harm; None where nothing is known of it."""
    return {row.name: sensitivity.harm_of(row) for row in plan.layers}


def sensitivity_from_dict(data: Mapping[str, Any]) -> Sensitivity:
    """Read what ``Sensitivity.to_dict`` wrote."""
    settings = {
        layer["name"]: tuple(
            Setting(
                row=LayerPlan.from_dict({key: row[key] for key in ("name", "structure", "rank", "bits")}),
                harm=float(row["harm"]),
                size_bytes=int(row["size_bytes"]),
                bops=int(row["bops"]),
            )
            for row in layer["settings"]
        )
        for layer in data["layers"]
    }
    return Sensitivity(**{key: value for key, value in data.items() if key != "layers"}, settings=settings)
