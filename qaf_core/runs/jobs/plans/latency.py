"""How long each layer's settings take on this machine, between those that were timed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qaf_core.network.plan.chains import factor_macs
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.runs.jobs.plans.auto import TABLE_FOLDER
from qaf_core.search.sensitivity.settings import Setting

if TYPE_CHECKING:
    from pathlib import Path

    from qaf_core.pipeline.events import Progress

KEPT_FACTOR = 3.0  # of a layer in floating point beside the same in INT8, where it was not timed


def layer_latencies(
    inventory: Sequence[LayerInfo], workspace: Path, progress: Progress
) -> tuple[Callable[[Setting], float], float]:
    """Milliseconds of a setting, and of the whole network with every layer dense in INT8.

    Args:
        inventory: The network.
        workspace: Keeps the machine's layer table.
        progress: Told how far the timing is.
    """
    from qaf_core.search.latency_table import measure_layer_table

    table = measure_layer_table(
        inventory, threads=os.cpu_count() or 1, folder=workspace / TABLE_FOLDER, progress=progress
    )
    rows: dict[str, list[Any]] = {}
    for row in table:
        rows.setdefault(row["layer"], []).append(row)
    infos = {info.name: info for info in inventory}
    dense = {
        name: min((row["median_ms"] for row in timings if row["rank"] is None), default=0.0)
        for name, timings in rows.items()
    }

    def latency(setting: Setting) -> float:
        row, info = setting.row, infos[setting.row.name]
        if row.structure == KEEP:
            return KEPT_FACTOR * dense.get(row.name, 0.0)
        own = math.log(max(sum(factor_macs(info, row.structure, row.rank)), 1))
        known = sorted(
            (
                math.log(max(sum(factor_macs(info, row.structure, _rank(timing["rank"]))), 1)),
                timing["median_ms"],
            )
            for timing in rows.get(row.name, ())
            if timing["structure"] == row.structure
        )
        if not known:
            return dense.get(row.name, 0.0)
        import numpy as np

        return float(np.interp(own, [at for at, _ in known], [ms for _, ms in known]))

    return latency, sum(dense.values())


def _rank(rank: Any) -> Any:
    return tuple(rank) if isinstance(rank, list) else rank
