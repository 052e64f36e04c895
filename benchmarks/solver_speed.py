"""Speed of the joint solver against the machine's matrix products; prints one JSON object.

python benchmarks/solver_speed.py [--device cpu|cuda] [--network]

A sweep over the three factors counts as 6·I·J·K·R operations. --network also solves ResNet-18's sixteen 3×3
convolutions
(random weights of the same shapes, ratio 2, 4 bits) and reports their time and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import torch

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.sweeps import State, start_sweep

SIDE = 4096
SIZES = ((128, 128), (256, 256), (512, 512))
RANKS = (143, 285, 571, 1141)
RESNET18 = (
    (64, 64, 4),
    (64, 128, 1),
    (128, 128, 3),
    (128, 256, 1),
    (256, 256, 3),
    (256, 512, 1),
    (512, 512, 3),
)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device) -> float:
    """Operations per second of one square matrix product."""
    left = torch.randn(SIDE, SIDE, device=device)
    wait(device)
    began = time.perf_counter()
    left @ left
    wait(device)
    return 2 * SIDE**3 / (time.perf_counter() - began)


def sweep_rate(rows: int, columns: int, rank: int, device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """Sweeps and square products in turn: median rate of both and of their ratio."""
    target = torch.randn(rows, columns, 9, generator=torch.Generator().manual_seed(0)).to(device)
    problem = Canonical(target, rank)
    values = problem.random_start(torch.Generator().manual_seed(0))
    state = State(
        subproblem=problem,
        spec=QuantSpec(bits=4),
        options=SolverOptions(),
        values=values,
        codes=[],
        scales=[],
        duals=[],
    )
    sweep = start_sweep(60, warm=False)
    sweep(state, 0)
    product_rate(device)
    rates, products = [], []
    for step in range(repeats):
        products.append(product_rate(device))
        began = time.perf_counter()
        sweep(state, step)
        wait(device)
        rates.append(problem.sweep_operations / (time.perf_counter() - began))
    return {
        "shape": [rows, columns, 9],
        "rank": rank,
        "operations": problem.sweep_operations,
        "sweep_gflops": round(statistics.median(rates) / 1e9, 1),
        "product_gflops": round(statistics.median(products) / 1e9, 1),
        "share": round(statistics.median(r / p for r, p in zip(rates, products, strict=True)), 3),
        "seconds_per_sweep": round(problem.sweep_operations / statistics.median(rates), 4),
    }


def solve_resnet18(device: torch.device) -> dict[str, Any]:
    """All sixteen 3×3 convolutions of ResNet-18 at ratio 2 and 4 bits."""
    began, count, errors = time.perf_counter(), 0, []
    for columns, rows, repeats in RESNET18:
        for _ in range(repeats):
            count += 1
            weight = torch.randn(rows, columns, 3, 3, generator=torch.Generator().manual_seed(count)).to(
                device
            )
            rank = int(weight.numel() / (rows + columns + 9) / 2)
            result = solve_layer(weight, rank=rank, spec=QuantSpec(bits=4))
            errors.append(result.relative_error)
    wait(device)
    return {
        "layers": count,
        "seconds": round(time.perf_counter() - began, 1),
        "mean_relative_error": round(statistics.mean(errors), 4),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "benchmark": "solver_speed",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "by_size": [
            sweep_rate(rows, columns, int(rows * columns * 9 / (rows + columns + 9) / 2), device)
            for rows, columns in SIZES
        ],
        "by_rank": [sweep_rate(512, 512, rank, device) for rank in RANKS],
    }
    if options.network:
        report["resnet18"] = solve_resnet18(device)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
