"""How long each layer takes in each structure on this machine: measured once, kept, handed on as plain rows.

Each distinct layer geometry becomes a few small INT8 models: the layer as it is, and its chain of links at
several ranks, every tensor between two links on an 8-bit grid as in the exported network. ONNX Runtime turns
each convolution into one integer operation, in the channels-last order it uses inside a whole network.

Ranks are multiples of ``RANK_STEP`` where they reach it: on processors with wide vector instructions a CP
rank of 134 took up to three times as long as one of 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.deploy.runtime.measure_kit import (
    describe_machine,
    one_inference,
    open_session,
    summarise,
    time_interleaved,
)
from qaf_core.factorization.structures import FACTORIZED, Rank
from qaf_core.files import ContentCache, digest_of, read_json
from qaf_core.network.plan.chains import holds_too_much, rank_for_ratio
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.pipeline.events import Progress
from qaf_core.search.geometry import LayerGeometry
from qaf_core.text.said import say

if TYPE_CHECKING:
    import onnxruntime

# Raised whenever the measured models change: older rows are then not used.
TABLE_VERSION = 2
RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
RANK_STEP = 16
ROUNDS = 50
SECONDS_PER_GEOMETRY = 4.0


def list_candidates(info: LayerInfo, ratios: Sequence[float] = RATIOS) -> tuple[tuple[str, Rank], ...]:
    """The structures and ranks worth timing for a layer, ``dense`` first.

    Ranks are those of the parameter ratios, rounded to multiples of ``RANK_STEP`` where they reach it, each
    once.
    """
    candidates: dict[tuple[str, Rank], None] = {("dense", None): None}
    for structure in info.structures:
        if structure in FACTORIZED:
            for ratio in ratios:
                rank = _rounded_rank(rank_for_ratio(info, structure, ratio), round)
                if holds_too_much(info, structure, rank):
                    rank = _rounded_rank(rank_for_ratio(info, structure, ratio), math.floor)
                candidates[structure, rank] = None
    return tuple(candidates)


def _rounded_rank(rank: Rank, rounding: Callable[[float], int]) -> Rank:
    if isinstance(rank, tuple):
        return (_near_multiple(rank[0], rounding), _near_multiple(rank[1], rounding))
    return None if rank is None else _near_multiple(rank, rounding)


def _near_multiple(rank: int, rounding: Callable[[float], int]) -> int:
    return rank if rank < RANK_STEP else max(1, rounding(rank / RANK_STEP)) * RANK_STEP


def measure_layer_table(
    inventory: Sequence[LayerInfo],
    *,
    threads: int,
    batch: int = 1,
    ratios: Sequence[float] = RATIOS,
    folder: Path,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Latency of every planned layer in every candidate structure, on this machine.

    What has been measured under the same processor, ONNX Runtime, threads and batch is read from ``folder``;
    every geometry is kept as soon as it is done, so that a stopped measurement goes on where it was.

    Args:
        inventory: The network.
        threads: Threads of one operation.
        batch: Images at a time.
        ratios: Parameter ratios the ranks come from.
        folder: Where tables are kept.
        progress: Told of every geometry (stage ``latency``), and asked whether to stop.

    Returns:
        One row per layer and candidate: layer, structure, rank, median_ms, p5_ms, p95_ms, n, for all of the
        layer's calls in one inference.

    Raises:
        RunCancelled: If stopped; what is done is kept.
    """
    cache, key = ContentCache(folder), _table_key(threads, batch)
    known = cache.read(key, _read_table) or {}
    jobs = _jobs(inventory, ratios)
    progress = progress or Progress()
    for index, (geometry, candidates) in enumerate(jobs.items()):
        missing = [pair for pair in candidates if _candidate_key(geometry, *pair) not in known]
        message = say(
            "Timing layers on this machine, {number} of {count} kinds", number=index + 1, count=len(jobs)
        )
        progress.step("latency", message, index / len(jobs))
        if missing:
            # Always with the dense form, so that what is compared was measured side by side.
            together = dict.fromkeys([("dense", None), *candidates])
            known |= _measure_geometry(geometry, tuple(together), threads, batch)
            cache.keep(key, known)
    return list(_rows(inventory, ratios, known))


def _jobs(
    inventory: Sequence[LayerInfo], ratios: Sequence[float]
) -> dict[LayerGeometry, tuple[tuple[str, Rank], ...]]:
    """Distinct geometries and the candidates of the layers that have them."""
    jobs: dict[LayerGeometry, tuple[tuple[str, Rank], ...]] = {}
    for info in inventory:
        geometry = LayerGeometry.of(info)
        if geometry is not None:
            both = (*jobs.get(geometry, ()), *list_candidates(info, ratios))
            jobs[geometry] = tuple(dict.fromkeys(both))
    return jobs


def _rows(
    inventory: Sequence[LayerInfo], ratios: Sequence[float], known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    for info in inventory:
        geometry = LayerGeometry.of(info)
        if geometry is None:
            continue
        for structure, rank in list_candidates(info, ratios):
            timed = known[_candidate_key(geometry, structure, rank)]
            yield {
                "layer": info.name,
                "structure": structure,
                "rank": list(rank) if isinstance(rank, tuple) else rank,
                **{name: timed[name] * info.calls for name in ("median_ms", "p5_ms", "p95_ms")},
                "n": timed["n"],
            }


def _measure_geometry(
    geometry: LayerGeometry, candidates: Sequence[tuple[str, Rank]], threads: int, batch: int
) -> dict[str, Any]:
    import numpy as np

    from qaf_core.search.layer_onnx import build_layer_model

    generator = np.random.default_rng(0)
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    for structure, rank in candidates:
        chain = geometry.chain(structure, rank)
        model = build_layer_model(chain, linear=geometry.linear, input_hw=geometry.input_hw, batch=batch)
        sessions[_candidate_key(geometry, structure, rank)] = open_session(model, threads=threads)
    session_input = next(iter(sessions.values())).get_inputs()[0]
    images = generator.integers(0, 256, session_input.shape).astype(np.uint8)
    runs = {key: one_inference(session, images) for key, session in sessions.items()}
    times = time_interleaved(runs, rounds=ROUNDS, seconds=SECONDS_PER_GEOMETRY)
    return {key: summarise(values).to_dict() for key, values in times.items()}


def _candidate_key(geometry: LayerGeometry, structure: str, rank: Rank) -> str:
    named = "x".join(map(str, rank)) if isinstance(rank, tuple) else str(rank or "")
    return f"{geometry.key}/{structure}{named}"


def _table_key(threads: int, batch: int) -> str:
    machine = describe_machine(threads)
    described = [machine[name] for name in ("processor", "cpu_count", "onnxruntime", "threads")]
    return f"layers-{digest_of(TABLE_VERSION, described, batch)}"


def _read_table(path: Path) -> dict[str, Any]:
    rows = read_json(path)
    return {key: row for key, row in rows.items() if {"median_ms", "p5_ms", "p95_ms", "n"} <= row.keys()}
