"""Where the time of a whole network goes, by layer: from the profiles ONNX Runtime writes of its own runs.

The nodes of a layer are named ``LAYER.LINK/OPERATOR`` in every model that is compared, and ONNX Runtime keeps
that name through its fusions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from qaf_core.deploy.runtime.measure_kit import one_inference, open_session, time_interleaved
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.tempdir import scratch_error, scratch_folder
from qaf_core.factorization.structures import FACTORIZED

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS = 60
SECONDS = 30.0
OTHER = "everything else"
KERNEL_ENDING = "_kernel_time"
FUSED_BEGINNING = "fused "


def profile_layers(
    models: Mapping[str, Path],
    images: NDArray[np.float32],
    layers: Sequence[str],
    *,
    threads: int,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each layer in each model, and of ``OTHER``, what belongs to no layer.

    Every model also runs without a profile, in the same rounds: by that it is known what the profile itself
    adds to an operation, some microseconds, which would otherwise count against chains of small ones.

    Args:
        models: ONNX files by name.
        images: ``(batch, C, H, W)``.
        layers: Names of the network's layers.
        threads: Threads of one operation.
        rounds, seconds: As in ``time_interleaved``: the models take turns.

    Raises:
        WorkspaceError: If the temporary folder has no room for the profiles.
    """
    with scratch_folder() as folder:
        sessions = {
            name: open_session(path, threads=threads, profile_prefix=str(folder / name))
            for name, path in models.items()
        }
        runs = {f"profiled {name}": one_inference(session, images) for name, session in sessions.items()}
        for name, path in models.items():
            runs[name] = one_inference(open_session(path, threads=threads), images)
        times = time_interleaved(runs, rounds=rounds, seconds=seconds)
        profiles = {name: _read_profile(session.end_profiling()) for name, session in sessions.items()}
    return {
        name: sum_by_layer(events, layers, model_ms=float(np.median(times[name])))
        for name, events in profiles.items()
    }


def _read_profile(path: str) -> list[Mapping[str, Any]]:
    try:
        events: list[Mapping[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ONNX Runtime does not tell what it could not write
        raise scratch_error("a profile was not written to its end") from error
    return events


def sum_by_layer(
    events: Sequence[Mapping[str, Any]], layers: Sequence[str], *, model_ms: float | None = None
) -> dict[str, float]:
    """Median milliseconds by layer from the events of one profile; a layer's nodes are added up.

    Args:
        events: Of the profile.
        layers: Names of the network's layers.
        model_ms: Of the whole network without a profile. What all nodes together take beyond it is taken off
            them evenly.
    """
    durations: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(KERNEL_ENDING):
            durations.setdefault(name, []).append(event["dur"] / 1e3)
    known = set(layers)
    times = dict.fromkeys([*layers, OTHER], 0.0)
    medians = {name: median(values) for name, values in durations.items()}
    added = 0.0 if model_ms is None else _added(list(medians.values()), model_ms)
    for name, milliseconds in medians.items():
        layer = name.removeprefix(FUSED_BEGINNING).rpartition("/")[0].rpartition(".")[0]
        times[layer if layer in known else OTHER] += max(0.0, milliseconds - added)
    return times


def _added(milliseconds: Sequence[float], model_ms: float) -> float:
    """What is to be taken off each node, but none below zero, so that they add up to the whole."""
    remaining = sum(milliseconds) - model_ms
    if remaining <= 0:
        return 0.0
    for index, shortest in enumerate(sorted(milliseconds)):
        count = len(milliseconds) - index
        if remaining <= shortest * count:
            return remaining / count
        remaining -= shortest
    return max(milliseconds, default=0.0)


def compare_layers(
    profiles: Mapping[str, Mapping[str, float]], plan_rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row a layer: its time in the original, in dense INT8 and factorized, and which is faster.

    Args:
        profiles: As :func:`profile_layers` gives them, of the files in ``PROFILED``.
        plan_rows: Rows of the plan, in the order of the layers.

    Returns:
        Rows with layer, structure, rank, a ``…_ms`` for every model, and ``slower_than_dense`` (None for
        layers that are not factorized).
    """
    rows = [*plan_rows, {"name": OTHER, "structure": None, "rank": None}]
    comparisons = []
    for row in rows:
        times = {f"{model}_ms": profile.get(row["name"], 0.0) for model, profile in profiles.items()}
        factorized = row["structure"] in FACTORIZED
        slower = times[f"{ModelFile.FAST}_ms"] > times[f"{ModelFile.DENSE}_ms"] if factorized else None
        comparisons.append(
            {
                "layer": row["name"],
                "structure": row["structure"],
                "rank": row["rank"],
                **times,
                "slower_than_dense": slower,
            }
        )
    return comparisons
