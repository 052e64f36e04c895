"""Every layer of every shipped model: the joint solver's error against factorize-then-round; prints JSON.

python benchmarks/joint_against_sequential.py [--models digits/cnn,inspection/resnet20] [--bits 3,4,6,8]

Both at ratio 2, with the same rank, bits and scales. ``sequential`` rounds TensorLy's floating-point
factors; ``joint`` is also
started from those very factors, and both of its results must not be above the rounded ones.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from qaf_core import QuantSpec, solve_layer
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--models", default="digits/cnn,inspection/resnet20,inspection/vgg,inspection/resnet18"
    )
    parser.add_argument("--bits", default="3,4,6,8")
    options = parser.parse_args()
    worst: dict[str, Any] = {"ratio": 0.0}
    compared, above = 0, []
    for name in options.models.split(","):
        source = find_model(name)
        model = build_model(source)
        inventory = take_inventory(model, source.input_shape)
        plan = plan_for_ratio(inventory, model=name, ratio=2, bits=4)
        for row in (row for row in plan.layers if row.structure in ("cp", "svd")):
            weight = model.get_submodule(row.name).weight.detach()  # type: ignore[union-attr]
            torch.set_num_threads(1 if weight.numel() < 200_000 else 2)
            for bits in (int(part) for part in options.bits.split(",")):
                spec = QuantSpec(bits=bits, granularity="rank_row")
                joint, sequential = (
                    solve_layer(
                        weight, structure=row.structure, rank=row.rank, spec=spec, method=method
                    ).relative_error
                    for method in ("joint", "sequential")
                )
                compared += 1
                case = {
                    "model": name,
                    "layer": row.name,
                    "bits": bits,
                    "joint": joint,
                    "sequential": sequential,
                    "ratio": joint / sequential,
                }
                if joint > sequential:
                    above.append(case)
                worst = max(worst, case, key=lambda item: item["ratio"])
    print(
        json.dumps(
            {
                "benchmark": "joint_against_sequential",
                "compared": compared,
                "joint_above": above,
                "closest": worst,
            }
        )
    )


if __name__ == "__main__":
    main()
