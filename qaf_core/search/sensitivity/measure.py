"""The sensitivity of a whole network: curvature, quick solves of every layer, true divergences of some."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.factorization.structures import STRUCTURES, Rank
from qaf_core.files import ContentCache, digest_of
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layers_in
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Bits, LayerPlan, Plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.input_moments import InputStatistics, collect_moments, collect_statistics
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.divergence import output_divergence
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.grid import FLOAT
from qaf_core.search.sensitivity.changes import Change, Weight, dense_change, factorized_changes
from qaf_core.search.sensitivity.curvature import LayerCurvature, measure_curvature
from qaf_core.search.sensitivity.exchange import Exchange
from qaf_core.search.sensitivity.settings import (
    BITS,
    UNEVEN_BITS,
    Sensitivity,
    Setting,
    between_bits,
    factorized_structures,
    harm_rows,
    plain_structure,
    ranks_of,
    uneven_bits,
)
from qaf_core.text.said import say

TABLE_VERSION = 7  # raised with every change of what is expected
# Of layers that are only rounded, and of factorized ones, evenly and unevenly; others lie between or beyond.
DENSE_BITS, EVEN_BITS, SOLVED_UNEVENLY = (4, 3, 2), (4, 2), (4, 3)
SWAPPED_PIXELS = 64 * 224 * 224  # of the images that true divergences are measured on
MOST_SWAPPED, LEAST_SWAPPED = 96, 16
STATISTICS_IMAGES = 256
JUDGING_SHARE = 3  # one calibration image in three judges, and all that no statistics need
LEAST_JUDGING = 8
WORTH_MEASURING = (1e-4, 3.0)  # divergences that tell something and are none of a network destroyed
ANCHORS = 6  # true divergences of each layer
SHIFT_PRIOR, SLOPE_PRIOR = 0.2, 1.0  # how strongly corrections are drawn to none
HOPELESS = 3.0  # times the least harm among structures of as many numbers
REACH = 1.0  # of a correction beyond its anchors, in logarithms
FLOOR_IMAGES = 64

Key = tuple[str, Rank, Bits]
_Tried = tuple[str, Rank, dict[Bits, Change]]


def measure_sensitivity(
    model: nn.Module,
    inventory: Sequence[LayerInfo],
    calibration: Tensor,
    *,
    activation_bits: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    cache: ContentCache | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """What every setting of every layer is expected to harm.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        calibration: Normalised images ``(N, C, H, W)`` without labels.
        activation_bits: Of the plans to come.
        temperature: What class scores are divided by (see ``curvature``).
        seed: Of all that is drawn.
        cache: Keeps the harms of finished layers, or None.
        progress: Told how far it is (stage ``sensitivity``), and asked whether to stop.

    Raises:
        RunCancelled: If stopped; finished layers are kept.
    """
    progress = progress or Progress()
    original = capture(model, tuple(calibration.shape[1:]))
    network = MeasuredNetwork.of(
        original, inventory, calibration, seed, progress,
        temperature=temperature, activation_bits=activation_bits,
    )  # fmt: skip
    network.probe(progress)
    settings: dict[str, tuple[Setting, ...]] = {}
    infos = [info for info in inventory if info.planned]
    for index, info in enumerate(infos):
        progress.step(
            "sensitivity", say("Trying settings of {info}", info=info.name), index / max(len(infos), 1)
        )
        harms: dict[Key, float] = {}
        if info.name in network.weights:
            key = digest_of(TABLE_VERSION, info.to_dict(), network.key(info.name), seed)
            kept = None if cache is None else cache.read(key)
            harms = network.harms(info, progress) if kept is None else _from_rows(kept)
            if kept is None and cache is not None:
                cache.keep(key, _to_rows(harms))
        elif (plain := plain_structure(info)) is not None:  # it never runs: whatever it becomes harms nothing
            harms = {(plain, None, bits): 0.0 for bits in BITS}
        settings[info.name] = harm_rows(info, harms, activation_bits)
    progress.step("sensitivity", "Rounding all activations")
    return Sensitivity(
        activation_bits=activation_bits,
        settings=settings,
        floor=_floor(original, inventory, calibration, activation_bits, temperature, progress),
        unit="divergence" if network.exchange.scored else "squared error",
        how="curvature" if network.curvatures else "measured",
        temperature=temperature,
        images=len(calibration),
        seconds=progress.elapsed_seconds,
    )


@dataclass(kw_only=True)
class MeasuredNetwork:
    """A network and all that is known of its layers before any setting is tried.

    Attributes:
        network: A copy of the original, captured.
        judging: Images that harms are measured on.
        exchange: Puts weights in place and tells the true divergence on some of them.
        weights: Of layers, with what is known of their inputs.
        seed: Of all that is drawn.
        temperature: What class scores are divided by.
        activation_bits: Of the plans to come.
        statistics: Of layers' inputs.
        curvatures: Of layers' weights; none before :meth:`probe`, or where no gradients pass.
        anchors: Pairs of harms expected and found, by layer.
        changes: Of weights, by row of a plan.
    """

    network: nn.Module
    judging: Tensor
    exchange: Exchange
    weights: Mapping[str, Weight]
    seed: int
    temperature: float
    activation_bits: int
    statistics: Mapping[str, InputStatistics]
    curvatures: Mapping[str, LayerCurvature] = field(default_factory=dict)
    anchors: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    changes: dict[LayerPlan, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inventory: Sequence[LayerInfo],
        calibration: Tensor,
        seed: int,
        progress: Progress,
        *,
        temperature: float = 1.0,
        activation_bits: int = 8,
    ) -> MeasuredNetwork:
        """Collect what reaches each layer."""
        network = copy.deepcopy(capture(model, tuple(calibration.shape[1:]))).eval()
        known = layers_in(network)
        names = [info.name for info in inventory if info.planned and info.calls and info.name in known]
        fitted, judging = fitted_and_judging(calibration)
        pixels = max(judging[0, 0].numel(), 1)
        few = list(torch.split(fitted, 32))
        progress.step("sensitivity", "Looking at what reaches each layer", 0.0)
        statistics = collect_statistics(network, names, few, per_position=True)
        by_channel = collect_moments(network, names, few[:4], per_position=False)
        swapped = judging[: max(LEAST_SWAPPED, min(MOST_SWAPPED, SWAPPED_PIXELS // pixels))]
        weights = {
            name: Weight(
                rows=known[name].rows.detach(),
                statistics=_of_patches(known[name].rows, statistics.get(name)),
                by_channel=by_channel.get(name),
            )
            for name in names
        }
        return cls(
            network=network,
            judging=judging,
            exchange=Exchange(network, swapped, weights, temperature),
            weights=weights,
            seed=seed,
            statistics=statistics,
            temperature=temperature,
            activation_bits=activation_bits,
        )

    def probe(self, progress: Progress) -> None:
        """Measure the curvature; of a network that no gradient passes (integer operations, in-place ones)
        none, and all harms are measured.
        """
        with contextlib.suppress(RuntimeError):
            self.curvatures = measure_curvature(
                copy.deepcopy(self.network),
                list(self.weights),
                self.judging,
                self.statistics,
                temperature=self.temperature,
                seed=self.seed,
                progress=progress,
            )

    def key(self, name: str) -> str:
        """A digest of all that a layer's harms depend on."""
        weight, curvature = self.weights[name], self.curvatures.get(name)
        parts = [weight.rows, self.exchange.images]
        parts += [] if weight.statistics is None else [weight.statistics.mean, weight.statistics.moment]
        parts += [] if curvature is None else [curvature.gradients, curvature.sizes, curvature.outputs]
        return digest_of(
            *(part.detach().cpu().contiguous().numpy().data for part in parts),
            self.temperature,
            self.activation_bits,
        )

    def harms(self, info: LayerInfo, progress: Progress) -> dict[Key, float]:
        """Expected harms of a layer's settings, corrected by true divergences of some."""
        weight = self.weights[info.name]
        tried: list[_Tried] = []
        if (plain := plain_structure(info)) is not None:
            tried.append((plain, None, {bits: dense_change(weight, bits) for bits in DENSE_BITS}))
        ranks = {structure: ranks_of(info, structure) for structure in factorized_structures(info)}
        middle = {structure: entry[len(entry) // 2] for structure, entry in ranks.items()}
        first = [self._solved(info.name, structure, rank, progress) for structure, rank in middle.items()]
        tried += first
        for structure in self._promising(info.name, first):
            others = (rank for rank in ranks[structure] if rank != middle[structure])
            tried += [self._solved(info.name, structure, rank, progress) for rank in others]
        if not tried:
            return {}
        changes = [change for _, _, entry in tried for change in entry.values()]
        values = iter(self._judged(info.name, changes, progress))
        harms: dict[Key, float] = {}
        for structure, rank, entry in tried:
            by_bits = {bits: next(values) for bits in entry}
            for bits, harm in self._between(info.name, structure, rank, by_bits).items():
                harms[structure, rank, bits] = harm
        return harms

    def _between(
        self, name: str, structure: str, rank: Rank, found: Mapping[Bits, float]
    ) -> dict[Bits, float]:
        """Harms at all bits from those at some."""
        unrounded = found.get(FLOAT.bits, 0.0)
        even = {bits: harm for bits, harm in found.items() if isinstance(bits, int) and bits != FLOAT.bits}
        harms: dict[Bits, float] = dict(between_bits(even, unrounded).items())
        uneven = {max(bits): harm for bits, harm in found.items() if isinstance(bits, tuple)}
        if uneven:
            shape = self.weights[name].rows.shape
            for width, harm in between_bits(uneven, unrounded, UNEVEN_BITS).items():
                harms[uneven_bits(structure, rank, shape, width)] = harm
        return harms

    def _solved(self, name: str, structure: str, rank: Rank, progress: Progress) -> _Tried:
        progress.check()
        shape = self.weights[name].rows.shape
        uneven = [uneven_bits(structure, rank, shape, bits) for bits in SOLVED_UNEVENLY]
        finest, coarsest = EVEN_BITS
        return (
            structure, rank,
            self._factorized(name, structure, rank, (FLOAT.bits, finest, *uneven, coarsest)),
        )  # fmt: skip

    def _factorized(
        self, name: str, structure: str, rank: Rank, bits: tuple[Bits, ...]
    ) -> dict[Bits, Change]:
        weight = self.weights[name]
        return factorized_changes(weight, structure, rank, bits, self.seed, self.activation_bits)

    def _promising(self, name: str, first: Sequence[_Tried]) -> list[str]:
        """Structures worth further ranks: at as many numbers the others do several times the harm."""
        curvature = self.curvatures.get(name)
        if curvature is None or not first:
            return [structure for structure, _, _ in first]
        finest = max(EVEN_BITS)
        harms = curvature.harms(_stacked([entry[finest] for _, _, entry in first])).tolist()
        limit = HOPELESS * min(harms)
        return [structure for (structure, _, _), harm in zip(first, harms, strict=True) if harm <= limit]

    def _judged(self, name: str, changes: Sequence[Change], progress: Progress) -> list[float]:
        """Harms of changes of one layer."""
        curvature = self.curvatures.get(name)
        if curvature is None:
            harms = []
            for change in changes:
                progress.check()
                harms.append(self.exchange.divergence({name: change.weight}))
            return harms
        expected = [max(float(harm), 0.0) for harm in curvature.harms(_stacked(changes))]
        anchors = []
        for index in spread_over(expected, WORTH_MEASURING, ANCHORS):
            progress.check()
            true = self.exchange.divergence({name: changes[index].weight})
            if math.isfinite(true) and true > 0:
                anchors.append((expected[index], true))
        self.anchors[name] = anchors
        noise = [0.0 if row.spread is None else curvature.harm_of_noise(row.spread) for row in changes]
        return corrected([sum(both) for both in zip(expected, noise, strict=True)], anchors)

    def change(self, row: LayerPlan) -> Tensor | None:
        """What a row of a plan makes of its layer's weight, less the weight; None where nothing changes."""
        weight = self.weights.get(row.name)
        if weight is None or row.structure == KEEP:
            return None
        if row not in self.changes:
            widths = row.bits if isinstance(row.bits, tuple) else (row.bits or FLOAT.bits,)
            if STRUCTURES[row.structure].factorizes:
                steps = tuple(dict.fromkeys((FLOAT.bits, max(*widths, max(EVEN_BITS)), row.bits)))
                changes = self._factorized(row.name, row.structure, row.rank, steps)
                self.changes[row] = changes[row.bits].weight
            else:
                self.changes[row] = dense_change(weight, min(widths)).weight
        return self.changes[row]

    def rehearse(self, plan: Plan, *, without: str | None = None) -> float:
        """The divergence when all layers' weights are changed as planned, one perhaps left out: without
        rounded activations, and without what a run's layers make up for of those before them.
        """
        changes = {row.name: self.change(row) for row in plan.layers}
        made = {name: change for name, change in changes.items() if change is not None}
        return self.exchange.divergence(made, without=without)


def fitted_and_judging(calibration: Tensor) -> tuple[Tensor, Tensor]:
    """Images that weights are fitted to, and others that tell what a change of weights harms.

    A fit to few images does better on them than on any others: a layer of more inputs than there are images
    could be fitted to them at two bits. Of very few images all are both.
    """
    judging = max(len(calibration) // JUDGING_SHARE, len(calibration) - STATISTICS_IMAGES)
    if judging < LEAST_JUDGING:
        return calibration, calibration
    return calibration[:-judging], calibration[-judging:]


def spread_over(values: Sequence[float], within: tuple[float, float], count: int) -> list[int]:
    """Numbers of values, about evenly apart in logarithms, of those within two bounds."""
    low, high = within
    worth = [index for index, value in enumerate(values) if low < value < high]
    if not worth:
        return []
    ends = [math.log(min(values[index] for index in worth)), math.log(max(values[index] for index in worth))]
    aims = [ends[0] + (ends[1] - ends[0]) * step / max(count - 1, 1) for step in range(count)]
    nearest = (min(worth, key=lambda index: abs(math.log(values[index]) - aim)) for aim in aims)
    return list(dict.fromkeys(nearest))


def corrected(expected: Sequence[float], anchors: Sequence[tuple[float, float]]) -> list[float]:
    """Harms moved to where true divergences lie: a straight line between logarithms, drawn to no change.

    Divergences of large changes grow faster than the square that curvature tells, and slower once the
    answers are lost.

    Args:
        expected: By curvature.
        anchors: Pairs of harms expected and found.
    """
    if not anchors:
        return list(expected)
    pairs = [(math.log(harm), math.log(true / harm)) for harm, true in anchors]
    centre = sum(at for at, _ in pairs) / len(pairs)
    mean = sum(ratio for _, ratio in pairs) / (len(pairs) + SHIFT_PRIOR)
    above = sum((at - centre) * (ratio - mean) for at, ratio in pairs)
    slope = above / (sum((at - centre) ** 2 for at, _ in pairs) + SLOPE_PRIOR)
    low, high = min(at for at, _ in pairs) - REACH, max(at for at, _ in pairs) + REACH
    return [
        harm * math.exp(mean + slope * (min(max(math.log(harm), low), high) - centre)) if harm > 0 else harm
        for harm in expected
    ]


def _stacked(changes: Sequence[Change]) -> Tensor:
    """Of weights, ``(n, numel)``."""
    return torch.stack([change.weight.reshape(-1) for change in changes])


def _of_patches(rows: Tensor, statistics: InputStatistics | None) -> InputStatistics | None:
    return None if statistics is None else statistics.of_patches(rows[0].numel())


def _floor(
    original: nn.Module,
    inventory: Sequence[LayerInfo],
    calibration: Tensor,
    activation_bits: int,
    temperature: float,
    progress: Progress,
) -> float:
    """The divergence of the network with all layers at 8 bits: what no choice of settings goes below."""
    plan = plan_for_ratio(
        inventory, model="", ratio=1.0, bits=8, activation_bits=activation_bits, method="dense"
    )
    fitted, judging = fitted_and_judging(calibration)
    few, some = fitted[:FLOOR_IMAGES], judging[:FLOOR_IMAGES]
    compression = compress_network(
        original,
        plan,
        inventory,
        method="dense",
        calibration=few,
        options=CompressOptions(output_fit=False),
        progress=progress.quiet(),
    )
    with torch.inference_mode():
        divergence = output_divergence(original(some), compression.model(some), temperature)
    return divergence if math.isfinite(divergence) else 0.0


def _to_rows(harms: Mapping[Key, float]) -> list[list[Any]]:
    return [[structure, rank, bits, harm] for (structure, rank, bits), harm in harms.items()]


def _from_rows(rows: Sequence[Sequence[Any]]) -> dict[Key, float]:
    return {
        (structure, *(tuple(part) if isinstance(part, list) else part for part in (rank, bits))): harm
        for structure, rank, bits, harm in rows
    }
