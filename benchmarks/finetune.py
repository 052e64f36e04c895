"""Fine-tuning the real ResNet-20 without labels on its calibration images; prints one JSON object.

QAF_REAL_DATA=DIR python benchmarks/finetune.py [--ratio 2] [--bits 3] [--seeds 3] [--trains codes]

Every seed's network is packed and read back first, as a run's is. Nothing is chosen on the evaluation images:
the state that is kept is chosen by held-back calibration images.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_data import load_network, load_sets

from qaf_core.data.load import to_batches
from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.network.passes.batchnorm_folding import fold_batchnorm
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.finetune.finetune import finetune_network
from qaf_core.pipeline.finetune.options import FinetuneOptions
from qaf_core.pipeline.intervals import paired_drop
from qaf_core.pipeline.tasks import find_task, predict


def measure(ratio: float, bits: int, seed: int, options: FinetuneOptions) -> dict[str, Any]:
    """One seed: top-1 before and after, and how long it took."""
    source, model, inventory = load_network(20)
    calibration, evaluation = load_sets(source)

    def right(network: torch.nn.Module) -> np.ndarray:
        ranked = predict(find_task("classification"), network, to_batches(evaluation, source))["ranked"]
        return np.asarray(ranked[:, 0] == evaluation.labels)

    plan = plan_for_ratio(inventory, model=source.id, ratio=ratio, bits=bits, activation_bits=8, seed=seed)
    solved = compress_network(model, plan, inventory, calibration=calibration).model
    card = {"model": source.id, "input_shape": source.input_shape}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_packed(path, solved, inventory, card)
        network = load_packed(path, copy.deepcopy(model))
        before = right(network)
        found = finetune_network(fold_batchnorm(model, inventory), network, calibration, options)
        save_packed(path, network, inventory, card)
        after = right(load_packed(path, copy.deepcopy(model)))
    gain, interval = paired_drop(after, before)
    return {
        "seed": seed,
        "original_top1": round(float(right(model).mean()), 4),
        "top1_before": round(float(before.mean()), 4),
        "top1_after": round(float(after.mean()), 4),
        "gain_points": round(100 * gain, 2),
        "gain_ci95_points": [round(100 * edge, 2) for edge in interval],
        "held_back_before": round(found.before, 4),
        "held_back_after": round(found.after, 4),
        "best_epoch": found.best_epoch,
        "epochs": found.epochs,
        "seconds": round(found.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratio", type=float, default=2.0)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trains", default="codes")
    parser.add_argument("--time-limit", type=float, default=FinetuneOptions.time_limit_seconds)
    given = parser.parse_args()
    options = FinetuneOptions(trains=given.trains, time_limit_seconds=given.time_limit)
    rows = [measure(given.ratio, given.bits, seed, options) for seed in range(given.seeds)]
    report = {
        "benchmark": "finetune",
        "threads": torch.get_num_threads(),
        "ratio": given.ratio,
        "bits": given.bits,
        "trains": given.trains,
        "mean_gain_points": round(float(np.mean([row["gain_points"] for row in rows])), 2),
        "rows": rows,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
