"""How well plans are predicted and found: real ResNet-20, ResNet-32 (CIFAR-10) and MobileNetV2 (ImageNet).

    QAF_REAL_DATA=FOLDER python benchmarks/search.py predict --plans 24
    QAF_REAL_DATA=FOLDER python benchmarks/search.py budgets --budget size=30kB --budget bops=0.012x
    QAF_REAL_DATA=FOLDER python benchmarks/search.py budgets --mobilenet mobilenet_v2-b0353104.pth \
        --budget size=2484kB --budget size=2000kB --budget size=1600kB --methods found dense --seed 0

``predict`` draws random mixed plans of many sizes, says what is expected of each before it is run, runs it,
and compares: rank correlation, share inside the interval, half-widths, both without any run and with those
before it. ``budgets`` sets the plan that is found beside the best uniform joint plan and ``dense`` with its
bits allocated. Calibration images choose everything; the evaluation images only measure (of MobileNetV2's
1,000 photographs 750, another 750 with each seed). Rows are appended to a file, and what is there is not done
again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_data import real_data_folder
from scipy.stats import spearmanr

from qaf_core.errors import PlanError
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import Progress
from qaf_core.runs.jobs.plans.knowledge import Knowledge, find_knowledge
from qaf_core.runs.jobs.plans.search import search_plan
from qaf_core.runs.store.request import RunRequest, SearchRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import execute_in_turn
from qaf_core.search.budget.predict import Predictor
from qaf_core.search.sensitivity.settings import TOGETHER

MOST_OF_ONE = 0.4  # of all harm, by one layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("predict", "budgets"))
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--mobilenet", type=Path, help="torchvision's weights; measured instead of a ResNet")
    parser.add_argument("--plans", type=int, default=24)
    parser.add_argument("--budget", action="append", default=[])
    parser.add_argument("--methods", nargs="+", default=["found", "dense", "joint"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=600.0)
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/qaf-benchmark-search"))
    options = parser.parse_args()
    fields, name = measured_network(options)
    rows = options.workspace / f"{options.what}-{name}.jsonl"
    with Store(options.workspace) as store:
        began = time.process_time()
        knowledge = find_knowledge(SearchRequest(**fields).explored, store.workspace, Progress())
        print(
            f"sensitivity: {time.process_time() - began:.0f} s of one processor now, "
            f"{knowledge.sensitivity.seconds:.0f} s by the clock when measured, load {os.getloadavg()[0]:.1f}"
        )
        if options.what == "predict":
            measure_predictions(store, knowledge, fields, options.plans, rows)
        else:
            measure_budgets(store, knowledge, fields, options, rows)


def measured_network(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The fields of requests about the network that is measured, and its name in files."""
    folder = real_data_folder()
    if options.mobilenet is not None:
        fitting, judging = split_photographs(folder / "imagenet_1000", options.workspace, options.seed)
        return {
            "model": "torchvision/mobilenet_v2",
            "weights": str(options.mobilenet.absolute()),
            "data": str(judging),
            "calibration": str(fitting),
            "seed": options.seed,
        }, f"mobilenet-{options.seed}"
    return {
        "model": f"cifar/resnet{options.depth}",
        "weights": str(folder / f"cifar10_resnet{options.depth}.safetensors"),
        "data": str(folder / "cifar10_eval_2000.npz"),
        "calibration": str(folder / "cifar10_calibration_1024.npz"),
        "seed": options.seed,
    }, f"{options.depth}"


def split_photographs(photographs: Path, workspace: Path, seed: int) -> tuple[Path, Path]:
    """Folders with a quarter of the photographs, to calibrate with, and with the others."""
    images = sorted(photographs.glob("*/*"))
    order = np.random.default_rng(seed).permutation(len(images))
    parts = order[: len(images) // 4], order[len(images) // 4 :]
    folders = (workspace / f"calibrate-{seed}", workspace / f"evaluate-{seed}")
    for folder, numbers in zip(folders, parts, strict=True):
        for image in images:  # a folder for every class: they are numbered by their order
            (folder / image.parent.name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            copy = folder / images[number].parent.name / images[number].name
            if not copy.exists():
                shutil.copyfile(images[number], copy)
    return folders


def measure_predictions(
    store: Store, knowledge: Knowledge, fields: dict[str, Any], count: int, path: Path
) -> None:
    done = read_rows(path)
    for number in range(len(done), count):
        plan = random_plan(knowledge, fields, number)
        request = SearchRequest(**fields).explored
        cold = Predictor(knowledge.sensitivity, knowledge.curve, knowledge.baseline).predict(plan)
        taught = knowledge.predictor(store, request).predict(plan)
        result = run(store, fields, plan, f"random {number}")
        row = {
            "number": number,
            "measured": result["compressed"]["value"],
            "agreement": result["compressed"]["agreement"],
            "size": result["cost"]["size_bytes"],
            "cold": [cold.value, *cold.ci95],
            "taught": [taught.value, *taught.ci95],
            "divergence": taught.divergence,
        }
        append(path, row)
        done.append(row)
        print(json.dumps(row), flush=True)
    print_predictions(done, knowledge)


def print_predictions(rows: list[dict[str, Any]], knowledge: Knowledge) -> None:
    measured = np.array([row["measured"] for row in rows])
    print(f"original {knowledge.baseline['value']:.4f}; drops {knowledge.baseline['value'] - measured}")
    for kind in ("cold", "taught"):
        value, low, high = np.array([row[kind] for row in rows]).T
        inside = int(((low <= measured) & (measured <= high)).sum())
        print(
            f"{kind}: Spearman {spearmanr(value, measured).statistic:.3f}, {inside} of {len(rows)} inside, "
            f"median half-width {100 * np.median((high - low) / 2):.2f} points, "
            f"mean error {100 * np.abs(value - measured).mean():.2f} points"
        )


def random_plan(knowledge: Knowledge, fields: dict[str, Any], number: int) -> Plan:
    """Each layer a setting drawn at random, gentler or harder on the whole: drops of half a point to twenty
    and some beyond. What would destroy the network by itself is not drawn.
    """
    generator = np.random.default_rng(1000 + number)
    curve, base = knowledge.curve, float(knowledge.baseline["value"])
    losses = curve.loss(np.asarray(curve.divergence)) * base
    drop = math.exp(generator.uniform(math.log(0.005), math.log(0.25)))
    total = float(np.interp(drop, losses, curve.divergence))
    layers = knowledge.sensitivity.settings
    aim = total / len(layers) ** (1 / TOGETHER)
    rows = []
    for settings in layers.values():
        able = [row for row in settings if row.row.structure != "keep"]
        able = [row for row in able if row.harm < MOST_OF_ONE * total] or [
            min(able, key=lambda row: row.harm)
        ]
        target = math.log(aim) + generator.normal(0.0, 1.2)
        apart = np.array([abs(math.log(max(row.harm, 1e-9)) - target) for row in able])
        near = np.argsort(apart)[:8]
        rows.append(able[int(generator.choice(near))].row)
    return Plan(model=fields["model"], layers=tuple(rows), seed=fields["seed"])


def measure_budgets(
    store: Store, knowledge: Knowledge, fields: dict[str, Any], options: argparse.Namespace, path: Path
) -> None:
    done = {(row["budget"], row["method"]) for row in read_rows(path)}
    for budget in options.budget:
        for method in options.methods:
            if (budget, method) in done:
                continue
            began = time.process_time()
            try:
                plan, divergence = plan_under(store, fields, budget, method, options.time_limit)
            except PlanError as error:  # `dense` may not come down to it
                append(path, {"budget": budget, "method": method, "impossible": str(error)})
                print(f"{method}: {error}", flush=True)
                continue
            spent = time.process_time() - began
            result = run(store, fields, plan, f"{method} {budget}")
            row = {
                "budget": budget, "method": method, "baseline": result["baseline"]["value"],
                "value": result["compressed"]["value"],
                "agreement": result["compressed"]["agreement"], "drop": result["drop"],
                "size": result["cost"]["size_bytes"],
                "bops_share": result["cost"]["bops"] / result["baseline_cost"]["bops"],
                "expected_divergence": divergence, "search_cpu_seconds": spent,
            }  # fmt: skip
            append(path, row)
            print(json.dumps(row), flush=True)


def plan_under(
    store: Store, fields: dict[str, Any], budget: str, method: str, time_limit: float
) -> tuple[Plan, float]:
    """The plan of a method under a budget, and what is expected of it; nothing is evaluated."""
    request = SearchRequest(**fields, budgets=(budget,), method=method, time_limit=time_limit)
    result = search_plan(request, store, Progress())
    return result.plan, result.predicted["divergence"]


def run(store: Store, fields: dict[str, Any], plan: Plan, name: str) -> dict[str, Any]:
    request = RunRequest(**fields, plan=plan.to_dict(), name=name, check=False)
    return execute_in_turn(store, request)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
