"""BatchNorm statistics estimated again, and kept only where that is asked for or better."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of
from qaf_core.pipeline.compress.batchnorm import choose_batchnorm, with_batchnorm_reestimated
from qaf_core.pipeline.divergence import divergence


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module) -> nn.Module:
    return capture(model, (3, 6, 6))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    model(images(200, seed=1))
    return captured(model.eval())


def statistics(model: nn.Module) -> list[Tensor]:
    return [model.get_submodule("1").get_buffer(name) for name in ("running_mean", "running_var")]


def test_the_statistics_are_those_of_the_images(network: nn.Module) -> None:
    batches, before = list(torch.split(images(64), 32)), copy.deepcopy(network.state_dict())
    trial = with_batchnorm_reestimated(network, batches)
    with torch.no_grad():
        reached = layer_of(network, "0")(torch.cat(batches))
    mean, variance = statistics(trial)
    torch.testing.assert_close(mean, reached.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(variance, reached.var(dim=(0, 2, 3)), rtol=0.05, atol=1e-4)
    assert not any(module.training for module in trial.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_batches_of_one_image_have_no_statistics() -> None:
    network = captured(
        nn.Sequential(nn.Conv2d(3, 4, 6), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    )
    several = with_batchnorm_reestimated(network, list(torch.split(images(33), 32)))
    assert not torch.equal(statistics(several)[0], torch.zeros(4))
    alone = with_batchnorm_reestimated(network, [images(1)])
    assert torch.equal(statistics(alone)[0], torch.zeros(4))


def test_a_network_without_batchnorm_stays_as_it_is() -> None:
    network = captured(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)).eval())
    trial = with_batchnorm_reestimated(network, [images(8)])
    with torch.no_grad():
        assert torch.equal(trial(images(4)), network(images(4)))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_better_one_is_chosen(network: nn.Module, shift: float) -> None:
    batches, damaged = list(torch.split(images(128), 32)), copy.deepcopy(network)
    with torch.no_grad():
        layer_of(damaged, "0").bias.add_(shift)  # what new statistics make good again
    kept, again, better = (
        choose_batchnorm(network, damaged, batches, choice) for choice in ("keep", "reestimate", "better")
    )
    assert kept is damaged
    distances = {
        name: divergence(network, each, batches) for name, each in (("kept", kept), ("again", again))
    }
    assert (distances["again"] < distances["kept"]) == (shift > 0)
    assert divergence(network, better, batches) == pytest.approx(min(distances.values()), abs=1e-6)
