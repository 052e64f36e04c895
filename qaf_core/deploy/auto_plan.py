"""``--structure auto``: layers timed on this machine, then the fastest structures within the error bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qaf_core.deploy.layer_table import RATIOS, measure_layer_table
from qaf_core.errors import PlanError
from qaf_core.network.structures import check_ratio
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.select import DEFAULT_ERROR_BOUND, Selection

TABLE_FOLDER = Path("cache") / "latency"
CALIBRATION_IMAGES = 512
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class AutoRequest:
    """What an automatic plan is asked for.

    Attributes:
        model, weights, classes: As in a run's request.
        data, calibration: Likewise; only calibration images are looked at.
        bits: Weight bits of all covered layers.
        activation_bits: 8, or 32 for none.
        least_ratio: Ranks of this parameter ratio or more compete; None for all.
        error_bound: Largest relative squared error of a layer's outputs.
        threads: Threads the layers are timed with; None for all processors.
        batch: Images at a time.
        seed: Of the plan.
    """

    model: str
    weights: str | None = None
    classes: Path | None = None
    data: str = "builtin"
    calibration: str | None = None
    bits: int = 8
    activation_bits: int = 8
    least_ratio: float | None = None
    error_bound: float = DEFAULT_ERROR_BOUND
    threads: int | None = None
    batch: int = 1
    seed: int = 0


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
    for name, value in (("threads", request.threads or 1), ("batch", request.batch)):
        if value < 1:
            raise PlanError(f"{name} out of range", got=value, expected="at least 1")
    if request.least_ratio is not None:
        check_ratio(request.least_ratio)
    import torch

    from qaf_core.data.datasets import load_images, load_pair, to_batches
    from qaf_core.data.models import build_model, find_model
    from qaf_core.network.inventory import take_inventory
    from qaf_core.pipeline.cache import SolveCache
    from qaf_core.pipeline.select import choose_structures

    source = find_model(request.model, request.weights, classes=request.classes, workspace=workspace)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    if request.data == "builtin":
        given = request.calibration or "builtin"
        limit = CALIBRATION_IMAGES
        images = load_images(given, source, split="calibration", limit=limit, seed=request.seed)
    else:
        images = load_pair(
            request.data,
            request.calibration,
            source,
            calibration_limit=CALIBRATION_IMAGES,
            seed=request.seed,
        )[1]
    table = measure_layer_table(
        inventory,
        threads=request.threads or os.cpu_count() or 1,
        batch=request.batch,
        ratios=ratios_from(request.least_ratio),
        folder=workspace / TABLE_FOLDER,
        on_event=on_event,
        should_stop=should_stop,
    )
    return choose_structures(
        model,
        inventory,
        table,
        torch.cat([batch for batch, _ in to_batches(images, source, BATCH_SIZE)]),
        model_id=request.model,
        bits=request.bits,
        error_bound=request.error_bound,
        activation_bits=request.activation_bits,
        seed=request.seed,
        cache=SolveCache(workspace / "cache" / "layers"),
        on_event=on_event,
        should_stop=should_stop,
    )


def ratios_from(least: float | None) -> tuple[float, ...]:
    """The parameter ratios that compete: all, or those of at least ``least``, itself included."""
    if least is None:
        return RATIOS
    return (float(least), *(ratio for ratio in RATIOS if ratio > least))
