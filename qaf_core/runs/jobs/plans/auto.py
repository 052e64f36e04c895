"""``--structure auto``: the fastest structures, on this machine, that keep answers close enough."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.deploy.runtime.measure_kit import describe_machine
from qaf_core.errors import PlanError
from qaf_core.factorization.structures import check_ratio
from qaf_core.network.plan.validation import check_bits
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.grid import ACTIVATION_GRID
from qaf_core.runs.store.request import PlanRequest, source_of
from qaf_core.search.latency_table import RATIOS, measure_layer_table
from qaf_core.search.selection import Selection, Step, check_answer_bound, check_error_bound
from qaf_core.search.whole_plan import choose_as_a_whole
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.network.modules.quantized import FactorizedLayer
    from qaf_core.runs.store.record import JobRecord
    from qaf_core.runs.store.store import Store
    from qaf_core.search.network_timing import TimedNetwork

TABLE_FOLDER = Path("cache") / "latency"
IN_PLACE_IMAGES = 16


def make_auto_plan(
    request: PlanRequest,
    workspace: Path,
    progress: Progress | None = None,
) -> Selection:
    """A plan with, in each layer, the fastest structure within the bounds.

    Args:
        request: What is asked for.
        workspace: Keeps the latency table and solved layers.
        progress: Told how far it is (stages ``latency`` and ``selecting``), and asked whether to stop.

    Raises:
        QafError: If the input cannot be used.
        RunCancelled: If stopped; what was timed and solved is kept.
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
    import torch

    from qaf_core.data.load import BATCH_SIZE, to_batches
    from qaf_core.data.models.catalogue import build_model
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.pipeline.compress.solve_cache import SolveCache
    from qaf_core.pipeline.tasks import find_task
    from qaf_core.runs.jobs.baseline import predictions_key
    from qaf_core.runs.jobs.images import load_run_images
    from qaf_core.search.candidates import choose_structures
    from qaf_core.search.disagreement import Answers
    from qaf_core.search.network_timing import WholeNetwork

    source = source_of(request, workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    images, _ = load_run_images(request, source, workspace)
    calibration = torch.cat([batch for batch, _ in to_batches(images, source, BATCH_SIZE)])
    table = measure_layer_table(
        inventory,
        threads=threads,
        batch=request.batch,
        ratios=ratios_from(request.least_ratio),
        folder=workspace / TABLE_FOLDER,
        progress=progress,
    )
    cache = SolveCache(workspace / "cache" / "layers")
    chains: dict[tuple[str, Step], FactorizedLayer] = {}

    def keep(layer: str, step: Step, chain: FactorizedLayer) -> None:
        chains[layer, step] = chain

    selection = choose_structures(
        model,
        inventory,
        table,
        calibration,
        model_id=request.model,
        bits=request.bits,
        error_bound=request.error_bound,
        activation_bits=request.activation_bits,
        seed=request.seed,
        cache=cache,
        on_fitting=keep,
        progress=progress,
    )

    seen = predictions_key(model, source, images)  # of the weights, the images and the task

    def open_network() -> TimedNetwork:
        few = calibration[:IN_PLACE_IMAGES]
        return WholeNetwork(model, inventory, few, threads=threads, batch=request.batch)

    return choose_as_a_whole(
        selection,
        open_network if request.activation_bits == ACTIVATION_GRID.bits else None,
        Answers(
            model, inventory, calibration, task=find_task(source.task), plan=selection.plan, chains=chains,
            cache=cache, progress=progress,
        ),
        workspace / TABLE_FOLDER,
        [describe_machine(threads), request.batch, source.input_shape, seen],
        answer_bound=request.answer_bound,
        progress=progress,
    )  # fmt: skip


def tell_selection(request: PlanRequest, selection: Selection) -> dict[str, Any]:
    """The object that ``qaf plan --structure auto --json`` prints."""
    return {"model": request.model, "structure": "auto", **selection.to_dict()}


def carry_out(store: Store, job: JobRecord, progress: Progress) -> dict[str, Any]:
    """The job ``plan``."""
    return tell_selection(job.request, make_auto_plan(job.request, store.workspace, progress))


def ratios_from(least: float | None) -> tuple[float, ...]:
    """The parameter ratios that compete: all, or those of at least ``least``, itself included."""
    if least is None:
        return RATIOS
    return (float(least), *(ratio for ratio in RATIOS if ratio > least))
