"""Networks captured in parts whose Python reaches past the parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import Compression
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers

SHAPE = (3, 12, 12)


class Backbone(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = norm
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(images))))


class Chooser(nn.Module):
    """Its Python asks for a value, so that only parts are captured, and does one thing more."""

    def __init__(self, also: str, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = Backbone(norm or nn.Identity())
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 4))
        self.also = also
        self.left: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        self.left = features
        if float(features.detach().sum()) > 1e9:
            features = features + 1
        features = self.neck(features)
        if self.also == "state":
            features = features + self.left
        scores = self.head(features.mean((2, 3)))
        if self.also == "call":
            scores = scores + self.backbone.first(images).mean((1, 2, 3))[:, None]
        if self.also == "weight":
            scores = scores + self.backbone.first.weight.sum()
        return scores


def chooser(also: str, norm: bool = False) -> Chooser:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(8)
    nn.init.uniform_(made.running_mean, -1, 1)
    nn.init.uniform_(made.running_var, 0.5, 2)
    return Chooser(also, made if norm else None).eval()


def images(count: int = 16) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def compressed(model: nn.Module, count: int = 16) -> Compression:
    rows = take_inventory(model, SHAPE)
    plan = plan_for_ratio(rows, model="x", ratio=1.0, bits=8, method="dense")
    return compress_network(model, plan, rows, method="dense", calibration=images(count))


@torch.no_grad()
def error(model: nn.Module, made: Compression) -> float:
    wanted = model(images())
    return float((made.model(images()) - wanted).norm() / wanted.norm())


def test_a_layer_that_python_calls_itself_stays_and_takes_up_no_batchnorm() -> None:
    model = chooser("call", norm=True)
    rows = {row.name: row for row in take_inventory(model, SHAPE)}
    assert rows["backbone.first"].structures == ("keep",)
    assert rows["backbone.norm"].folded_into is None
    made = compressed(model)
    assert [layer.name for layer in made.layers] == ["backbone.second", "neck.0", "head.0"]
    assert error(model, made) < 0.02


def test_a_layer_whose_weight_python_reads_stays() -> None:
    model = chooser("weight")
    made = compressed(model)
    (note,) = made.notes
    assert str(note).startswith("backbone.first is kept: replacing it changes what the network computes")
    assert error(model, made) < 0.02


def test_a_batchnorm_behind_a_weight_that_python_reads_is_refused() -> None:
    with pytest.raises(ModelError, match="joining BatchNorm"):
        compressed(chooser("weight", norm=True))


@torch.no_grad()
def test_batches_that_are_walked_together_share_no_state_of_python() -> None:
    model = chooser("state")
    captured = capture(model, SHAPE)
    seen: list[Tensor] = []

    def visit(_name: str, samples: LayerSamples) -> None:
        seen.extend(samples.inputs)

    batches = list(images().split(4))
    walk_layers(captured, None, batches, {"head.0": len(batches)}, visit)
    wanted: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _module, args: wanted.append(args[0].detach()))
    model(images())
    assert torch.allclose(torch.cat(seen), torch.cat(wanted), atol=1e-6)


class OtherWay(nn.Module):
    """One part more where few different numbers come: as many bits make."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Sequential(nn.Conv2d(1, 1, 1))
        self.extra = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, images: Tensor) -> Tensor:
        features = self.back(images)
        return self.head(self.extra(features) if len(torch.unique(features)) < 400 else features)


class Loop(nn.Module):
    """Goes over the images one by one: a graph for each number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.head(self.stem(image[None]).relu().mean((2, 3))) for image in images])


class Infinite(nn.Module):
    """Infinity comes to a layer, and is gone again behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        lowest = torch.log((self.stem(images).mean((2, 3)) - 0.4).relu())
        return self.head(torch.tanh(self.middle(lowest)).nan_to_num())


def test_a_compressed_network_that_takes_another_way_is_refused() -> None:
    torch.manual_seed(0)
    shape = (1, 16, 16)
    model = capture(OtherWay().eval(), shape)
    rows = take_inventory(model, shape)
    plan = plan_for_ratio(rows, model="tests/way", ratio=1.0, bits=8, method="dense")
    calibration = torch.randn(32, *shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match=r"takes another way than the original; got extra"):
        compress_network(model, plan, rows, method="dense", calibration=calibration)


@pytest.mark.parametrize("count", [32, 34])
def test_a_smaller_last_batch_is_no_fault_where_the_number_of_images_is_fixed(count: int) -> None:
    torch.manual_seed(0)
    model = capture(Loop().eval(), SHAPE)
    made = compressed(model, count)
    with torch.no_grad():
        expected, found = model(images(4)), made.model(images(4))
    assert float((expected - found).norm() / expected.norm()) < 0.05


def test_a_layer_that_infinity_comes_to_is_named() -> None:
    torch.manual_seed(0)
    model = capture(Infinite().eval(), SHAPE)
    with pytest.raises(ModelError, match=r"not finite reach a layer; got middle; plan this layer as keep"):
        compressed(model)
