"""Error and time of single layers of the real ResNet-20 by method and bits; prints one JSON object.

QAF_REAL_DATA=DIR python benchmarks/layer_errors.py [--published]

With --published the paper's method also runs at its published limit of 1,000 inner iterations, and the time
in which the
joint solver gets below its error is compared (minutes).
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from real_data import load_network

from qaf_core import QuantSpec, SolveEvent, SolverOptions, solve_layer
from qaf_core.errors import RunCancelled

LAYERS = (("layer3.1.conv1", 134), ("layer2.0.conv2", 63), ("layer1.1.conv1", 28))
PUBLISHED_INNER_ITERATIONS = 1000


def row(weight: torch.Tensor, layer: str, rank: int, bits: int, method: str, inner: int) -> dict[str, Any]:
    """One solve."""
    options = SolverOptions(inner_iterations=inner)
    result = solve_layer(weight, rank=rank, spec=QuantSpec(bits=bits), method=method, options=options)
    return {
        "layer": layer,
        "rank": rank,
        "bits": bits,
        "method": method,
        "inner_iterations": inner,
        "relative_error": round(result.relative_error, 4),
        "float_relative_error": round(result.float_relative_error, 4),
        "seconds": round(result.seconds, 2),
        "status": result.status.value,
    }


def seconds_to_reach(weight: torch.Tensor, rank: int, bits: int, error: float) -> float:
    """Seconds the joint solver needs, start included, until its quantized error is at or below ``error``."""
    reached: list[float] = []

    def stop(event: SolveEvent) -> None:
        if event.quantized_error <= error:
            reached.append(time.monotonic() - began)
            raise RunCancelled

    began = time.monotonic()
    solve_layer(weight, rank=rank, spec=QuantSpec(bits=bits), on_event=stop)
    return reached[0] if reached else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    _, model, _ = load_network(20)
    weights = {layer: model.get_submodule(layer).weight.detach() for layer, _ in LAYERS}  # type: ignore[union-attr]
    torch.set_num_threads(1)  # these layers are small: one thread is faster, for every method
    rows = [
        row(weights[layer], layer, rank, bits, method, 10 if method == "paper" else 3)
        for layer, rank in LAYERS
        for bits in (3, 4, 6, 8)
        for method in ("joint", "paper", "sequential")
    ]
    report: dict[str, Any] = {"benchmark": "layer_errors", "rows": rows}
    if options.published:
        layer, rank = LAYERS[0]
        published = row(weights[layer], layer, rank, 4, "paper", PUBLISHED_INNER_ITERATIONS)
        seconds = seconds_to_reach(weights[layer], rank, 4, published["relative_error"])
        report["published"] = {
            **published,
            "joint_seconds_to_that_error": round(seconds, 3),
            "times_faster": round(published["seconds"] / seconds, 1),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
