"""Networks that are no plain classifiers go all the way: solved, calibrated, packed, read back.

They are small ones of the kinds torchvision has: attention (packed and windowed), squeeze-and-excitation, a
segmentation network that puts out a dict, a detector with one head on several scales and boxes chosen by
score; and one with transposed convolutions, kernels of one and three dimensions and a weight used twice.
Images are noise and the solver gets few iterations: what is proved is that nothing is lost on the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_networks import (
    SIDE,
    built_and_captured,
    detector,
    mobilenet,
    segmentation,
    swin,
    vision_transformer,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import FasterRCNN

from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer
from qaf_core.network.plan.cost import plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import LARGEST_SAMPLE, batch_size, batches_needed, compress_network
from qaf_core.pipeline.compress.result import CompressOptions

CARD = {
    "model": "tests/odd", "architecture": "tests.odd", "method": "joint", "activation_bits": 8, "seed": 0,
    "input_shape": [3, SIDE, SIDE], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "classes": ["ok", "scratch", "crack", "pit", "stain", "inclusion", "chipped_edge", "missing_hole"],
}  # fmt: skip
QUICK = CompressOptions(solver=SolverOptions(starts=1, start_iterations=5, iterations=2, rounding_rounds=2))


class Upsampling(nn.Module):
    """Transposed convolutions, one weight at two strides, and kernels of one and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.between = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.columns = nn.Conv1d(8, 12, 5, padding=2)
        self.volume = nn.Conv3d(1, 6, (3, 3, 1), padding=(1, 1, 0))
        self.head = nn.Linear(18, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.between(self.shared(self.down(images).relu()).relu()).relu()
        smaller = nn.functional.conv2d(values, self.shared.weight, self.shared.bias, stride=2, padding=1)
        values = self.up(smaller.relu()).relu()
        flat = self.columns(values.mean(-1)).relu().mean(-1)
        deep = self.volume(values[:, None]).relu().mean((2, 3, 4))
        found: Tensor = self.head(torch.cat([flat, deep], dim=1))
        return found


BUILDERS: tuple[Callable[[], nn.Module], ...] = (
    mobilenet, vision_transformer, swin, segmentation, Upsampling,
)  # fmt: skip


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("build", "method"),
    [*((build, "joint") for build in BUILDERS), (detector, "dense"), (Upsampling, "dense")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_network_of_its_own_kind_goes_all_the_way(
    build: Callable[[], nn.Module], method: str, tmp_path: Path
) -> None:
    fresh, model = built_and_captured(build)
    inventory = take_inventory(model, (3, SIDE, SIDE))
    plan = plan_for_ratio(inventory, model="tests/odd", ratio=1.5, bits=6, method=method)
    compression = compress_network(
        model, plan, inventory, method=method, calibration=images(48, 1), options=QUICK
    )
    assert compression.status == "completed"
    planned = [row.name for row in plan.layers if row.structure != "keep"]
    assert sorted(outcome.name for outcome in compression.layers) == sorted(planned)
    errors = [outcome.output_error for outcome in compression.layers if outcome.output_error is not None]
    assert len(errors) == len(planned)
    assert sum(errors) / len(errors) < (0.05 if method == "dense" else 0.7)
    for name in planned:
        chain = compression.model.get_submodule(name)
        assert isinstance(chain, FactorizedLayer)
        assert all(bool(link.input_quantizer.enabled) for link in chain.chain)

    path = tmp_path / "model.safetensors"
    stored = save_packed(path, compression.model, inventory, CARD)
    assert stored == pytest.approx(plan_cost(inventory, plan).size_bytes, rel=0.05)
    loaded = load_packed(path, fresh)
    assert quantizers_of(loaded) == quantizers_of(compression.model)
    # Half precision alone: with activations rounded, a value in many goes to another code.
    assert_alike(unrounded(compression.model), unrounded(loaded), tolerance=0.02)
    if method == "dense":
        assert_alike(model, compression.model, tolerance=0.15)


def quantizers_of(model: nn.Module) -> dict[str, list[tuple[float, int] | None]]:
    """Scale and zero point of every link's input, by layer."""
    chains = chains_in(model).items()
    return {name: [link.input_quantizer.qparams for link in part.chain] for name, part in chains}


def unrounded(model: nn.Module) -> nn.Module:
    """A copy whose activations are not rounded."""
    twin = copy.deepcopy(model)
    for chain in chains_in(twin).values():
        chain.use_floats()
        for link in chain.chain:
            link.input_quantizer = ActivationQuantizer()
    return twin


def assert_alike(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    """The networks put out the same on new images, up to a share of the largest output."""
    with torch.inference_mode():
        wanted, found = one(images(2, 2)), other(images(2, 2))
    if isinstance(one, FasterRCNN):  # which boxes are best is decided by differences far below the tolerance
        wanted, found = ([image["scores"].sort().values for image in output] for output in (wanted, found))
    pairs = list(zip(tree_leaves(wanted), tree_leaves(found), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * float(a.abs().max())


def test_large_images_go_in_small_batches() -> None:
    small, usual, large = (torch.empty(256, 3, side, side, device="meta") for side in (32, 224, 448))
    assert batch_size(small) == batch_size(usual) == 32
    assert batch_size(large) == 8
    assert batch_size(torch.empty(2, 3, 4000, 4000, device="meta")) == 1


def test_a_fit_looks_at_fewer_images_where_they_fill_the_memory() -> None:
    def row(side: int, channels: int) -> LayerInfo:
        layer = nn.Conv2d(channels, channels, 3, padding=1, device="meta")
        return take_inventory(nn.Sequential(layer), (channels, side, side))[0]

    assert batches_needed(row(8, 16)) == math.ceil(400_000 / 64 / 32)
    assert batches_needed(row(112, 64)) == 3
    numbers = 64 * 200 * 200
    assert batches_needed(row(200, 64), size=10) == int(LARGEST_SAMPLE / numbers / 10) == 3
    assert batches_needed(row(4000, 64), size=1) == 2
