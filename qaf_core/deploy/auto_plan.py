"""``--structure auto``: layers timed on this machine, then the fastest structures within the error bound."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qaf_core.deploy.layer_table import RATIOS, measure_layer_table
from qaf_core.deploy.timing import describe_machine
from qaf_core.errors import ModelError, PlanError, RunCancelled
from qaf_core.network.plan import Plan
from qaf_core.network.plan_checks import check_bits
from qaf_core.network.structures import check_ratio
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.select import DEFAULT_ERROR_BOUND, Selection, check_error_bound, with_dense
from qaf_core.runs.request import RunRequest, source_of
from qaf_core.runs.workspace import write_file

TABLE_FOLDER = Path("cache") / "latency"
MOST_LOOKS = 3  # at the plan as a whole
IN_PLACE_IMAGES = 16
INTEGER_BITS = 8


@dataclass(frozen=True, kw_only=True)
class AutoRequest:
    """What an automatic plan is asked for.

    Attributes:
        run: The run the plan is for: its model, weights, images and seed count. Only calibration images are
            looked at.
        bits: Weight bits of all covered layers.
        activation_bits: 8, or 32 for none.
        least_ratio: Ranks of this parameter ratio or more compete; None for all.
        error_bound: Largest relative squared error of a layer's outputs.
        threads: Threads the layers are timed with; None for all processors.
        batch: Images at a time.
    """

    run: RunRequest
    bits: int = 8
    activation_bits: int = 8
    least_ratio: float | None = None
    error_bound: float = DEFAULT_ERROR_BOUND
    threads: int | None = None
    batch: int = 1


def make_auto_plan(
    request: AutoRequest,
    workspace: Path,
    *,
    on_event: Callable[[RunEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Selection:
    """A plan with, in each layer, the fastest structure within the bound.

    Args:
        request: What is asked for.
        workspace: Keeps the latency table and solved layers.
        on_event: Called with ``stage`` events (stages ``latency`` and ``selecting``).
        should_stop: Asked again and again; True stops.

    Raises:
        QafError: If the input cannot be used.
        RunCancelled: If stopped; what was timed and solved is kept.
    """
    threads = os.cpu_count() or 1 if request.threads is None else request.threads
    for name, value in (("threads", threads), ("batch", request.batch)):
        if value < 1:
            raise PlanError(f"{name} out of range", got=value, expected="at least 1")
    if request.least_ratio is not None:
        check_ratio(request.least_ratio)
    check_error_bound(request.error_bound)
    check_bits("weight bits", request.bits)
    import torch

    from qaf_core.data.datasets import to_batches
    from qaf_core.data.models import build_model
    from qaf_core.deploy.in_place import slower_in_place
    from qaf_core.network.inventory import take_inventory
    from qaf_core.pipeline.cache import SolveCache
    from qaf_core.pipeline.select import choose_structures
    from qaf_core.runs.images import BATCH_SIZE, load_run_images

    run = request.run
    source = source_of(run, workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    images, _ = load_run_images(run, source, workspace)
    calibration = torch.cat([batch for batch, _ in to_batches(images, source, BATCH_SIZE)])
    table = measure_layer_table(
        inventory,
        threads=threads,
        batch=request.batch,
        ratios=ratios_from(request.least_ratio),
        folder=workspace / TABLE_FOLDER,
        on_event=on_event,
        should_stop=should_stop,
    )
    selection = choose_structures(
        model,
        inventory,
        table,
        calibration,
        model_id=run.model,
        bits=request.bits,
        error_bound=request.error_bound,
        activation_bits=request.activation_bits,
        seed=run.seed,
        cache=SolveCache(workspace / "cache" / "layers"),
        on_event=on_event,
        should_stop=should_stop,
    )

    def look(plan: Plan) -> Sequence[str]:
        few = calibration[:IN_PLACE_IMAGES]
        return slower_in_place(model, inventory, plan, few, threads=threads, batch=request.batch)

    if request.activation_bits == INTEGER_BITS:
        machine = [describe_machine(threads), request.batch, source.input_shape]
        selection = mend_in_place(selection, look, workspace / TABLE_FOLDER, machine, should_stop)
    return selection


def mend_in_place(
    selection: Selection,
    look: Callable[[Plan], Sequence[str]],
    folder: Path,
    machine: Sequence[Any],
    should_stop: Callable[[], bool] | None = None,
) -> Selection:
    """The selection without the layers that are slower inside the network than dense ones.

    A network that cannot be timed as a whole, such as a detector with lists for outputs, keeps the selection
    as it is, with a note that says so.

    Args:
        selection: Made from layers timed alone.
        look: Times a plan as a whole; names of the layers that are slower.
        folder: Keeps what was found, so that the same plan is not timed, and judged, twice.
        machine: What else times depend on, ready for JSON.
        should_stop: Asked before each look.

    Raises:
        RunCancelled: If stopped.
    """
    for _ in range(MOST_LOOKS):
        if all(choice.structure == "dense" for choice in selection.choices):
            break
        if should_stop is not None and should_stop():
            raise RunCancelled
        told = json.dumps([selection.plan.to_dict(), *machine], sort_keys=True)
        path = folder / f"in-place-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
        try:
            slower = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            try:
                slower = list(look(selection.plan))
            except ModelError as error:  # layers timed alone are all there is to go by
                return replace(selection, note=f"Not timed as a whole: {error}")
            write_file(path, json.dumps(slower).encode())
        if not slower:
            break
        selection = with_dense(selection, slower)
    return selection


def ratios_from(least: float | None) -> tuple[float, ...]:
    """The parameter ratios that compete: all, or those of at least ``least``, itself included."""
    if least is None:
        return RATIOS
    return (float(least), *(ratio for ratio in RATIOS if ratio > least))
