"""``--structure auto``: the fastest structures, on this machine, that keep answers close enough."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.deploy.runtime.measure_kit import describe_machine
from qaf_core.errors import DataError, PlanError
from qaf_core.factorization.options import Method
from qaf_core.factorization.structures import check_ratio
from qaf_core.files import ContentCache, digest_of, read_json
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.validation import check_bits
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.grid import ACTIVATION_GRID
from qaf_core.records import from_plain
from qaf_core.runs.jobs.plans.knowledge import FOLDER, find_knowledge, shuffled
from qaf_core.runs.store.request import PlanRequest, source_of
from qaf_core.search.fastest import SMALLEST_HARM, Bounds, find_fastest
from qaf_core.search.forms import list_forms
from qaf_core.search.latency_table import RATIOS, measure_layer_table
from qaf_core.search.selection import Selection, check_answer_bound, check_error_bound
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qaf_core.data.models.source import ModelSource
    from qaf_core.network.plan.layer_info import LayerInfo
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.store import Store
    from qaf_core.search.network_timing import TimedNetwork
    from qaf_core.search.sensitivity.settings import Sensitivity

TABLE_FOLDER = Path("cache") / "latency"
IN_PLACE_IMAGES = 16
# Raised whenever plans are chosen in another way: what was found before is then not used.
VERSION = 6
# The output fit makes up for what a longer solve would bring: a few percent of the output error. The inputs'
# second moment in what layers are solved for lowered the output errors of low ranks by 10 to 30 %.
QUICK_OPTIONS = {
    "starts": 1, "start_iterations": 25, "iterations": 3, "rounding_rounds": 6, "moment_weight": 0.5,
}  # fmt: skip


def make_auto_plan(
    request: PlanRequest,
    workspace: Path,
    progress: Progress | None = None,
) -> Selection:
    """The fastest plan that changes few enough answers.

    Args:
        request: What is asked for.
        workspace: Keeps the latency table, the sensitivity, solved layers, and what was found.
        progress: Told how far it is (stages ``latency``, ``sensitivity``, ``selecting``), and asked whether
            to stop.

    Raises:
        QafError: If the input cannot be used.
        RunCancelled: If stopped; what was timed and solved is kept.
    """
    threads = _check(request)
    given, ratios = _load(request, workspace), ratios_from(request.least_ratio)
    fields = ("model", "bits", "activation_bits", "error_bound", "answer_bound", "batch", "seed")
    asked = [getattr(request, name) for name in fields]
    machine = [describe_machine(threads), ratios, given.source.input_shape]
    cache, key = ContentCache(workspace / TABLE_FOLDER), digest_of(VERSION, asked, machine, given.key)
    kept = cache.read(f"whole-{key}", lambda path: from_plain(Selection, read_json(path)))
    if kept is not None:
        return kept
    result = _find(request, given, workspace, threads, progress or Progress())
    timed = result.whole is not None or all(choice.rank is None for choice in result.choices)
    if timed or request.activation_bits != ACTIVATION_GRID.bits:  # otherwise it may be timed another time
        cache.keep(f"whole-{key}", result.to_dict())
    return result


@dataclass(frozen=True, kw_only=True)
class _Given:
    """A model and its calibration images, in the order of a run; ``key`` digests both."""

    source: ModelSource
    model: nn.Module
    inventory: tuple[LayerInfo, ...]
    calibration: Tensor
    key: str


def _load(request: PlanRequest, workspace: Path) -> _Given:
    import torch

    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.data.models.catalogue import build_model
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.runs.jobs.baseline import predictions_key
    from qaf_core.runs.jobs.images import load_run_images

    source = source_of(request, workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    images, _ = load_run_images(request, source, workspace)
    return _Given(
        source=source,
        model=model,
        inventory=inventory,
        calibration=torch.cat([batch for batch, _ in to_batches(images, source, BATCH_SIZE)]),
        key=predictions_key(model, source, images),
    )


def _find(
    request: PlanRequest, given: _Given, workspace: Path, threads: int, progress: Progress
) -> Selection:
    from qaf_core.pipeline.compress.solve_cache import SolveCache
    from qaf_core.pipeline.tasks import find_task
    from qaf_core.search.disagreement import Answers

    model, inventory, activation_bits = given.model, given.inventory, request.activation_bits
    table = measure_layer_table(
        inventory, threads=threads, batch=request.batch, ratios=ratios_from(request.least_ratio),
        folder=workspace / TABLE_FOLDER, progress=progress,
    )  # fmt: skip
    sensitivity, first = _expectations(request, given, workspace, progress)
    plan = plan_for_ratio(
        inventory, model=request.model, ratio=1.0, bits=request.bits, method=Method.DENSE, seed=request.seed,
        activation_bits=activation_bits,
    )  # fmt: skip
    # The plan carries the options of quick solves: so a run under it finds what was chosen solved.
    plan = replace(plan, options=dict(QUICK_OPTIONS))
    answers = Answers(
        model, inventory, given.calibration, task=find_task(given.source.task), plan=plan,
        cache=SolveCache(workspace / "cache" / "layers"), progress=progress,
    )  # fmt: skip

    def open_network() -> TimedNetwork:
        from qaf_core.search.network_timing import WholeNetwork

        few = given.calibration[:IN_PLACE_IMAGES]
        return WholeNetwork(model, inventory, few, threads=threads, batch=request.batch)

    return find_fastest(
        list_forms(inventory, table, sensitivity, bits=request.bits, activation_bits=activation_bits),
        plan,
        answers,
        open_network if activation_bits == ACTIVATION_GRID.bits else None,
        bounds=Bounds(answers=request.answer_bound, error=request.error_bound, first=first),
        progress=progress,
    )


def _check(request: PlanRequest) -> int:
    """The threads to time with.

    Raises:
        QafError: If a number is out of range.
    """
    threads = os.cpu_count() or 1 if request.threads is None else request.threads
    for name, value in (("threads", threads), ("batch", request.batch)):
        if value < 1:
            raise PlanError(say("{name} out of range", name=name), got=value, expected="at least 1")
    if request.least_ratio is not None:
        check_ratio(request.least_ratio)
    check_error_bound(request.error_bound)
    check_answer_bound(request.answer_bound)
    check_bits(say("weight bits"), request.bits)
    return threads


def _expectations(
    request: PlanRequest, given: _Given, workspace: Path, progress: Progress
) -> tuple[Sensitivity, float]:
    """The sensitivity, and the harm at which about as many answers change as may.

    Where nothing can be evaluated, as without labels, nothing is known but the sensitivity.
    """
    from qaf_core.search.sensitivity.measure import measure_sensitivity

    try:
        known = find_knowledge(request.explored, workspace, progress)
    except DataError:
        sensitivity = measure_sensitivity(
            given.model, given.inventory, shuffled(given.calibration, request.seed),
            activation_bits=request.activation_bits, seed=request.seed,
            cache=ContentCache(workspace / FOLDER), progress=progress,
        )  # fmt: skip
        return sensitivity, request.answer_bound
    floor = known.sensitivity.floor
    changed = float(known.curve.change(floor)) + request.answer_bound
    return known.sensitivity, max(known.curve.divergence_at(changed) - floor, SMALLEST_HARM)


def describe_selection(request: PlanRequest, selection: Selection) -> dict[str, Any]:
    """The object that ``qaf plan --structure auto --json`` prints."""
    return {"model": request.model, "structure": "auto", **selection.to_dict()}


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``plan``."""
    return describe_selection(job.request, make_auto_plan(job.request, store.workspace, progress))


def ratios_from(least: float | None) -> tuple[float, ...]:
    """The parameter ratios that compete: all, or those of at least ``least``, itself included."""
    if least is None:
        return RATIOS
    return (float(least), *(ratio for ratio in RATIOS if ratio > least))
