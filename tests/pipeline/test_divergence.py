"""How far two networks' outputs are apart: of class scores as torch says, of anything else layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.modules.quantized import FactorizedLayer, Link, swap_layer
from qaf_core.pipeline.divergence import LAYER_WEIGHT, batch_divergence, divergence, training_loss


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return model.eval()


def test_divergence_is_zero_for_equal_scores_and_grows(network: nn.Sequential) -> None:
    batches, other = [images(50)], copy.deepcopy(network)
    assert divergence(network, other, batches) == pytest.approx(0.0, abs=1e-4)
    sizes = []
    for _ in range(3):
        with torch.no_grad():
            other[4].weight.mul_(1.3)
        sizes.append(divergence(network, other, batches))
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_divergence_is_that_of_torch(network: nn.Sequential) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[4].weight.mul_(1.5)
        first, second = network(images(50)).log_softmax(dim=1), other(images(50)).log_softmax(dim=1)
    expected = torch.nn.functional.kl_div(second, first, log_target=True, reduction="sum")
    assert divergence(network, other, [images(50)]) == pytest.approx(float(expected), rel=1e-4)


def test_a_gradient_reaches_the_model_and_not_the_original(network: nn.Sequential) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[4].weight.mul_(1.5)
    batch_divergence(network, other, images(8)).backward()
    assert float(other[4].weight.grad.abs().max()) > 0
    assert network[4].weight.grad is None


class Listed(nn.Module):
    """A network whose outputs are no scores, as a detector's are not."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": row} for row in self.body(pictures)]


def test_other_outputs_are_compared_by_the_exchanged_layers(network: nn.Sequential) -> None:
    original, exchanged = Listed(network), Listed(copy.deepcopy(network))
    layer = network[4]
    codes = torch.randint(-8, 8, layer.weight.shape, dtype=torch.int8)
    link = Link(codes, torch.full((5, 1), 0.01), 4, layer.bias)
    swap_layer(exchanged, "body.4", FactorizedLayer([link], "dense"))
    batches = list(torch.split(images(64), 32))
    expected = 0.0
    with torch.no_grad():
        for batch in batches:
            wanted, found = network(batch), link(network[:4](batch))
            expected += len(batch) * float((found - wanted).square().sum() / wanted.square().sum())
    assert divergence(original, exchanged, batches) == pytest.approx(expected, rel=1e-4)
    assert divergence(original, original, batches) == 0.0


def test_what_is_learnt_from_is_both_scores_and_layers(network: nn.Sequential) -> None:
    exchanged = copy.deepcopy(network)
    layer = network[4]
    link = Link(1.1 * layer.weight.detach(), torch.ones(5, 1), 32, 1.1 * layer.bias.detach())
    swap_layer(exchanged, "4", FactorizedLayer([link], "dense"))
    batch = images(16)
    found = training_loss(network, exchanged, batch).detach()
    expected = float(batch_divergence(network, exchanged, batch).detach()) + LAYER_WEIGHT * 0.01
    assert float(found) == pytest.approx(expected, rel=1e-4)
    listed = training_loss(Listed(network), Listed(exchanged), batch).detach()
    assert float(listed) == pytest.approx(LAYER_WEIGHT * 0.01, rel=1e-4)
