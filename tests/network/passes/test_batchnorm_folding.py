"""BatchNorm folded: the same outputs, the original untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops.misc import FrozenBatchNorm2d

from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of, norms_in
from qaf_core.network.modules.quantized import BatchNorm, Folded
from qaf_core.network.passes.batchnorm_folding import fold_batchnorm


def trained(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Normalisations with statistics, factors and shifts of their own."""
    generator = torch.Generator().manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(32, *shape, generator=generator) * 2 + 1)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2.0, generator=generator)
            nn.init.uniform_(norm.bias, -1.0, 1.0, generator=generator)
    return model.eval()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), nn.Linear(6, 2),
    )  # fmt: skip


def other_dimensions() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3), nn.BatchNorm2d(6, affine=False), nn.ReLU(),
        nn.Flatten(2), nn.Conv1d(6, 4, 3, stride=3), nn.BatchNorm1d(4),
        nn.Unflatten(2, (1, 2, 24)), nn.Conv3d(4, 3, (1, 2, 3)), nn.BatchNorm3d(3),
    )  # fmt: skip


def assert_folded(model: nn.Module, shape: tuple[int, ...], gone: set[str]) -> None:
    """All of these can be folded, and change nothing."""
    network = capture(model, shape)
    inventory = take_inventory(network, shape)
    assert {info.name for info in inventory if info.folded_into is not None} == gone
    images: Tensor = torch.randn(8, *shape)
    with torch.inference_mode():
        wanted = network(images)
        folded = fold_batchnorm(network, inventory)
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(network(images), wanted)
    for name in gone:
        assert isinstance(folded.get_submodule(name), Folded)
        assert isinstance(network.get_submodule(name), BatchNorm)
    assert not norms_in(folded)


def test_folding_changes_no_output() -> None:
    torch.manual_seed(0)
    assert_folded(trained(convolutions(), (3, 12, 12)), (3, 12, 12), {"1", "4", "7"})


def test_convolutions_of_other_dimensions_take_theirs_up() -> None:
    torch.manual_seed(0)
    assert_folded(trained(other_dimensions(), (3, 6, 6)), (3, 6, 6), {"1", "5", "8"})


@pytest.mark.parametrize("epsilon", [1e-3, 0.0])
def test_frozen_batchnorm_is_folded_like_any_other(epsilon: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4, eps=epsilon), nn.ReLU()).eval()
    for buffer in model[1].buffers():
        nn.init.uniform_(buffer, 0.5, 1.5)
    network = capture(model, (3, 8, 8))
    assert isinstance(model[1], FrozenBatchNorm2d)
    norm = norms_in(network)["1"]
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), model(images), rtol=1e-5, atol=1e-5)
    assert_folded(model, (3, 8, 8), {"1"})


def test_what_does_not_follow_its_layer_at_once_stays() -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (3, 8, 8))
    network = capture(model, (3, 8, 8))
    folded = fold_batchnorm(network, take_inventory(network, (3, 8, 8)))
    assert set(norms_in(folded)) == {"2"}


class Tokens(nn.Module):
    """A linear layer over the last axis and a BatchNorm over the middle one, equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.norm(self.mix(tokens))
        return result


class Subclassed(nn.BatchNorm2d):
    """BatchNorm and activation in one module."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values).relu()


def test_a_batchnorm_over_another_axis_than_the_layers_outputs_stays() -> None:
    torch.manual_seed(0)
    model = trained(Tokens(), (6, 6))
    assert not [row.name for row in take_inventory(model, (6, 6)) if row.folded_into is not None]


def test_a_subclass_is_folded_and_its_activation_stays() -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), Subclassed(4)), (3, 8, 8))
    assert_folded(model, (3, 8, 8), {"1"})
    with torch.inference_mode():
        assert float(capture(model, (3, 8, 8))(torch.randn(2, 3, 8, 8)).min()) == 0.0


class Twice(nn.Module):
    """One weight in two convolutions of different dilation, each with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.far = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)
        self.far.weight = self.near.weight
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.one(self.near(images)) + self.two(self.far(images))
        return result


def test_a_weight_with_two_batchnorms_takes_up_neither() -> None:
    torch.manual_seed(0)
    network = capture(trained(Twice(), (3, 8, 8)), (3, 8, 8))
    rows = {row.name: row for row in take_inventory(network, (3, 8, 8))}
    assert len(layer_of(network, "near").operations) == 2
    assert [rows[name].folded_into for name in ("one", "two")] == [None, None]
