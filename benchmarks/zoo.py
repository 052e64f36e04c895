"""Every network that can be named, compressed to 8 bits from end to end; one JSON line each, and a summary.

python benchmarks/zoo.py [ID ...] [--only TEXT] [--skip TEXT] [--limit N] [--seconds 900] [--images N]
    [--processes N] [--side PIXELS] [--no-output-fit]

Each network is built with random weights, its BatchNorm settled on smooth random pictures, and compressed by
``dense`` at W8A8 through the functions that ``qaf compress`` uses: compress, packed file, the file read back
into a network built anew. Its own answers are the labels. Told are the relative error of the scores (at most
0.05 is wanted) over the scores, and over what they vary from picture to picture; how the answers agree; which
share of the layers' multiplications became integers (90 % at least); how the INT8 ONNX file agrees in ONNX
Runtime (99.5 % at least); seconds, and peak memory. Every network has a process and a time limit of its own:
one that fails does not end the rest.

Networks with random weights may amplify any noise: deep ones with BatchNorm after narrow layers make far more
than 5 % of the rounding of activations alone. ``plain_error`` says how much: of the original with weights and
inputs of its layers rounded to 8 bits, nothing else. Where the error is above 0.05 and up to twice that, the
verdict is ``as plain rounding``; above it something is wrong.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_networks import every_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qaf_core.data.models.source import ModelSource

LARGEST_ERROR, LEAST_AGREEMENT, TIMES_PLAIN, LEAST_COMPRESSED = 0.05, 0.995, 2.0, 0.9
BITS = 8
SETTLING_BATCHES, SETTLING_IMAGES = 3, 8
MOST_IMAGES, LEAST_IMAGES, PIXELS = 32, 4, 32 * 224 * 224  # of calibration; fewer where they are large
NOISE = 0.1


class Stages:
    """Seconds of each stage, and the stage that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now = "start"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        self.now, began = name, time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)


# --- one network, in a process of its own


def smooth_pictures(count: int, source: ModelSource, seed: int) -> Tensor:
    """Normalised random pictures (N, C, H, W): patches of colour, some texture, more or less contrast."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    channels, height, width = source.input_shape
    pictures = torch.zeros(count, channels, height, width)
    for cells, share in ((3, 1.0), (8, 0.6), (32, 0.3)):
        drawn = torch.randn(count, channels, cells, cells, generator=generator)
        pictures += share * functional.interpolate(drawn, (height, width), mode="bicubic")
    pictures *= 0.15 * (0.5 + torch.rand(count, 1, 1, 1, generator=generator))
    pixels = (pictures + 0.4 + 0.2 * torch.rand(count, channels, 1, 1, generator=generator)).clamp(0, 1)
    steps = source.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (steps.mean, steps.std))
    return (pixels - mean) / std


def draw_network(source: ModelSource) -> nn.Module:
    """The captured network with random weights, none of them constant, and BatchNorm that fits them.

    BatchNorm is settled in the network as it was written: the captured one is in evaluation for good.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torchvision.ops import FrozenBatchNorm2d

    from qaf_core.data.models.catalogue import build_network
    from qaf_core.network.graph.capture import capture

    torch.manual_seed(0)
    model = build_network(source).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or float(parameter.abs().max()) < 1e-3:  # begins as zeros, or as good as
                parameter.add_(NOISE * torch.randn_like(parameter))
        norms = [
            norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats
        ]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
            norm.train()
        frozen = [norm for norm in model.modules() if isinstance(norm, FrozenBatchNorm2d)]
        settling = [norm.register_forward_pre_hook(settle_frozen) for norm in frozen]
        for seed in range(SETTLING_BATCHES if norms or frozen else 0):
            model(smooth_pictures(min(SETTLING_IMAGES, calibration_count(source)), source, 1000 + seed))
        for handle in settling:
            handle.remove()
    return capture(model.eval(), source.input_shape)


def settle_frozen(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Before torchvision's frozen BatchNorm runs: its statistics become those of what comes in."""
    variance, mean = inputs[0].var((0, 2, 3)), inputs[0].mean((0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance.clamp_min(1e-6))


def calibration_count(source: ModelSource) -> int:
    """How many calibration pictures a network gets."""
    _, height, width = source.input_shape
    return max(LEAST_IMAGES, min(MOST_IMAGES, PIXELS // (height * width)))


def scores_of(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """All tensors a network puts out, over all batches; of a detector those of its head, if it shows it."""
    import torch
    from torch.utils._pytree import tree_leaves

    head = getattr(getattr(model, "rpn", model), "head", None) if _is_detector(model) else None
    outputs: list[list[Tensor]] = []
    with torch.inference_mode():
        for batch in batches:
            if not _is_detector(model):
                outputs.append(tree_leaves(model(batch)))
                continue
            row: list[Tensor] = []
            if head is not None:
                handle = head.register_forward_hook(
                    lambda _module, _inputs, output, row=row: row.extend(tree_leaves(output))
                )
                model(batch)
                handle.remove()
            outputs.append(row)
    return [torch.cat(list(parts)) for parts in zip(*outputs, strict=True)]


def _is_detector(model: nn.Module) -> bool:
    """Whether it has a transform of its own for its images, as torchvision's detectors do."""
    return hasattr(model, "transform") and hasattr(model, "backbone")


def errors(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> dict[str, float | None]:
    """Relative errors of the worst output: over its size, and over what it varies between pictures."""
    if not expected or len(expected) != len(actual):
        return {"relative_error": None, "error_of_variation": None}
    of_size = of_variation = 0.0
    for target, output in zip(expected, actual, strict=True):
        difference = float((output - target).double().norm())
        of_size = max(of_size, difference / float(target.double().norm()))
        varies = float((target - target.mean(dim=0)).double().norm())
        of_variation = max(of_variation, difference / varies if varies > 0 else float("inf"))
    return {"relative_error": of_size, "error_of_variation": of_variation}


def round_to_nearest(model: nn.Module, calibration: Tensor) -> nn.Module:
    """The captured network with 8-bit weights and inputs in its layers, by their extremes."""
    import torch
    from torch import nn

    from qaf_core.network.graph.network import layers_in

    rounded = copy.deepcopy(model)
    points: list[RoundedInput] = []
    with torch.inference_mode():
        for layer in layers_in(rounded).values():
            rows = layer.rows
            largest = rows.flatten(1).abs().amax(1).clamp_min(1e-12)
            steps = (largest / 127).reshape(-1, *(1,) * (rows.ndim - 1))
            weight = layer.operation.as_stored((rows / steps).round() * steps)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            points.append(RoundedInput())
            layer.register_forward_pre_hook(points[-1])
        for batch in calibration.split(4):
            rounded(batch)
    for point in points:
        point.rounds = True
    return rounded


class RoundedInput:
    """Rounds a module's input to 256 steps of the range that was seen before."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.rounds = False

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first = inputs[0]
        if not self.rounds:
            self.low = min(self.low, float(first.min()))
            self.high = max(self.high, float(first.max()))
            return None
        step = (self.high - self.low) / 255 or 1.0
        low, high = round(self.low / step), round(self.high / step)
        return ((first / step).round().clamp(low, high) * step, *inputs[1:])


def measure(
    model_id: str, images: int | None, fit: bool, stages: Stages, side: int | None = None
) -> dict[str, Any]:
    """Compress one network from end to end and measure it."""
    from qaf_core.data.models.catalogue import build_model, find_model
    from qaf_core.deploy.packed.read import load_packed
    from qaf_core.deploy.packed.write import save_packed
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.network.plan.cost import original_cost
    from qaf_core.network.plan.rules import plan_for_ratio
    from qaf_core.network.plan.validation import validate_plan
    from qaf_core.pipeline.compress.compress import compress_network
    from qaf_core.pipeline.compress.result import CompressOptions
    from qaf_core.pipeline.tasks import find_task, predict

    with stages.stage("build"):
        source = find_model(model_id)
        if side is not None:
            prepared = dataclasses.replace(source.preprocessing, crop=(side, side), resize=None)
            source = dataclasses.replace(source, preprocessing=prepared)
        model = draw_network(source)
    count = images or calibration_count(source)
    with stages.stage("inspect"):
        inventory = take_inventory(model, source.input_shape)
        plan = plan_for_ratio(inventory, model=model_id, ratio=1.0, bits=BITS, method="dense")
        validate_plan(plan, inventory, model=model_id)
    with stages.stage("compress"):
        compression = compress_network(
            model, plan, inventory, method="dense", calibration=smooth_pictures(count, source, 1),
            options=CompressOptions(output_fit=fit),
        )  # fmt: skip
    card = card_of(source, plan.activation_bits)
    with tempfile.TemporaryDirectory() as folder:
        with stages.stage("pack"):
            packed_file = Path(folder) / "packed.safetensors"
            size = save_packed(packed_file, compression.model, inventory, card)
            packed = load_packed(packed_file, build_model(source, with_weights=False))
        with stages.stage("evaluate"):
            batches = list(smooth_pictures(count, source, 2).split(4))
            pairs = [(batch, None) for batch in batches]
            task = find_task(source.task)
            agreement = task.agreement(predict(task, model, pairs), predict(task, packed, pairs))
            expected = scores_of(model, batches)
            deviation = errors(expected, scores_of(packed, batches))
        with stages.stage("plain rounding"):
            rounded = round_to_nearest(model, smooth_pictures(count, source, 1))
            plain = errors(expected, scores_of(rounded, batches))["relative_error"]
        with stages.stage("onnx"):
            onnx = measure_onnx(packed, Path(folder) / "net.onnx", source, batches, card)
    changed = {layer.name for layer in compression.layers}
    before = original_cost(inventory)
    in_layers = sum(info.macs for info in inventory if info.planned)  # products of attentions have no weight
    return {
        "task": source.task,
        "parameters": before.params,
        "macs": before.macs,
        "layers": len([info for info in inventory if info.planned]),
        "layers_compressed": len(changed),
        "macs_compressed": sum(info.macs for info in inventory if info.name in changed) / max(in_layers, 1),
        "size_fraction": size / before.size_bytes,
        **deviation,
        "plain_error": plain,
        "agreement": agreement,
        "onnx": onnx,
    }


def card_of(source: ModelSource, activation_bits: int) -> dict[str, Any]:
    """What a run writes into the packed file."""
    return {
        "model": source.id, "architecture": source.architecture, "method": "dense",
        "activation_bits": activation_bits, "seed": 0, "input_shape": source.input_shape,
        "mean": source.preprocessing.mean, "std": source.preprocessing.std, "task": source.task,
        "classes": len(source.classes),
    }  # fmt: skip


def measure_onnx(
    packed: nn.Module, path: Path, source: ModelSource, batches: Sequence[Tensor], card: dict[str, Any]
) -> dict[str, Any]:
    """The INT8 file against the packed network, or why there is none."""
    from qaf_core.deploy.onnx_export.export import export_onnx
    from qaf_core.errors import QafError

    try:
        report = export_onnx(
            packed, path, input_shape=source.input_shape, images=batches, card=card, force=True
        )
    except QafError as error:
        return {"error": str(error)[:300]}
    agreed = report.agreement
    return {
        "agreement": None if agreed is None else agreed.share,
        "largest_difference": None if agreed is None else agreed.largest_difference,
        "failed": [check.name for check in report.checks if not check.passed],
        "integer_operators": sum(report.integer_operators.values()),
    }


def verdict(row: dict[str, Any]) -> str:
    """`good`, or the first thing that is not."""
    if "error" in row:
        return f"failed in {row.get('stage', 'start')}"
    error, onnx = row["relative_error"], row["onnx"]
    if error is None:
        return "scores not compared"
    if not error <= max(LARGEST_ERROR, TIMES_PLAIN * row["plain_error"]):
        return "scores differ"
    if row["macs_compressed"] < LEAST_COMPRESSED:
        return "layers left out"
    if "error" in onnx:
        return "no ONNX file"
    if (onnx["agreement"] or 0.0) < LEAST_AGREEMENT or onnx["failed"]:
        return "ONNX differs"
    return "good" if error <= LARGEST_ERROR else "as plain rounding"


def print_one(model_id: str, images: int | None, fit: bool, side: int | None = None) -> None:
    """Measure one network and print its line."""
    stages, began = Stages(), time.perf_counter()
    try:
        row = measure(model_id, images, fit, stages, side)
    except Exception as error:  # whatever a network does to us is what this is to find
        row = {"stage": stages.now, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = {**stages.seconds, "total": round(time.perf_counter() - began, 2)}
    line = {"network": model_id, "verdict": verdict(row), **row, "seconds": seconds}
    print(json.dumps({**line, "peak_memory_bytes": peak}))


# --- all of them


def run_apart(model_id: str, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one network, measured by another process; what it writes to stderr goes to ours."""
    command = [sys.executable, __file__, "--one", model_id]
    command += ["--images", str(options.images)] if options.images else []
    command += ["--side", str(options.side)] if options.side else []
    command += [] if options.output_fit else ["--no-output-fit"]
    began = time.perf_counter()
    row: dict[str, Any]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, timeout=options.seconds
        )
        row = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        row = {"error": f"no end within {options.seconds:g} s"}
    except (IndexError, ValueError):
        row = {"error": f"the process ended with {done.returncode} and no result"}
    if "network" not in row:
        seconds = {"total": round(time.perf_counter() - began, 2)}
        row = {"network": model_id, "verdict": "failed", **row, "seconds": seconds}
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many networks went how, and which did not go well."""
    by_verdict: dict[str, list[str]] = {}
    for row in rows:
        by_verdict.setdefault(row["verdict"], []).append(row["network"])
    measured = [row["relative_error"] for row in rows if row.get("relative_error") is not None]
    return {
        "networks": len(rows),
        "good": len(by_verdict.pop("good", [])),
        "others": by_verdict,
        "worst_relative_error": max(measured, default=None),
        "seconds": round(sum(row["seconds"]["total"] for row in rows), 1),
        "peak_memory_bytes": max((row.get("peak_memory_bytes", 0) for row in rows), default=0),
    }


def chosen_networks(options: argparse.Namespace) -> list[str]:
    """What is asked for, in order."""
    named = options.networks or every_network()
    kept = [
        name
        for name in named
        if (not options.only or any(text in name for text in options.only.split(",")))
        and not (options.skip and any(text in name for text in options.skip.split(",")))
    ]
    return kept[: options.limit]


def main() -> None:
    """Measure the networks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="ID", help="models as `qaf` takes them")
    parser.add_argument("--only", help="parts of names, with commas between them")
    parser.add_argument("--skip", help="parts of names that are left out")
    parser.add_argument("--limit", type=int, help="at most so many networks")
    parser.add_argument("--seconds", type=float, default=900.0, help="for each network")
    parser.add_argument("--images", type=int, help="calibration pictures, by default up to 32")
    parser.add_argument(
        "--side", type=int, help="pixels, of networks that take any size; by default their own"
    )
    parser.add_argument(
        "--no-output-fit", dest="output_fit", action="store_false", help="round each layer as it is, faster"
    )
    parser.add_argument("--processes", type=int, default=1, help="networks at the same time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print_one(options.one, options.images, options.output_fit, options.side)
        return
    rows = []
    with ThreadPoolExecutor(options.processes) as pool:
        runs = [pool.submit(run_apart, model_id, options) for model_id in chosen_networks(options)]
        for run in as_completed(runs):
            rows.append(run.result())
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"summary": summarise(rows)}))


if __name__ == "__main__":
    main()
