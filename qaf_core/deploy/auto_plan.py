"""``--structure auto``: layers timed on this machine, then the fastest structures within the error bound."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.deploy.layer_table import RATIOS, measure_layer_table
from qaf_core.deploy.timing import describe_machine
from qaf_core.errors import ModelError, PlanError, RunCancelled
from qaf_core.network.plan_checks import check_bits
from qaf_core.network.structures import check_ratio
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.select import DEFAULT_ERROR_BOUND, check_error_bound
from qaf_core.pipeline.selection import Selection, Step, with_steps
from qaf_core.runs.request import RunRequest, source_of
from qaf_core.runs.workspace import write_file

if TYPE_CHECKING:
    from qaf_core.deploy.in_place import TimedNetwork

TABLE_FOLDER = Path("cache") / "latency"
IN_PLACE_IMAGES = 16
NO_GAIN = "The whole network is no faster than dense INT8, as far as the rounds can tell."
# Raised whenever whole networks are timed in another way: what was found before is then not used.
WHOLE_VERSION = 2
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
    from qaf_core.deploy.in_place import WholeNetwork
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

    if request.activation_bits == INTEGER_BITS:
        few = calibration[:IN_PLACE_IMAGES]

        def open_network() -> TimedNetwork:
            return WholeNetwork(model, inventory, few, threads=threads, batch=request.batch)

        machine = [describe_machine(threads), request.batch, source.input_shape]
        selection = choose_as_a_whole(
            selection, open_network, workspace / TABLE_FOLDER, machine, on_event=on_event,
            should_stop=should_stop,
        )  # fmt: skip
    return selection


def choose_as_a_whole(
    selection: Selection,
    open_network: Callable[[], TimedNetwork],
    folder: Path,
    machine: Sequence[Any],
    *,
    on_event: Callable[[RunEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Selection:
    """The selection with those of the fitting structures that are fastest inside the whole network.

    A network that cannot be timed as a whole, such as a detector with lists for outputs, keeps the selection
    as it is, with a note that says so.

    Args:
        selection: Made from layers timed alone.
        open_network: Makes the network ready to be timed; asked for only if something is to be timed.
        folder: Keeps what was found, so that the same candidates are not timed, and judged, twice.
        machine: What else times depend on, ready for JSON.
        on_event: Called with ``stage`` events (stage ``latency``).
        should_stop: Asked before each kind of layer.

    Raises:
        RunCancelled: If stopped.
    """
    from qaf_core.deploy.in_place import choose_in_place, compare_whole

    fitting = {choice.name: choice.fitting() for choice in selection.choices}
    if not any(fitting.values()):
        return selection
    first = {choice.name: (choice.structure, choice.rank) for choice in selection.choices}
    rows = {name: {s: row.to_dict() for s, row in found.items()} for name, found in fitting.items()}
    told = json.dumps([WHOLE_VERSION, selection.plan.to_dict(), rows, *machine], sort_keys=True)
    path = folder / f"whole-{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    try:
        return _told(selection, *_read_whole(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # nothing there, or damaged
    began = time.monotonic()

    def tell(index: int, count: int) -> None:
        if on_event is not None:
            message = f"Timing the network as a whole, {index + 1} of {count} kinds of layers"
            data = {"stage": "latency", "fraction": index / count, "message": message}
            on_event(RunEvent(kind="stage", data=data, elapsed_seconds=time.monotonic() - began))

    if should_stop is not None and should_stop():
        raise RunCancelled
    try:
        network = open_network()
        steps = choose_in_place(network, fitting, first, on_kind=tell, should_stop=should_stop)
        if should_stop is not None and should_stop():
            raise RunCancelled
        whole = compare_whole(network, steps)
    except ModelError as error:  # layers timed alone are all there is to go by
        return replace(selection, note=f"Not timed as a whole: {error}")
    write_file(path, json.dumps({"steps": steps, "whole": whole}).encode())
    return _told(selection, steps, whole)


def _told(selection: Selection, steps: dict[str, Step], whole: dict[str, Any]) -> Selection:
    note = "" if whole["ratio"]["high"] < 1.0 else NO_GAIN
    return replace(with_steps(selection, steps, whole), note=note)


def _read_whole(path: Path) -> tuple[dict[str, Step], dict[str, Any]]:
    told = json.loads(path.read_text(encoding="utf-8"))
    steps = {
        name: (structure, tuple(rank) if isinstance(rank, list) else rank)
        for name, (structure, rank) in told["steps"].items()
    }
    whole = told["whole"]
    float(whole["dense_ms"] + whole["planned_ms"] + sum(whole["ratio"][k] for k in ("value", "low", "high")))
    return steps, whole


def ratios_from(least: float | None) -> tuple[float, ...]:
    """The parameter ratios that compete: all, or those of at least ``least``, itself included."""
    if least is None:
        return RATIOS
    return (float(least), *(ratio for ratio in RATIOS if ratio > least))
