"""ONNX graphs hold what they need, whatever shares it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.export import export_onnx
from qaf_core.deploy.onnx_export.writer import GraphBuilder
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions

SHAPE = (3, 8, 8)
QUICK = CompressOptions(solver=SolverOptions(starts=1, iterations=2), output_fit=False)


class SharedLinear(nn.Module):
    """One square linear layer on tensors of three and of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.shared(self.stem(images).flatten(2).mT).relu().mean(1)
        return self.head(self.shared(rows).relu())


class TwoStrides(nn.Module):
    """One 1×1 convolution with two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        values = nn.functional.conv2d(self.stem(images).relu(), self.weight).relu()
        return self.head(nn.functional.conv2d(values, self.weight, stride=2).mean((2, 3)))


class Bag(nn.Module):
    """An operation that ONNX writes as a loop, which reads a constant from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bag, self.head = (
            nn.Conv2d(3, 2, 3),
            nn.EmbeddingBag(10, 8, mode="max"),
            nn.Linear(8, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        places = self.stem(images).mean(3).sigmoid().mul(9.9).long().flatten(1)
        return self.head(self.bag(places))


class ConstantBeside(SharedLinear):
    """A second output that no image changes."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(images), self.head.bias * 2


IMAGES = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(1))


@functools.cache
def compressed(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = capture(build().eval(), SHAPE)
    inventory = take_inventory(model, SHAPE)
    plan = plan_for_ratio(inventory, model="tests/graph", ratio=1.0, bits=8, method="dense")
    made = compress_network(model, plan, inventory, method="dense", calibration=IMAGES, options=QUICK)
    return made.model


@pytest.mark.parametrize("integer", [True, False], ids=["integer", "float"])
@pytest.mark.parametrize(
    "build", [SharedLinear, TwoStrides, Bag, ConstantBeside], ids=lambda build: build.__name__
)
def test_every_form_of_a_network_is_written_as_it_computes(
    build: Callable[[], nn.Module], integer: bool, tmp_path: Path
) -> None:
    report = export_onnx(
        compressed(build), tmp_path / "model.onnx", input_shape=SHAPE, integer=integer, images=[IMAGES[:8]]
    )
    assert report.passed
    assert report.agreement is not None
    assert report.agreement.largest_difference < 0.01 * report.agreement.output_range


def test_constants_that_differ_have_names_that_differ() -> None:
    builder = GraphBuilder()
    one = builder.constant("weight", np.ones((2, 3), np.float32))
    assert builder.constant("weight", np.ones((2, 3), np.float32)) == one
    others = {
        builder.constant("weight", values)
        for values in (np.ones((3, 2), np.float32), np.zeros((2, 3), np.float32), np.ones((2, 3), np.int8))
    }
    assert len(others | {one}) == 4
