"""What fine-tuning gains, as runs of the product; prints one JSON object a run.

    QAF_REAL_DATA=DIR python benchmarks/finetune.py ratio3 found inspection [--seeds 3] [--minutes 15]

``ratio3``: the real ResNet-20 at 4 bits and ratio 3, 10,000 further CIFAR-10 training images with labels.
``found``: the plan that a search finds for 30 kB, the same images. ``inspection``: the built-in network at 3
bits and ratio 3, built-in images without labels. Nothing is chosen on evaluation images: those that are held
back from learning choose the state that is kept. What was compressed before in the workspace is not again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from real_data import real_data_folder

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.options import CODES, MOST_EPOCHS, FinetuneOptions
from qaf_core.runs.jobs.finetune import finetune_request
from qaf_core.runs.jobs.plans.search import search_plan
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest, SearchRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import execute_in_turn

WHAT = ("ratio3", "found", "inspection")


def images_to_learn_from(workspace: Path) -> str:
    """The 10,000 training images as an ``.npz``."""
    file = workspace / "cifar10_train_10000.npz"
    if not file.exists():
        subprocess.run([sys.executable, str(real_data_folder() / "unpack.py"), str(workspace)], check=True)
    return str(file)


def request_of(store: Store, what: str, seed: int) -> RunRequest:
    """The compression to begin with."""
    if what == "inspection":
        model, fields, bits = "inspection/resnet20", {}, 3
    else:
        folder, model, bits = real_data_folder(), "cifar/resnet20", 4
        fields = {
            "weights": str(folder / "cifar10_resnet20.safetensors"),
            "data": str(folder / "cifar10_eval_2000.npz"),
            "calibration": str(folder / "cifar10_calibration_1024.npz"),
        }
    if what == "found":
        request = SearchRequest(model=model, seed=seed, budgets=("size=30kB",), **fields)
        plan = search_plan(request, store, Progress()).plan
    else:
        inventory = load_inventory(find_model(model, fields.get("weights")))
        plan = plan_for_ratio(inventory, model=model, ratio=3.0, bits=bits, activation_bits=8, seed=seed)
    return RunRequest(
        model=model, plan=plan.to_dict(), seed=seed, name=f"{what}, {seed}", check=False, **fields
    )


def compressed(store: Store, what: str, seed: int) -> RunRecord:
    """The run to begin with, made now or before."""
    for run in store.list_runs():
        if run.request.name == f"{what}, {seed}" and run.status == "completed":
            return run
    return store.run(execute_in_turn(store, request_of(store, what, seed))["run_id"])


def measure(store: Store, what: str, seed: int, options: FinetuneOptions) -> dict[str, Any]:
    """One fine-tuning."""
    parent = compressed(store, what, seed)
    data = None if what == "inspection" else images_to_learn_from(store.workspace)
    request = finetune_request(store, parent, options, data=data, labels=what != "inspection", name=what)
    began = time.process_time()
    result = execute_in_turn(store, request)
    before = parent.result
    return {
        "measure": what,
        "seed": seed,
        "size_bytes": result["file"]["size_bytes"],
        "original": before["baseline"]["value"],
        "drop_points_before": round(100 * before["drop"], 2),
        "drop_points": round(100 * result["drop"], 2),
        "gain_points": round(100 * (before["drop"] - result["drop"]), 2),
        "drop_ci95": result["drop_ci95"],
        **{key: result["finetune"][key] for key in ("images", "labelled", "flips", "crops", "epochs")},
        "held_back": [result["finetune"]["before"], result["finetune"]["after"]],
        "seconds": round(result["finetune"]["seconds"], 1),
        "processor_seconds": round(time.process_time() - began, 1),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("what", nargs="+", choices=WHAT)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--train", default=CODES)
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/qaf-benchmark-finetune"))
    arguments = parser.parse_args()
    with Store(arguments.workspace) as store:
        for what in arguments.what:
            for seed in range(arguments.seeds):
                options = FinetuneOptions(
                    trains=arguments.train,
                    epochs=MOST_EPOCHS,
                    time_limit_seconds=60 * arguments.minutes,
                    seed=seed,
                )
                print(json.dumps(measure(store, what, seed, options)), flush=True)


if __name__ == "__main__":
    main()
