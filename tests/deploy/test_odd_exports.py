"""Networks with attention go to ONNX as integers: their projections are layers like all others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_networks import SIDE, second_swin, vision_transformer
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions

QUICK = CompressOptions(
    solver=SolverOptions(starts=1, start_iterations=5, iterations=2, rounding_rounds=2), output_fit=False
)


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", [vision_transformer, second_swin], ids=lambda build: build.__name__)
def test_attention_runs_on_integers(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = build().eval()
    for parameter in fresh.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    model = capture(fresh, (3, SIDE, SIDE))
    inventory = take_inventory(model, (3, SIDE, SIDE))
    plan = plan_for_ratio(inventory, model="tests/odd", ratio=1.5, bits=6)
    compression = compress_network(model, plan, inventory, calibration=images(16, 1), options=QUICK)
    card = {"model": "tests/odd", "input_shape": [3, SIDE, SIDE]}
    save_packed(tmp_path / "model.safetensors", compression.model, inventory, card)
    network = load_packed(tmp_path / "model.safetensors", model)
    path = tmp_path / "model.onnx"
    report = export_onnx(network, path, input_shape=(3, SIDE, SIDE), images=[images(8, 2)])
    assert report.passed
    assert report.agreement is not None
    assert report.agreement.share == 1.0
    planned = sum(row.structure != "keep" for row in plan.layers)
    assert sum(report.integer_operators.values()) >= planned


QUIET = """
import torch
from torch import nn
from qaf_core.deploy.onnx_export.skeleton import trace_skeleton
from qaf_core.errors import ModelError

class Wavering(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:
            x = x * 2
        return x.mean((2, 3))

try:
    trace_skeleton(Wavering(), (3, 8, 8))
except ModelError as error:
    print(error)
"""


def test_a_network_that_depends_on_its_data_is_told_without_its_graph() -> None:
    """What torch logs of it, with the whole graph, goes nowhere: seen in a process of its own."""
    command = [sys.executable, "-c", QUIET]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "cannot be written as ONNX; got GuardOnDataDependentSymNode" in done.stdout
    assert done.stderr == ""


class Attention(nn.Module):
    """Attention over three, four or five dimensions, as networks with windows write it."""

    def __init__(self, shape: tuple[int, ...], masked: bool) -> None:
        super().__init__()
        self.stem, self.projections, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24), nn.Linear(8, 5)
        self.shape = shape
        self.register_buffer("mask", torch.randn(*shape[:-2], 1, 1) if masked else None)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.projections(self.stem(x).flatten(2).mT)
        parts = [part.reshape(len(x), *self.shape) for part in rows.chunk(3, -1)]
        found = nn.functional.scaled_dot_product_attention(*parts, attn_mask=self.mask)
        return self.head(found.permute(0, *range(2, found.ndim), 1).reshape(len(x), -1, 8).mean(1))


@pytest.mark.parametrize(
    ("shape", "masked"), [((16, 8), False), ((2, 16, 4), True), ((4, 2, 4, 4), True)], ids=str
)
def test_attention_over_any_dimensions_is_written(
    shape: tuple[int, ...], masked: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = capture(Attention(shape, masked).eval(), (3, SIDE, SIDE))
    report = export_onnx(
        model, tmp_path / "model.onnx", input_shape=(3, SIDE, SIDE), images=[images(8, 2)], integer=False
    )
    assert report.passed
