"""What the files and the clock say: plans by measured speed, file sizes and export times; one JSON object.

QAF_REAL_DATA=DIR python benchmarks/deployment.py [--parts resnet18,real,files] [--bounds 0.01,0.02]
    [--threads 1,2]

- ``resnet18``: automatic plans of inspection/resnet18 by the answers that may change; of the fastest that
  loses at most one point, the interleaved latency against dense INT8, at the network's own size and at
  224 × 224.
- ``real``: the same question for ResNet-20 on CIFAR-10, at its own size.
- ``files``: packed size and export times of ResNet-20 at 4 bits and ratio 2.

A quiet machine is needed. Plans are made and measured for one thread and for two. Drops on the evaluation
images choose none of them: the table lists every bound, so that nothing is hidden.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from real_data import real_data_folder

from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8, write_factorized_int8, write_original
from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.runtime.measure_kit import ratio_of, summarise, time_models
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.records import to_plain
from qaf_core.runs.jobs.export import export_run
from qaf_core.runs.jobs.exported_models import RANGE_BATCH
from qaf_core.runs.jobs.images import load_run_images
from qaf_core.runs.jobs.latency import measure_run
from qaf_core.runs.jobs.plans.auto import make_auto_plan
from qaf_core.runs.store.request import PlanRequest, RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.runs.worker.execute import execute_in_turn

LARGE = 224


def run_plan(store: Store, request: RunRequest) -> dict[str, Any]:
    """Execute a request in this process."""
    return execute_in_turn(store, request)


def by_bound(
    store: Store, request: RunRequest, bounds: list[float], threads: int, bits: int = 8
) -> list[dict[str, Any]]:
    """For every bound the automatic plan, its run and its latency."""
    rows = []
    for bound in bounds:
        began = time.monotonic()
        auto = PlanRequest(
            model=request.model, weights=request.weights, data=request.data, calibration=request.calibration,
            seed=request.seed, bits=bits, answer_bound=bound, threads=threads,
        )  # fmt: skip
        selection = make_auto_plan(auto, store.workspace)
        planned = time.monotonic() - began
        result = run_plan(store, _with_plan(request, selection.plan))
        measured = measure_run(store, result["run_id"], threads=threads, images=500)
        rows.append(
            {
                "run_id": result["run_id"],
                "answer_bound": bound,
                "changed_layers": sum(choice.structure != "dense" for choice in selection.choices),
                "structures": [[c.name, c.structure, c.rank] for c in selection.choices if c.rank],
                "plan_seconds": round(planned, 1),
                "planned_ratio": selection.whole and to_plain(selection.whole.ratio),
                "planned_answers": to_plain(selection.answers),
                "drop_points": round(100 * result["drop"], 2),
                "drop_ci95_points": [round(100 * edge, 2) for edge in result["drop_ci95"]],
                "size_bytes": result["file"]["size_bytes"],
                "median_ms": {n: round(r.median_ms, 3) for n, r in measured.latencies.items()},
                "ratio_to_dense_int8": to_plain(measured.ratio()),
                "timed_files_drop_points": {
                    name: round(100 * (row.drop or 0.0), 2) for name, row in measured.accuracy.items()
                },
                "verdict": measured.verdict,
            }
        )
    return rows


def _with_plan(request: RunRequest, plan: Plan) -> RunRequest:
    return RunRequest.from_json(json.dumps({**json.loads(request.to_json()), "plan": plan.to_dict()}))


def at_224(store: Store, run_id: str, threads: int) -> dict[str, Any]:
    """The same network's latency on 224 × 224 images, against dense INT8 at that size."""
    import torch

    record = store.run(run_id)
    source = find_model(record.model)
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    network = load_packed(store.run_folder(run_id) / PACKED_NAME, copy.deepcopy(model))
    calibration, _ = load_run_images(record.request, source, store.workspace)
    from qaf_core.data.load import to_batches

    batch = next(iter(to_batches(calibration, source, RANGE_BATCH)))[0]
    images = [torch.nn.functional.interpolate(batch, size=(LARGE, LARGE), mode="bilinear")]
    shape = (3, LARGE, LARGE)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("original", "dense", "float", "integer")}
        write_original(model, inventory, paths["original"], input_shape=shape)
        export_onnx(network, paths["float"], input_shape=shape, integer=False)
        write_dense_int8(paths["original"], paths["dense"], images)
        write_factorized_int8(network, paths["float"], paths["integer"], images)
        inputs = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        times = time_models(paths, inputs, threads=threads, rounds=200, seconds=60.0)
    return {
        "median_ms": {name: round(summarise(t).median_ms, 2) for name, t in times.items()},
        "ratio_to_dense_int8": ratio_of(times["integer"], times["dense"]).to_dict(),
    }


def real_request(depth: int) -> RunRequest:
    """ResNet on CIFAR-10 with its own images."""
    folder = real_data_folder()
    return RunRequest(
        model=f"cifar/resnet{depth}",
        weights=str(folder / f"cifar10_resnet{depth}.safetensors"),
        data=str(folder / "cifar10_eval_2000.npz"),
        calibration=str(folder / "cifar10_calibration_1024.npz"),
        check=False,
    )


def files(store: Store) -> dict[str, Any]:
    """Sizes and export times of ResNet-20 at 4 bits and ratio 2."""
    request = real_request(20)
    source = find_model(request.model, request.weights)
    inventory = take_inventory(build_model(source), source.input_shape)
    plan = plan_for_ratio(inventory, model=request.model, ratio=2.0, bits=4)
    result = run_plan(store, _with_plan(request, plan))
    sizes: dict[str, Any] = {
        "float_bytes": result["baseline_cost"]["size_bytes"],
        "promised_bytes": result["cost"]["size_bytes"],
        "packed_bytes": result["file"]["size_bytes"],
    }
    for format, precision in (("packed", "int8"), ("onnx", "int8"), ("onnx", "fp32")):
        began = time.monotonic()
        path = store.workspace / f"{format}-{precision}"
        report = export_run(store, result["run_id"], path, format=format, precision=precision)
        name = format if format == "packed" else f"onnx_{precision}"
        sizes[name] = {
            "seconds": round(time.monotonic() - began, 1),
            "bytes": report.size_bytes,
            "agreement": report.to_dict()["agreement"],
        }
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="resnet18,real,files")
    parser.add_argument("--bounds", default="0.01,0.02")
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    parts, bounds = options.parts.split(","), [float(bound) for bound in options.bounds.split(",")]
    report: dict[str, Any] = {"benchmark": "deployment"}
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        if "files" in parts:
            report["files"] = files(store)
        for threads in map(int, options.threads.split(",")):
            if "resnet18" in parts:
                rows = by_bound(store, RunRequest(model="inspection/resnet18"), bounds, threads)
                within = [row for row in rows if row["drop_points"] <= 1.0]
                best = min(within, key=lambda row: row["ratio_to_dense_int8"]["value"], default=None)
                result = {"threads": threads, "rows": rows, "best": best and best["answer_bound"]}
                if best is not None:
                    result["at_224"] = at_224(store, best["run_id"], threads)
                report.setdefault("resnet18", []).append(result)
            if "real" in parts:
                rows = by_bound(store, real_request(20), bounds, threads)
                report.setdefault("real_resnet20", []).append({"threads": threads, "rows": rows})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
