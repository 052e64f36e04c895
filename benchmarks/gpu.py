"""Solver, sensitivity and calibration on a GPU against this machine's processor, in five minutes at most.

    python benchmarks/gpu.py [--device cuda] [--seconds 280] [--quick]

Runs where only torch, numpy, scipy and safetensors are installed; weights and images are random. Prints a
table on stderr and one JSON object, which names the card. Each part has a share of the time; one that does
not fit, or fails, is told. ``--quick`` takes small layers and a small network, to test the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from qaf_core.errors import RunCancelled
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.solve import solve_layer
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.compress.solve_layers import DEVICE_VARIABLE
from qaf_core.pipeline.events import Progress
from qaf_core.quantization.spec import QuantSpec
from qaf_core.search.sensitivity.measure import measure_sensitivity

# (outputs, inputs, kernel): how many of them there are
RESNET18 = {
    (64, 64, 3): 4, (128, 64, 3): 1, (128, 128, 3): 3, (256, 128, 3): 1, (256, 256, 3): 3, (512, 256, 3): 1,
    (512, 512, 3): 3,
}  # fmt: skip
RESNET50 = {
    (64, 64, 3): 3, (128, 128, 3): 4, (256, 256, 3): 6, (512, 512, 3): 3, (256, 64, 1): 4, (64, 256, 1): 2,
    (128, 256, 1): 1, (512, 128, 1): 4, (128, 512, 1): 3, (256, 512, 1): 1, (1024, 256, 1): 6,
    (256, 1024, 1): 5, (512, 1024, 1): 1, (2048, 512, 1): 3, (512, 2048, 1): 2,
}  # fmt: skip
QUICK = {(6, 6, 3): 2, (8, 4, 1): 1}
RATIO, BITS = 2.0, 4
LONGEST_SOLVE = 20.0  # seconds
SHARES = {"ResNet-18's convolutions": 0.3, "ResNet-50's convolutions": 0.3, "calibration": 0.2}
SENSITIVITY_SHARE = 0.2


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        values = images
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            values = norm(conv(values))
            values = values if index == 2 else values.relu()
        return (values + self.shortcut(images)).relu()


def resnet(depths: tuple[int, ...], width: int, classes: int) -> nn.Module:
    """A network like ResNet-50 (depths 3, 4, 6, 3 and width 64)."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inputs = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            parts.append(Bottleneck(inputs, width << stage, 2 if stage and not block else 1))
            inputs = 4 * (width << stage)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    return nn.Sequential(*parts, *head).eval()


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of some work, what runs on the device included."""
    began = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def solve_all(layers: dict[tuple[int, int, int], int], device: str, until: float) -> dict[str, Any]:
    """Each shape is solved once and counted as often as there are such layers."""
    options = SolverOptions(time_limit_seconds=LONGEST_SOLVE)
    total, errors, late = 0.0, [], 0
    for (outputs, inputs, kernel), count in layers.items():
        if time.monotonic() > until:
            late += count
            continue
        generator = torch.Generator().manual_seed(outputs + inputs)
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator).to(device)
        dims = (outputs, inputs, kernel**2) if kernel > 1 else (outputs, inputs)
        rank = max(1, int(weight.numel() / sum(dims) / RATIO))

        def solve(weight: Tensor = weight, rank: int = rank, kernel: int = kernel) -> None:
            structure = "cp" if kernel > 1 else "svd"
            result = solve_layer(weight, structure, rank, QuantSpec(bits=BITS), options=options)
            errors.append(round(result.relative_error, 4))

        total += count * timed(solve, device)
    return {"seconds": total, "relative_errors": errors, "layers_left_out": late}


def calibrate(model: nn.Module, images: Tensor, device: str, until: float) -> dict[str, Any]:
    """``dense`` at 8 bits with activations, without an output fit, against a plain pass."""
    model, images = model.to(device), images.to(device)
    inventory = take_inventory(model, tuple(images.shape[1:]))
    plan = plan_for_ratio(inventory, model="benchmark/resnet", ratio=1.0, bits=8, method="dense")
    compressions: list[Any] = []

    def plain() -> None:
        with torch.inference_mode():
            for batch in torch.split(images, 32):
                model(batch)

    def work() -> None:
        options = CompressOptions(output_fit=False)
        progress = Progress(should_stop=lambda: time.monotonic() > until)
        compressions.append(
            compress_network(
                model, plan, inventory, method="dense", calibration=images, options=options, progress=progress
            )
        )

    plain_seconds = timed(plain, device)
    total = timed(work, device)
    return {
        "seconds": total,
        "plain_seconds": plain_seconds,
        **compressions[0].seconds,
        "status": compressions[0].status,
    }


def explore(model: nn.Module, images: Tensor, device: str, until: float) -> dict[str, Any]:
    """The harm of every setting of every layer."""
    model, images = model.to(device), images.to(device)
    inventory = take_inventory(model, tuple(images.shape[1:]))
    progress = Progress(should_stop=lambda: time.monotonic() > until)
    return {
        "seconds": timed(lambda: measure_sensitivity(model, inventory, images, progress=progress), device)
    }


def attempt(part: Callable[[float], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What a part tells, or why it tells nothing."""
    try:
        return part(time.monotonic() + seconds)
    except RunCancelled:
        return {"stopped_after_seconds": seconds}
    except Exception as error:  # one part must not cost the others
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def measure(device: str, seconds: float, *, quick: bool) -> dict[str, Any]:
    """All parts on one device."""
    os.environ[DEVICE_VARIABLE] = "cpu" if device == "cpu" else "auto"
    network = resnet((1, 1), 8, 10) if quick else resnet((3, 4, 6, 3), 64, 1000)
    explored = resnet((1,), 8, 10) if quick else resnet((2, 2, 2, 2), 32, 100)
    side, count = (32, 8) if quick else (224, 64)
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    parts: dict[str, Callable[[float], dict[str, Any]]] = {
        "ResNet-18's convolutions": lambda until: solve_all(QUICK if quick else RESNET18, device, until),
        "ResNet-50's convolutions": lambda until: solve_all(QUICK if quick else RESNET50, device, until),
        "calibration": lambda until: calibrate(network, images, device, until),
        "sensitivity": lambda until: explore(explored, images[:32], device, until),
    }
    if device != "cpu":  # the first use of a card takes seconds of its own
        torch.linalg.eigh(torch.eye(8, device=device))
    return {
        name: attempt(part, seconds * SHARES.get(name, SENSITIVITY_SHARE)) for name, part in parts.items()
    }


def describe(device: str) -> dict[str, Any]:
    """The card and the processor."""
    card = torch.cuda.get_device_name() if device != "cpu" else None
    return {
        "card": card,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=280.0, help="of all together, about")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    devices = dict.fromkeys((options.device, "cpu"))
    share = options.seconds / len(devices)
    results = {name: measure(name, share, quick=options.quick) for name in devices}
    for part in results[options.device]:
        cells = [
            f"{name} {row['seconds']:.2f} s" if "seconds" in row else f"{name} {row}"
            for name, row in ((name, rows[part]) for name, rows in results.items())
        ]
        print(f"{part:28} {'   '.join(cells)}", file=sys.stderr)
    print(json.dumps({"benchmark": "gpu", **describe(options.device), "devices": results}))


if __name__ == "__main__":
    main()
