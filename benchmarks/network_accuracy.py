"""Top-1 of the real ResNet-20 and ResNet-32 by method, ratio and bits; prints one JSON object.

QAF_REAL_DATA=DIR python benchmarks/network_accuracy.py [--cases FILTER] [--seeds 3] [--depth 20]

Cases read METHOD:RATIO:BITS, comma-separated. The published method is run with BatchNorm kept and
re-estimated; the better of
the two on the evaluation images is counted for it. Nothing of ours is chosen on the evaluation images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_data import load_network, load_sets

from qaf_core.data.load import to_batches
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.intervals import paired_drop
from qaf_core.pipeline.tasks import find_task, predict

CASES = (
    "joint:2:4,joint:1.5:4,joint:2:6,joint:2:3,joint:3:4,joint:3:3,"
    "dense:1:2,dense:1:3,dense:1:4,paper:2:4,paper:2:3,sequential:2:4,sequential:2:8"
)


def measure(depth: int, case: str, seeds: int, cache: SolveCache) -> dict[str, Any]:
    """One case over the seeds: means, spread and the paired interval of the images of all seeds together."""
    method, ratio, bits = case.split(":")
    source, model, inventory = load_network(depth)
    calibration, evaluation = load_sets(source)
    labels = evaluation.labels
    task = find_task("classification")

    def right(network: Any) -> np.ndarray:
        ranked = predict(task, network, to_batches(evaluation, source))["ranked"]
        return np.asarray(ranked[:, 0] == labels)

    original = right(model)
    options = (
        [CompressOptions(paper_batchnorm=choice) for choice in ("keep", "reestimate")]
        if method == "paper"
        else [CompressOptions()]
    )
    rights: list[list[np.ndarray]] = [[] for _ in options]
    errors, seconds = [], []
    for seed in range(seeds):
        plan = plan_for_ratio(
            inventory,
            model=source.id,
            ratio=float(ratio),
            bits=int(bits),
            activation_bits=8,
            method=method,
            seed=seed,
        )
        for hits, choice in zip(rights, options, strict=True):
            began = time.monotonic()
            result = compress_network(
                model, plan, inventory, method=method, calibration=calibration, options=choice, cache=cache
            )
            seconds.append(time.monotonic() - began)
            hits.append(right(result.model))
        errors.append(
            np.mean([row.relative_error for row in result.layers if row.structure != "dense"] or [np.nan])
        )
    best = max(rights, key=lambda hits: np.mean(hits))
    drops = [paired_drop(original, hits) for hits in best]
    cost, before = plan_cost(inventory, plan), original_cost(inventory)
    row = {
        "model": source.id,
        "method": method,
        "ratio": float(ratio),
        "bits": int(bits),
        "seeds": seeds,
        "original_top1": round(float(original.mean()), 4),
        "top1": round(float(np.mean(best)), 4),
        "drop_points": round(100 * float(np.mean([drop for drop, _ in drops])), 2),
        "drop_points_by_seed": [round(100 * drop, 2) for drop, _ in drops],
        "drop_ci95_points_seed0": [round(100 * edge, 2) for edge in drops[0][1]],
        "mean_layer_error": None if np.isnan(errors).all() else round(float(np.mean(errors)), 4),
        "size_bytes": cost.size_bytes,
        "original_size_bytes": before.size_bytes,
        "bops_share": round(cost.bops / before.bops, 5),
        "seconds": round(float(np.mean(seconds)), 1),
    }
    if method == "paper":
        row["top1_batchnorm_kept"], row["top1_batchnorm_reestimated"] = (
            round(float(np.mean(hits)), 4) for hits in rights
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = SolveCache(Path(folder))
        rows = [measure(options.depth, case, options.seeds, cache) for case in options.cases.split(",")]
    print(json.dumps({"benchmark": "network_accuracy", "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
