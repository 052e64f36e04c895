"""Networks with chains of every kind, their codes at random: nothing is solved, all must be kept exactly."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.factorization.factors import Factors, as_stored_codes
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, swap_layer
from qaf_core.network.plan.chains import factor_shapes
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan

INPUT_SHAPE = (3, 16, 16)
CARD = {"model": "tests/net", "architecture": "net", "input_shape": list(INPUT_SHAPE), "method": "joint"}
Pack = Callable[..., nn.Module]


class Branches(nn.Module):
    """What is hard to export: skips, other paddings, groups, pooling, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2)
        self.conv2 = nn.Conv2d(12, 12, (3, 1), padding="same", padding_mode="reflect")
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.wide = nn.Conv2d(12, 16, 1, stride=2)
        self.skip_bn = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem_bn(self.stem(images)).relu(), 2)
        x = self.conv1(x).relu()
        x = x + self.depthwise(self.conv2(x)).relu()
        x = self.skip_bn(self.wide(x).relu())
        x = x + self.twice(self.twice(x).relu())
        x = x.mean((2, 3))
        scores: Tensor = self.head(self.hidden(x).relu())
        return scores


def random_factors(info: LayerInfo, row: LayerPlan, generator: torch.Generator) -> Factors:
    """Codes at random, scales so that outputs stay about as large as inputs."""
    shapes = factor_shapes(info, row.structure, row.rank)
    if row.structure == "dense":
        shapes = ((info.out_channels, info.weight_numel // info.out_channels),)
    bits = row.bits if isinstance(row.bits, tuple) else (row.bits or 32,) * len(shapes)
    codes, scales = [], []
    for shape, width in zip(shapes, bits, strict=True):
        columns = (1, shape[1]) if len(shape) == 2 else (shape[0], 1, 1)
        columns = (shape[0], 1) if row.structure == "dense" else columns
        if width == 32:
            codes.append(torch.randn(shape, generator=generator) * 0.4)
            scales.append(torch.ones((1,) * len(shape)))
        else:
            low, high = -(2 ** (width - 1)), 2 ** (width - 1)
            codes.append(as_stored_codes(torch.randint(low, high, shape, generator=generator), width))
            scales.append((torch.rand(columns, generator=generator) + 0.3) * 0.8 / high)
    return Factors(
        structure=row.structure,
        weight_shape=info.weight_shape,
        bits=bits,
        codes=tuple(codes),
        scales=tuple(scales),
    )


def pack_at_random(
    path: Path,
    model: nn.Module,
    rows: dict[str, tuple[str, Any, Any]],
    *,
    input_shape: tuple[int, int, int] = INPUT_SHAPE,
    quantize_activations: bool = True,
    card: dict[str, Any] | None = None,
) -> nn.Module:
    """Compress at random as ``rows`` say (structure, rank, bits by layer), save, and read the file back."""
    inventory = take_inventory(model, input_shape)
    generator = torch.Generator().manual_seed(0)
    compressed = capture(copy.deepcopy(model), input_shape)
    layers = []
    for info in (info for info in inventory if info.planned):
        structure, rank, bits = rows.get(info.name, ("keep", None, None))
        row = LayerPlan(name=info.name, structure=structure, rank=rank, bits=bits)
        layers.append(row)
        if structure != "keep":
            factors = random_factors(info, row, generator)
            swap_layer(compressed, info.name, build_chain(layer_of(compressed, info.name), factors))
    Plan(model="tests/net", layers=tuple(layers), activation_bits=8)
    if quantize_activations:
        set_ranges(compressed, torch.randn(8, *input_shape, generator=generator))
    told = {**CARD, "input_shape": list(input_shape)} if card is None else card
    save_packed(path, compressed, inventory, told)
    return load_packed(path, copy.deepcopy(model))


def set_ranges(model: nn.Module, images: Tensor) -> None:
    """Give every link's input the range it has on these images, from the first link to the last."""
    for chain in [part for part in model.modules() if isinstance(part, FactorizedLayer)]:
        for link in chain.chain:
            seen: list[Tensor] = []
            handle = link.input_quantizer.register_forward_hook(
                lambda _part, inputs, _output, seen=seen: seen.append(inputs[0])
            )
            with torch.inference_mode():
                model(images)
            handle.remove()
            link.input_quantizer.set_range(float(seen[0].min()), 0.9 * float(seen[0].max()))


def make_branches() -> nn.Module:
    torch.manual_seed(0)
    model = Branches()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.3
            nn.init.normal_(module.weight, 1.0, 0.5)  # some negative: so are scales they are folded into
    return model.eval()


@functools.cache
def captured_branches() -> nn.Module:
    return capture(make_branches(), INPUT_SHAPE)


@pytest.fixture
def branches() -> nn.Module:
    """The network with its original weights, captured."""
    return copy.deepcopy(captured_branches())


@pytest.fixture(scope="session")
def original_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in floating point, as ONNX."""
    from qaf_core.deploy.onnx_export.ort_quantizer import write_original

    path, network = tmp_path_factory.mktemp("original") / "original.onnx", captured_branches()
    write_original(network, take_inventory(network, INPUT_SHAPE), path, input_shape=INPUT_SHAPE)
    return path


@pytest.fixture
def pack() -> Pack:
    """``pack_at_random``."""
    return pack_at_random


@pytest.fixture
def images() -> list[Tensor]:
    """Batches for ``Branches``."""
    return list(torch.randn(48, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1)).split(16))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with a finished run of the small digits network, one layer factorized, and the run's id."""
    from qaf_core.data.models.catalogue import find_model, load_inventory
    from qaf_core.network.plan.rules import plan_for_ratio, replace_layer
    from qaf_core.runs.store.request import RunRequest
    from qaf_core.runs.store.store import Store
    from qaf_core.runs.worker.execute import execute_in_turn

    workspace = tmp_path_factory.mktemp("workspace")
    inventory = load_inventory(find_model("digits/cnn"))
    plan = plan_for_ratio(inventory, model="digits/cnn", ratio=1.0, bits=4, method="dense")
    row = LayerPlan(name="features.7", structure="tucker2", rank=(32, 32), bits=4)
    options = {"starts": 1, "iterations": 1, "rounding_rounds": 2, "start_iterations": 10}
    plan = replace(replace_layer(plan, row), options=options)
    with Store(workspace) as store:
        result = execute_in_turn(store, RunRequest(model="digits/cnn", plan=plan.to_dict(), images=100))
    return workspace, result["run_id"]
