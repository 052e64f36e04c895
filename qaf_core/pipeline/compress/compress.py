"""From a plan to a compressed network: solve every layer, put the chains in place, calibrate them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, ModelError, PlanError, RunCancelled, WeightsError
from qaf_core.factorization.options import Method
from qaf_core.factorization.solve import SolveResult
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import GraphNetwork, chains_in, layer_of
from qaf_core.network.graph.nodes import made_by
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, swap_layer
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.network.plan.validation import check_activations, check_method
from qaf_core.pipeline.check.equivalence import explain, layers_to_blame, unexpected_disagreement
from qaf_core.pipeline.compress.batchnorm import choose_batchnorm
from qaf_core.pipeline.compress.calibrate import LEAST_IMAGES, ROW_SAMPLES, VALIDATION_SHARE, calibrate_layer
from qaf_core.pipeline.compress.histograms import factor_histograms
from qaf_core.pipeline.compress.input_moments import collect_moments
from qaf_core.pipeline.compress.result import Compression, CompressOptions, LayerOutcome
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.pipeline.compress.solve_layers import LayerSolver, placed
from qaf_core.pipeline.compress.solver_pool import SolveJob
from qaf_core.pipeline.events import Progress, RunStatus
from qaf_core.quantization.grid import FLOAT, Grid
from qaf_core.quantization.spec import QuantSpec
from qaf_core.text.said import Said, say

CALIBRATION_BATCH = 32  # images, of up to 224 × 224 pixels; fewer where they are larger
BATCH_PIXELS = CALIBRATION_BATCH * 224 * 224
LARGEST_SAMPLE = 80_000_000  # numbers that a layer's fit holds on its input or output side (320 MB)
FITTED_METHODS = (Method.JOINT, Method.DENSE)
DENSE_MOMENT_WEIGHT = 0.9  # what is left goes to the identity, for directions that the images do not show
MOMENT_IMAGES = 128  # second moments over channels settle quickly, and the first layer waits for them


def compress_network(
    model: nn.Module,
    plan: Plan,
    inventory: Sequence[LayerInfo],
    *,
    method: str = Method.JOINT,
    calibration: Tensor | None,
    options: CompressOptions | None = None,
    progress: Progress | None = None,
    cache: SolveCache | None = None,
) -> Compression:
    """Compress a network as planned.

    Args:
        model: The original, captured or not; it is not changed.
        plan: What becomes of each layer (validated by the caller).
        inventory: The network's rows.
        method: ``joint``, ``paper``, ``sequential`` or ``dense``.
        calibration: Normalised images ``(N, C, H, W)`` without labels, or None (then no output fit,
            floating-point activations).
        options: Solver options and granularity.
        progress: Told of all that happens; asked between solver iterations whether to stop, which keeps what
            is done.
        cache: Where solved layers are looked up and kept, or None. Its helpers end before the layers are
            calibrated.

    Raises:
        PlanError: If the method is unknown, or activations cannot be quantized as planned.
        DataError: If the calibration images are none, or not finite.
        WeightsError: If a planned layer's weight is not finite.
    """
    _check_request(plan, method, calibration)
    options = options or CompressOptions()
    progress = progress or Progress()
    position = {info.name: index for index, info in enumerate(inventory)}
    rows = sorted((row for row in plan.layers if row.structure != KEEP), key=lambda row: position[row.name])
    shape = _input_shape(model, inventory) if calibration is None else tuple(calibration.shape[1:])
    original = _twin(capture(model, shape)).eval()
    _check_weights(original, rows)
    differing = layers_to_blame(original, inventory, rows, calibration, shape) if rows else {}
    rows = [row for row in rows if row.name not in differing]
    replaced = [layer_of(original, row.name).weight for row in rows]
    compressed = copy.deepcopy(original, {id(weight): weight for weight in replaced})
    batches = [] if calibration is None else list(torch.split(calibration, batch_size(calibration)))
    began = time.monotonic()

    def jobs() -> list[SolveJob]:
        moments = _moments(original, rows, batches, method, options, progress)
        return _jobs(original, rows, plan, method, options, moments)

    solved, status = _solve(jobs, rows, progress, cache)
    factorized = time.monotonic()
    done = [row for row in rows if row.name in solved]
    for row in done:
        swap_layer(compressed, row.name, build_chain(layer_of(original, row.name), solved[row.name].factors))
    fits = method in FITTED_METHODS and options.output_fit
    output_errors, status = _calibrate(
        original, compressed, inventory, batches, plan.activation_bits, fits, status, progress
    )
    if method == Method.PAPER and batches and status == RunStatus.COMPLETED:
        compressed = choose_batchnorm(original, compressed, batches, options.paper_batchnorm)
    calibrated = time.monotonic()
    layers = {row.name: (layer_of(original, row.name), compressed.get_submodule(row.name)) for row in done}
    outcomes = [
        _outcome(row, solved[row.name], *layers[row.name], output_errors.get(row.name)) for row in done
    ]
    notes = [*explain(differing), *_findings({row.name: solved[row.name] for row in done})]
    if batches and status == RunStatus.COMPLETED and output_errors:
        warning = unexpected_disagreement(original, compressed, batches[0], output_errors)
        notes += [] if warning is None else [warning]
    return Compression(
        model=compressed.eval(),
        layers=tuple(outcomes),
        status=status,
        notes=tuple(notes),
        seconds={"factorize": factorized - began, "calibrate": calibrated - factorized},
    )


def _findings(solved: Mapping[str, SolveResult]) -> list[Said]:
    found = {name: result.finding for name, result in solved.items()}
    return [say("{title}: {why}", title=name, why=why) for name, why in found.items() if why is not None]


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares its tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _check_request(plan: Plan, method: str, calibration: Tensor | None) -> None:
    check_method(method, [row.structure for row in plan.layers])
    check_activations(plan.activation_bits)
    if calibration is None and not Grid.of(plan.activation_bits).is_float:
        raise PlanError(
            "8-bit activations need calibration images", remedy="give --calibration, or --act-bits 32"
        )
    if calibration is not None and len(calibration) == 0:
        raise DataError("there are no calibration images", got=0, expected="at least one")
    if calibration is not None and not bool(torch.isfinite(calibration).all()):
        raise DataError("the calibration images hold NaN or infinite values")


def _input_shape(model: nn.Module, inventory: Sequence[LayerInfo]) -> tuple[int, ...]:
    """(C, H, W) of the images: as the network was captured with, or what its first layer takes in."""
    if isinstance(model, GraphNetwork):
        value = made_by(model.main_program.inputs[0])
        if value is not None:
            return tuple(int(size) for size in value.shape[1:])
    first = next((info for info in inventory if info.planned and info.calls), None)
    if first is None:
        return (3, 224, 224)
    if first.input_hw is not None:
        return (first.in_channels, *first.input_hw)
    rows = first.input_elements // first.in_channels
    return (first.in_channels,) if rows == 1 else (rows, first.in_channels)


def _check_weights(model: nn.Module, rows: Sequence[LayerPlan]) -> None:
    for row in rows:
        if not bool(torch.isfinite(layer_of(model, row.name).weight).all()):
            raise WeightsError("the weight of a layer holds NaN or infinite values", got=row.name)


def _moments(
    original: nn.Module,
    rows: Sequence[LayerPlan],
    batches: Sequence[Tensor],
    method: str,
    options: CompressOptions,
    progress: Progress,
) -> dict[str, Tensor]:
    """Input second moments of the layers that are solved under them, mixed with the identity."""
    share = {
        row.name: options.moment_weight if row.structure in FACTORIZED else DENSE_MOMENT_WEIGHT
        for row in rows
        if row.structure in FACTORIZED or row.bits != 8  # at 8 bits the images hardly change the codes
    }
    names = [name for name, weight in share.items() if weight > 0]
    if not batches or not names or method not in FITTED_METHODS:
        return {}
    progress.stage("solving", "input statistics", 0.0)
    few = batches[: math.ceil(MOMENT_IMAGES / len(batches[0]))]
    moments = collect_moments(original, names, few, per_position=method == Method.DENSE)
    return {name: shrink(moment, share[name]) for name, moment in moments.items()}


def _jobs(
    original: nn.Module,
    rows: Sequence[LayerPlan],
    plan: Plan,
    method: str,
    options: CompressOptions,
    moments: dict[str, Tensor],
) -> list[SolveJob]:
    """What is asked of the solver for each layer."""
    solver = options.solver
    if method == Method.PAPER:
        solver = replace(solver, inner_iterations=options.paper_inner_iterations)
    granularity = "tensor" if method == Method.PAPER else options.granularity
    jobs = []
    for index, row in enumerate(rows):
        weight = layer_of(original, row.name).rows.detach()
        task = SolveTask(
            structure=row.structure,
            rank=row.rank,
            spec=QuantSpec(
                bits=row.bits if row.bits is not None else FLOAT.bits,
                granularity=granularity,
                activation_bits=plan.activation_bits if row.structure in FACTORIZED else FLOAT.bits,
            ),
            options=solver,
            method=method if row.structure in FACTORIZED else Method.DENSE,
            seed=plan.seed,
            input_covariance=moments.get(row.name),
        )
        weight = placed(weight, row.rank)
        jobs.append(SolveJob(name=row.name, index=index, weight=weight, task=task))
    return jobs


def shrink(moment: Tensor, weight: float) -> Tensor:
    """``weight`` parts of a second moment and ``1 - weight`` of the identity at the same mean diagonal."""
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.lerp(moment.diagonal().mean() * identity, moment, weight)


def _solve(
    jobs: Callable[[], Sequence[SolveJob]],
    rows: Sequence[LayerPlan],
    progress: Progress,
    cache: SolveCache | None,
) -> tuple[dict[str, SolveResult], RunStatus]:
    """Solve every layer; what is solved by then, and the status."""
    solved: dict[str, SolveResult] = {}
    try:
        solver = LayerSolver(jobs(), rows={row.name: row for row in rows}, progress=progress, cache=cache)
        solved = solver.solved
        solver.solve_all()
    except RunCancelled:
        return solved, RunStatus.CANCELLED
    return solved, RunStatus.COMPLETED


def _calibrate(
    original: nn.Module,
    compressed: nn.Module,
    inventory: Sequence[LayerInfo],
    batches: Sequence[Tensor],
    activation_bits: int,
    fit: bool,
    status: RunStatus,
    progress: Progress,
) -> tuple[dict[str, float], RunStatus]:
    """Go through the exchanged layers front to back; returns output errors by layer and the status."""
    errors: dict[str, float] = {}
    chains = chains_in(compressed)
    if not batches or not chains:
        return errors, status
    exchanged = [info for info in inventory if info.name in chains]
    counts = {info.name: batches_needed(info, len(batches[0])) for info in exchanged}
    chosen = {info.name for info in exchanged if info.after_choice}

    def visit(name: str, samples: LayerSamples) -> None:
        if status == RunStatus.COMPLETED:
            progress.check()
        progress.stage("calibrating", name, len(errors) / len(chains))
        if not all(bool(values.isfinite().all()) for values in samples.inputs):
            raise ModelError(
                "numbers that are not finite reach a layer", got=name, remedy="plan this layer as keep"
            )
        errors[name] = calibrate_layer(chains[name], samples, activation_bits=activation_bits, fit=fit)

    try:
        walk_layers(original, compressed, batches, counts, visit, after_choice=chosen)
    except RunCancelled:
        status = RunStatus.CANCELLED
    return errors, status


def batch_size(images: Tensor) -> int:
    """How many calibration images ``(N, C, H, W)`` go through the network at once.

    Few enough for one batch in ``VALIDATION_SHARE`` to judge the fits.
    """
    by_pixels = max(BATCH_PIXELS // max(images[0, 0].numel(), 1), 1)
    return min(by_pixels, CALIBRATION_BATCH, max(len(images) // VALIDATION_SHARE, 1))


def batches_needed(info: LayerInfo, size: int = CALIBRATION_BATCH) -> int:
    """How many calibration batches a layer's fit looks at.

    Fewer where an image gives many positions, and no more than memory allows, but two to judge the fit.

    Args:
        info: The layer's row.
        size: Images in a batch.
    """
    positions = max(1, info.output_elements // max(info.out_channels, 1))
    images = max(LEAST_IMAGES, ROW_SAMPLES / positions)
    allowed = LARGEST_SAMPLE / max(info.input_elements, info.output_elements, 1)
    return max(min(math.ceil(images / size), int(allowed / size)), 2)


def _outcome(
    row: LayerPlan, result: SolveResult, layer: Layer, chain: nn.Module, output_error: float | None
) -> LayerOutcome:
    assert isinstance(chain, FactorizedLayer)
    return LayerOutcome(
        name=row.name,
        structure=row.structure,
        rank=row.rank,
        bits=row.bits,
        status=result.status.value,
        relative_error=result.relative_error,
        float_relative_error=result.float_relative_error,
        iterations=result.iterations,
        seconds=result.seconds,
        output_error=output_error,
        factors=result.factors,
        histograms=factor_histograms(layer.rows.detach(), result.factors, chain.last),
    )
