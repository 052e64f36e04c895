"""The fastest integer file stays near the evaluated network, and holds its codes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qaf_core.deploy.onnx_export.export_fast import export_fast
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions

SHAPE = (3, 12, 12)
QUICK = CompressOptions(solver=SolverOptions(starts=1, iterations=2), output_fit=False)


def test_the_fast_file_holds_whole_numbers_and_stays_near(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    images = torch.rand(48, *SHAPE, generator=torch.Generator().manual_seed(1))
    model = capture(network.eval(), SHAPE)
    inventory = take_inventory(model, SHAPE)
    plan = plan_for_ratio(inventory, model="tests/fast", ratio=1.0, bits=8, method="dense")
    made = compress_network(model, plan, inventory, method="dense", calibration=images, options=QUICK)
    path = tmp_path / "fast.onnx"
    report = export_fast(
        made.model, path, input_shape=SHAPE, calibration=[images[:24]], images=[images[24:]], force=True
    )
    assert path.stat().st_size == report.size_bytes
    assert report.agreement is not None
    assert report.agreement.largest_difference < 0.1 * report.agreement.output_range
    assert set(report.weights_stored_as) <= {"int8", "uint8"}
