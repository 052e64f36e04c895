"""Time and memory of calibration at 8 bits without an output fit, against a plain forward pass.

    python benchmarks/calibration.py [torchvision/mobilenet_v2 ...] [--images 250] [--no-plain]

The images are noise. Prints one JSON object a network; peak memory is that of the whole process, so give one
network at a time for it, with ``--no-plain`` to leave out what the plain pass holds.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch

from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import batch_size, compress_network
from qaf_core.pipeline.compress.result import CompressOptions


def measure(model_id: str, count: int, plain: bool) -> dict[str, object]:
    """Seconds of a plain pass and of calibration, and peak memory in bytes."""
    source = find_model(model_id)
    model = build_model(source, with_weights=source.shipped)
    inventory = take_inventory(model, source.input_shape)
    plan = plan_for_ratio(inventory, model=model_id, ratio=1.0, bits=8, method="dense")
    images = torch.rand(count, *source.input_shape, generator=torch.Generator().manual_seed(0))
    row: dict[str, object] = {"network": model_id, "images": count}
    if plain:
        with torch.inference_mode():
            model(images[:8])
            began = time.perf_counter()
            for batch in torch.split(images, batch_size(images)):
                model(batch)
        row["plain_seconds"] = time.perf_counter() - began
    options = CompressOptions(output_fit=False)
    compression = compress_network(
        model, plan, inventory, method="dense", calibration=images, options=options
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {**row, **compression.seconds, "peak_memory_bytes": peak}


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("networks", nargs="*", default=["torchvision/mobilenet_v2"])
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--no-plain", action="store_true")
    arguments = parser.parse_args()
    for model_id in arguments.networks:
        print(json.dumps(measure(model_id, arguments.images, not arguments.no_plain)), flush=True)


if __name__ == "__main__":
    main()
