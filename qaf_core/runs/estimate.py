"""How long a run takes on this machine: its work, counted, at the pace of earlier runs in the workspace.

The work of each stage is counted in seconds of a modest machine (two cores); a run leaves what was counted
among its events. What earlier runs took of that is the pace, stage by stage: of the same model where there
are any, else of others, and 1 before there is any run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from qaf_core.factorization.effort import effort_of, work_share
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.records import Record, from_plain
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

STAGES = ("loading", "solving", "calibrating", "saving", "baseline", "evaluating")
FINETUNE_STAGES = ("loading", "finetuning", "saving", "baseline", "evaluating")
EVENT = "work"  # a run's event that tells its own, once its images are loaded
EVALUATION_IMAGES, CALIBRATION_IMAGES = 2000, 512  # until a run has told how many there are
MOST_LOOKED_AT = 300  # of the newest runs
MOST_RUNS = 12  # of them whose time is looked at
ENOUGH_RUNS = 3  # of the most alike
# Seconds of the basis. A solve: calls, and operations; large layers get fewer sweeps, on all cores.
CALLS, PER_OPERATION, LARGE, PER_LARGE_OPERATION = 0.5, 1e-8, 2.0, 1e-9
ROUNDING, ROUNDING_PER_CUBE, KNOWN_LAYER = 2e-4, 1.7e-10, 0.02
LOADING, LOADING_LAYER, LOADING_IMAGE, SAVING = 2.0, 0.03, 5e-4, 0.3
FIT_LAYER, FIT_MAC, PLAIN_MAC, CHAIN_MAC = 0.3, 4e-11, 1.5e-11, 2.5e-11


@dataclass(frozen=True, kw_only=True)
class Work(Record):
    """What a run has to do.

    Attributes:
        stages, layers: Seconds of the basis, by stage and by layer to be solved.
        images: How many it is evaluated on.
    """

    stages: dict[str, float]
    layers: dict[str, float]
    images: int


@dataclass(frozen=True, kw_only=True)
class History:
    """What earlier runs tell of one that is asked for.

    Attributes:
        pace: Seconds here for a second of the basis, by stage; 1 where nothing is known.
        runs: How many the pace is learnt from.
        images: How many images such a run was evaluated on; None where there was none.
        solved: Rows of plans whose solved layers are kept, as text.
        original_known: Whether the original was measured on the same images.
    """

    pace: Mapping[str, float]
    runs: int = 0
    images: int | None = None
    solved: frozenset[str] = frozenset()
    original_known: bool = False

    def seconds(self, work: Work) -> dict[str, float]:
        """What each stage will take here."""
        return {stage: self.pace.get(stage, 1.0) * seconds for stage, seconds in work.stages.items()}


def read_history(store: Store, request: RunRequest) -> History:
    """What the workspace's runs tell of one like ``request``; its plan is not looked at."""
    runs = [run for run in store.list_runs(most=MOST_LOOKED_AT) if run.is_final and run.compressed]
    alike = [run for run in runs if _subject(run.request) == _subject(request)]
    same_images = [run for run in alike if run.request.images == request.images]
    paces = _paces(store, request, [run for run in runs if run.status == RunStatus.COMPLETED][:MOST_RUNS])
    pace = {stage: median([row[stage] for row in paces if stage in row]) for stage in _all_stages(paces)}
    usual = median(pace.values()) if pace else 1.0
    return History(
        pace={stage: pace.get(stage, usual) for stage in {*STAGES, *FINETUNE_STAGES}},
        runs=len(paces),
        images=same_images[0].compressed.n if same_images and same_images[0].compressed else None,
        solved=frozenset(
            _row_key(run.method, row, run.request.plan) for run in alike for row in run.layer_rows
        ),
        original_known=bool(same_images),
    )


def _subject(request: RunRequest) -> tuple[Any, ...]:
    steps = json.dumps(request.preprocessing, sort_keys=True)
    return (request.model, request.weights, steps, request.data, request.calibration, request.seed)


def _row_key(method: str, row: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    values = [row.get(name) for name in ("name", "structure", "rank", "bits")]
    return json.dumps([method, effort_of(plan.get("options") or {}), *values])


def _all_stages(paces: Sequence[Mapping[str, float]]) -> set[str]:
    return {stage for row in paces for stage in row}


def _paces(store: Store, request: RunRequest, runs: Sequence[RunRecord]) -> list[dict[str, float]]:
    """Seconds for a second of the basis by stage, of the runs most like a request that tell their work."""
    starts = store.stage_starts([run.id for run in runs])
    groups: dict[tuple[bool, bool], list[dict[str, float]]] = {}
    for run in runs:
        work = read_work(store, run.id)
        if work is None or run.compressed is None or not starts.get(run.id):
            continue
        ordered = sorted(starts[run.id].items(), key=lambda item: item[1])
        ends = [*ordered, ("", float(run.seconds["total"]))]
        durations = {name: later - began for (name, began), (_, later) in pairwise(ends)}
        durations["loading"] = durations.get("loading", 0.0) + ordered[0][1]
        counted = {**work.stages}
        for name in ("baseline", "evaluating"):  # of as many images as they turned out to be
            counted[name] *= run.compressed.n / work.images
        row = {
            name: durations[name] / counted[name]
            for name in durations
            if counted.get(name, 0.0) > KNOWN_LAYER
        }
        key = (run.model != request.model, run.method != request.method)
        groups.setdefault(key, []).append(row)
    return next((groups[key][:ENOUGH_RUNS] for key in sorted(groups)), [])


def read_work(store: Store, run_id: str) -> Work | None:
    """The work a run has told of; None before, and of runs of earlier versions."""
    for stored in store.events_since(run_id, kinds=(EVENT,)):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return from_plain(Work, stored.event.data)
    return None


def count_work(
    request: RunRequest,
    inventory: Sequence[LayerInfo],
    history: History,
    *,
    images: int | None = None,
    calibration: int = CALIBRATION_IMAGES,
) -> Work:
    """Count what a run has to do.

    Args:
        request: The run, with its plan.
        inventory: Its network.
        history: Tells what is known already.
        images: How many it is evaluated on; None for as many as a run before, or the usual number.
        calibration: How many images fit its layers.
    """
    plan, infos = Plan.from_dict(request.plan), {info.name: info for info in inventory}
    images = images or history.images or request.images or EVALUATION_IMAGES
    macs, macs_after = original_cost(inventory).macs, plan_cost(inventory, plan).macs
    rows = [row for row in plan.layers if row.structure != KEEP]
    layers = {
        row.name: KNOWN_LAYER
        if _row_key(request.method, row.to_dict(), request.plan) in history.solved
        else work_share(plan.options) * _solve_seconds(infos[row.name], row)
        for row in rows
    }
    stages = {
        "loading": LOADING + LOADING_LAYER * len(inventory) + LOADING_IMAGE * calibration,
        "saving": SAVING,
        "baseline": 0.0 if history.original_known else SAVING + PLAIN_MAC * macs * images,
        "evaluating": SAVING + CHAIN_MAC * macs_after * images,
    }
    if request.finetune is None:
        stages["solving"] = sum(layers.values())
        stages["calibrating"] = FIT_LAYER * len(rows) + FIT_MAC * macs * calibration
    else:
        stages["finetuning"] = float(request.finetune.get("time_limit_seconds") or 60.0)
        layers = {}
    return Work(stages=stages, layers=layers, images=images)


def _solve_seconds(info: LayerInfo, row: LayerPlan) -> float:
    if row.structure not in FACTORIZED:
        inputs = info.weight_numel / max(info.out_channels, 1)
        return ROUNDING * inputs + ROUNDING_PER_CUBE * inputs**3
    ranks = row.rank if isinstance(row.rank, tuple) else (row.rank or 1,)
    operations = 6.0 * info.weight_numel * max(ranks)
    return CALLS + min(PER_OPERATION * operations, LARGE + PER_LARGE_OPERATION * operations)
