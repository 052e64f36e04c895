"""The fastest structure of each layer whose outputs stay close enough: ``--structure auto``.

Latencies come in as plain rows, measured elsewhere. Layer by layer, each on the original network's own
inputs, candidates are solved quickly, fitted to the layer's outputs and judged on held-back images. Within
one structure a larger rank is slower and closer, so the search walks from small ranks to larger ones; a
candidate that even exact arithmetic could not bring within the bound is not solved at all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.errors import PlanError
from qaf_core.factorization.options import Method, SolverOptions
from qaf_core.factorization.structures import FACTORIZED, STRUCTURES, Rank
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.plan.chains import factor_shapes
from qaf_core.network.plan.layer_info import LayerInfo, first_convolution, output_layers
from qaf_core.network.plan.rules import plan_for_ratio, replace_layer
from qaf_core.network.plan.types import LayerPlan
from qaf_core.pipeline.compress.calibrate import calibrate_layer
from qaf_core.pipeline.compress.compress import MOMENT_IMAGES, batch_size, batches_needed, shrink
from qaf_core.pipeline.compress.input_moments import collect_moments
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.pipeline.compress.solve_layers import placed, solve_where_placed
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.spec import QuantSpec
from qaf_core.search.selection import (
    DEFAULT_ERROR_BOUND,
    DENSE,
    Candidate,
    LayerChoice,
    Selection,
    Step,
    Verdict,
    check_error_bound,
)
from qaf_core.text.said import say

LEAST_GAIN = 0.05  # of the dense layer's time: less is within what a measurement says
# The output fit makes up for what a longer solve would bring: a few percent of the output error.
QUICK_OPTIONS = SolverOptions(starts=1, start_iterations=25, iterations=3, rounding_rounds=6)
# Share of the inputs' second moment in what the layers are solved for: lowered the output errors of low ranks
# by 10 to 30 %.
MOMENT_WEIGHT = 0.5
GRANULARITY = "rank_row"
TIMED_KINDS = ("conv2d", "linear")  # that the table of latencies knows

Tried = tuple[float | None, Verdict]  # output error; none where no solve could be within the bound


def choose_structures(
    model: nn.Module,
    inventory: Sequence[LayerInfo],
    table: Sequence[Mapping[str, Any]],
    calibration: Tensor,
    *,
    model_id: str,
    bits: int,
    error_bound: float = DEFAULT_ERROR_BOUND,
    activation_bits: int = 8,
    seed: int = 0,
    options: SolverOptions = QUICK_OPTIONS,
    cache: SolveCache | None = None,
    on_fitting: Callable[[str, Step, FactorizedLayer], None] | None = None,
    progress: Progress | None = None,
) -> Selection:
    """For every eligible layer the fastest candidate within the bound, ``dense`` where there is none.

    The first convolution and the classifier stay ``dense`` at 8 bits, as in every plan made by rule.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        table: Rows with layer, structure, rank and median_ms; ``dense`` must be among each layer's.
        calibration: Normalised images ``(N, C, H, W)`` without labels.
        model_id: For the plan.
        bits: Weight bits of every factor; codes of fewer bits run as fast as those of 8.
        error_bound: Largest relative squared error of a layer's outputs, above 0 and below 1.
        activation_bits: 8, or 32 for floating point.
        seed: Of the plan.
        options: Of the quick solves.
        cache: Where solved layers are looked up and kept, or None.
        on_fitting: Told every layer's candidates within the bound, as chains fitted to its outputs.
        progress: Told of every layer (stage ``selecting``); asked between solver iterations whether to stop.

    Raises:
        PlanError: If the bound is out of range or the table lacks a layer.
        RunCancelled: If stopped.
    """
    check_error_bound(error_bound)
    progress = progress or Progress()
    plan = plan_for_ratio(
        inventory, model=model_id, ratio=1.0, bits=bits, activation_bits=activation_bits, method=Method.DENSE,
        seed=seed,
    )  # fmt: skip
    first = first_convolution(inventory)
    edges = {info.name for info in (first, *output_layers(inventory)) if info is not None}
    infos = [
        info
        for info in inventory
        if info.kind in TIMED_KINDS and info.calls and info.eligible and info.name not in edges
    ]
    judge = _Judge(
        model=copy.deepcopy(capture(model, tuple(calibration.shape[1:]))).eval(),
        batches=list(torch.split(calibration, batch_size(calibration))),
        layers=[info.name for info in infos], bits=bits, activation_bits=activation_bits, seed=seed,
        options=options, cache=cache, on_fitting=on_fitting, progress=progress,
    )  # fmt: skip
    choices: list[LayerChoice] = []
    # The plan carries the options of the quick solves: so a run under it finds what was chosen solved.
    changed = {key: value for key, value in asdict(options).items() if value != getattr(SolverOptions(), key)}
    plan = replace(plan, options={**changed, "moment_weight": MOMENT_WEIGHT})
    by_name = {info.name: info for info in infos}

    def visit(name: str, samples: LayerSamples) -> None:
        nonlocal plan
        info = by_name[name]
        message = say(
            "Trying forms of {layer}, {number} of {count} layers",
            layer=name,
            number=len(choices) + 1,
            count=len(infos),
        )
        progress.stage("selecting", message, len(choices) / len(infos))
        judge.samples = samples
        choice = _choose(info, _read_rows(table, info), judge, error_bound)
        choices.append(choice)
        if choice.structure in FACTORIZED:
            row = LayerPlan(name=name, structure=choice.structure, rank=choice.rank, bits=bits)
            plan = replace_layer(plan, row)

    for info in infos:
        _read_rows(table, info)  # a table that lacks a layer is told before anything is tried
    if infos:
        counts = {info.name: batches_needed(info, len(judge.batches[0])) for info in infos}
        chosen = {info.name for info in infos if info.after_choice}
        walk_layers(judge.model, None, judge.batches, counts, visit, after_choice=chosen)
    return Selection(plan=plan, choices=tuple(choices))


@dataclass(kw_only=True)
class _Judge:
    """Solves and fits candidates, each layer on the original network's own inputs and outputs."""

    model: nn.Module
    batches: Sequence[Tensor]
    layers: Sequence[str]
    bits: int
    activation_bits: int
    seed: int
    options: SolverOptions
    cache: SolveCache | None
    on_fitting: Callable[[str, Step, FactorizedLayer], None] | None
    progress: Progress
    samples: LayerSamples | None = None
    tails: list[float] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        few = self.batches[: math.ceil(MOMENT_IMAGES / len(self.batches[0]))]
        moments = collect_moments(self.model, self.layers, few, per_position=False)
        self.moments = {name: shrink(moment, MOMENT_WEIGHT) for name, moment in moments.items()}

    def begin(self, info: LayerInfo) -> None:
        """Turn to a layer: look at what it puts out."""
        assert self.samples is not None
        rows = layer_of(self.model, info.name).operation.output_rows
        self.tails = output_tails([rows(targets) for targets in self.samples.targets])

    def least_error(self, info: LayerInfo, structure: str, rank: Rank) -> float:
        """The relative squared output error no chain of this rank can go below."""
        outputs = STRUCTURES[structure].directions(info.weight_shape, rank)
        return self.tails[outputs] if outputs < len(self.tails) else 0.0

    def fit(self, info: LayerInfo, structure: str, rank: Rank) -> tuple[FactorizedLayer, float]:
        """A chain, quickly solved and fitted, and its relative squared output error on held-back images."""
        check = self.progress.check
        check()
        layer = layer_of(self.model, info.name)
        weight = placed(layer.rows.detach(), rank)
        task = SolveTask(
            structure=structure,
            rank=rank,
            spec=QuantSpec(bits=self.bits, granularity=GRANULARITY),
            options=self.options,
            method=Method.JOINT,
            seed=self.seed,
            input_covariance=self.moments[info.name],
        )
        key = "" if self.cache is None else self.cache.key(weight, task)
        result = None if self.cache is None else self.cache.load(key)
        if result is None:
            result = solve_where_placed(task, weight, layer=info.name, on_event=lambda _: check())
            if self.cache is not None:
                self.cache.keep(key, result)
        check()
        chain = build_chain(layer, result.factors)
        assert self.samples is not None
        error = calibrate_layer(
            chain,
            self.samples.inputs,
            self.samples.targets,
            activation_bits=self.activation_bits,
            fit=True,
            calls=self.samples.calls,
            sites=self.samples.sites,
        )
        return chain, error


def output_tails(rows: Sequence[Tensor]) -> list[float]:
    """Share of the outputs' variance outside their leading directions.

    The outputs of a chain lie, but for a constant, in as many directions as its last link has inputs; entry R
    is the least share of the variance that R directions leave out.

    Args:
        rows: Outputs ``(n, I)`` per batch.

    Returns:
        ``I + 1`` numbers from 1 to 0.
    """
    count = sum(len(part) for part in rows)
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in rows]).sum(dim=0) / count
    covariance = torch.stack([(part.mT @ part).double() for part in rows]).sum(dim=0) / count
    values = torch.linalg.eigvalsh(covariance - torch.outer(mean, mean)).clamp_min(0.0)
    total = values.sum().clamp_min(1e-30)
    shares = torch.cat([values.new_zeros(1), values.cumsum(dim=0)]) / total
    return [float(share) for share in shares.flip(0)]


def _read_rows(table: Sequence[Mapping[str, Any]], info: LayerInfo) -> dict[Step, float]:
    """Latency by structure and rank of one layer."""
    found: dict[Step, float] = {}
    for row in table:
        if row["layer"] == info.name and row["structure"] in info.structures:
            rank = tuple(row["rank"]) if isinstance(row["rank"], list | tuple) else row["rank"]
            found[row["structure"], rank] = float(row["median_ms"])
    if DENSE not in found:
        raise PlanError(
            "the latency table lacks a layer",
            got=say("no dense row of {info}", info=info.name),
            remedy="measure it again",
        )
    return found


def _choose(info: LayerInfo, latencies: Mapping[Step, float], judge: _Judge, bound: float) -> LayerChoice:
    dense_ms = latencies[DENSE]
    limit = dense_ms * (1 - LEAST_GAIN)
    chosen = DENSE
    verdicts: dict[Step, Tried] = {}
    ladders = [_ladder(latencies, name, info) for name in (*FACTORIZED[1:], FACTORIZED[0])]
    if any(latencies[step] < limit for ladder in ladders for step in ladder):
        judge.begin(info)
    for ladder in ladders:
        # CP takes longest to solve: what the others reached narrows what is left for it. Of these all are
        # looked for: inside the network two links may be faster than three that are so alone.
        below = limit if ladder is ladders[-1] else dense_ms * (1 - LEAST_GAIN)
        steps = [step for step in ladder if latencies[step] < below]
        found = _fastest_within(info, steps, judge, bound, verdicts)
        if found is not None and latencies[found] < limit:
            chosen, limit = found, latencies[found]
    candidates = tuple(
        Candidate(
            structure=step[0],
            rank=step[1],
            latency_ms=latencies[step],
            output_error=verdicts[step][0] if step in verdicts else None,
            verdict=_verdict(step, chosen, latencies, verdicts),
        )
        for step in sorted(latencies, key=lambda step: latencies[step])
    )
    return LayerChoice(
        name=info.name,
        structure=chosen[0],
        rank=chosen[1],
        latency_ms=latencies[chosen],
        dense_ms=dense_ms,
        candidates=candidates,
    )


def _fastest_within(
    info: LayerInfo, steps: Sequence[Step], judge: _Judge, bound: float, verdicts: dict[Step, Tried]
) -> Step | None:
    """The first of the steps within the bound, or None; what was tried goes into ``verdicts``.

    Small ranks are solved soonest, so the search begins with the smallest and strides by how far the error
    is from the bound; after the first that is within, it halves what is left.
    """
    low, high, probe = 0, len(steps), 0
    while low < high:
        error, verdict = verdicts[steps[probe]] = _try(info, steps[probe], judge, bound)
        if verdict == Verdict.WITHIN_BOUND:
            high = probe
        else:
            low = probe + 1
        if high < len(steps):
            probe = (low + high) // 2
        else:
            stride = 0 if error is None else int(error > 1.5 * bound) + int(error > 3.0 * bound)
            probe = min(low + stride, high - 1)
    return steps[high] if high < len(steps) else None


def _ladder(latencies: Mapping[Step, float], structure: str, info: LayerInfo) -> list[Step]:
    """Candidates of a structure, rank and latency both growing: a rank that a larger one outruns is out."""
    steps = [step for step in latencies if step[0] == structure]
    steps.sort(key=lambda step: sum(math.prod(shape) for shape in factor_shapes(info, *step)), reverse=True)
    ladder: list[Step] = []
    for step in steps:
        if not ladder or latencies[step] < latencies[ladder[-1]]:
            ladder.append(step)
    return ladder[::-1]


def _try(info: LayerInfo, step: Step, judge: _Judge, bound: float) -> Tried:
    """Output error and verdict; no error where no solve could be within the bound."""
    if judge.least_error(info, *step) > bound:
        return None, Verdict.RANK_TOO_SMALL
    chain, error = judge.fit(info, *step)
    if error > bound:
        return error, Verdict.OVER_BOUND
    if judge.on_fitting is not None:
        judge.on_fitting(info.name, step, chain)
    return error, Verdict.WITHIN_BOUND


def _verdict(
    step: Step,
    chosen: Step,
    latencies: Mapping[Step, float],
    tried: Mapping[Step, Tried],
) -> Verdict:
    if step == chosen:
        return Verdict.CHOSEN
    if step in tried and tried[step][1] != Verdict.WITHIN_BOUND:
        return tried[step][1]
    if step[0] in FACTORIZED and latencies[step] >= latencies[DENSE] * (1 - LEAST_GAIN):
        return Verdict.SLOWER_THAN_DENSE
    if latencies[step] >= latencies[chosen]:
        return Verdict.SLOWER_THAN_CHOSEN
    return Verdict.NOT_TRIED
