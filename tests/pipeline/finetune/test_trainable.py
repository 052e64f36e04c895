"""Chains that gradients pass: the same function as before, the same integers, and what is learnt stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.finetune.trainable import TrainableNetwork

SHAPE = (3, 8, 8)
QUICK = CompressOptions(solver=SolverOptions(starts=1, start_iterations=10, iterations=1, rounding_rounds=2))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """An original with a convolution, a BatchNorm and a classifier, and its compressed form."""
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 4),
    ).eval()  # fmt: skip
    inventory = take_inventory(original, SHAPE)
    plan = plan_for_ratio(inventory, model="test/net", ratio=1.5, bits=3, activation_bits=8)
    found = compress_network(original, plan, inventory, calibration=images(128), options=QUICK)
    return original, found.model


def links(model: nn.Module) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    chains = [part for part in model.modules() if isinstance(part, FactorizedLayer)]
    return [
        (link.codes.clone(), link.scales.clone(), None if link.bias is None else link.bias.detach().clone())
        for chain in chains
        for link in chain.chain
    ]


@pytest.mark.parametrize("trains_codes", [False, True])
def test_nothing_changes_until_something_is_learnt(
    networks: tuple[nn.Module, nn.Module], trains_codes: bool
) -> None:
    model = copy.deepcopy(networks[1])
    before = links(model)
    with torch.no_grad():
        wanted = model(images(4, seed=1))
        with TrainableNetwork(model, trains_codes=trains_codes) as network:
            torch.testing.assert_close(model(images(4, seed=1)), wanted, rtol=1e-4, atol=1e-4)
            if not trains_codes:
                network.accept()
        assert torch.equal(model(images(4, seed=1)), wanted)
    for (codes, scales, bias), (old_codes, old_scales, old_bias) in zip(links(model), before, strict=True):
        assert torch.equal(codes, old_codes)
        assert torch.equal(scales, old_scales)
        assert bias is old_bias is None or torch.equal(bias, old_bias)


def step(network: TrainableNetwork) -> None:
    """One step of learning."""
    rates = [{"params": list(network.gains()), "lr": 0.01}, {"params": list(network.codes()), "lr": 0.6}]
    optimizer = torch.optim.SGD([group for group in rates if group["params"]], lr=0.0)
    network.model(images(8, seed=2)).square().sum().backward()
    for parameter in (*network.gains(), *network.codes()):
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
    for parameter in network.codes():
        assert parameter.grad is not None
        parameter.grad.sign_()
    optimizer.step()


def test_a_step_changes_scales_and_no_codes(networks: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(networks[1])
    before = links(model)
    with TrainableNetwork(model, trains_codes=False) as network:
        assert network.off_grid() == list(network.codes()) == []
        step(network)
        trained = model(images(8, seed=3)).detach()
        network.accept()
    torch.testing.assert_close(model(images(8, seed=3)), trained, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(new[0], old[0]) for new, old in zip(links(model), before, strict=True))
    assert any(not torch.equal(new[1], old[1]) for new, old in zip(links(model), before, strict=True))


def test_codes_leave_their_grids_and_chains_come_back_as_they_were(
    networks: tuple[nn.Module, nn.Module],
) -> None:
    model = copy.deepcopy(networks[1])
    before = links(model)
    with TrainableNetwork(model, trains_codes=True) as network:
        assert network.off_grid() == network.chains()
        assert len(list(network.codes())) == len(before)
        step(network)
        assert all(bool((codes != codes.round()).any()) for codes in network.codes())
    for new, old in zip(links(model), before, strict=True):
        assert torch.equal(new[0], old[0])
        assert torch.equal(new[1], old[1])


def test_chains_compute_with_codes_again_afterwards(networks: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(networks[1])
    chains = [part for part in model.modules() if isinstance(part, FactorizedLayer)]
    for chain in chains:
        assert chain.use_codes()
    with TrainableNetwork(model, trains_codes=False):
        assert not any(chain.runs_on_codes for chain in chains)
    assert all(chain.runs_on_codes for chain in chains)


def test_the_gradient_of_a_scale_is_that_of_the_product(networks: tuple[nn.Module, nn.Module]) -> None:
    """Of ``y = Σ code·scale·x`` the derivative by the logarithm of the scale is y without the bias."""
    from qaf_core.network.modules.quantized import Link
    from qaf_core.pipeline.finetune.trainable import TrainableLink

    codes = torch.tensor([[1, -2, 3]], dtype=torch.int8)
    link = Link(codes, torch.tensor([[0.5]]), 3, torch.tensor([4.0]))
    stand_in, values = TrainableLink(link, trains_codes=True), torch.tensor([[1.0, 2.0, 3.0]])
    stand_in(values).sum().backward()
    assert stand_in.log_gain.grad is not None
    assert float(stand_in.log_gain.grad) == pytest.approx(0.5 * (1 - 4 + 9))
    assert isinstance(stand_in.codes, nn.Parameter)
    torch.testing.assert_close(stand_in.codes.grad, 0.5 * values)


def test_activations_are_rounded_and_gradients_pass_as_torch_does_it() -> None:
    from qaf_core.network.modules.quantized import ActivationQuantizer
    from qaf_core.pipeline.finetune.trainable import quantized

    quantizer = ActivationQuantizer()
    quantizer.set_range(-0.5, 1.0)
    assert quantizer.qparams is not None
    scale, zero = quantizer.qparams
    found, wanted = (torch.linspace(-1.0, 1.5, 997).requires_grad_() for _ in range(2))
    weights = torch.randn(997, generator=torch.Generator().manual_seed(0))
    rounded = quantized(quantizer, found)
    expected = torch.fake_quantize_per_tensor_affine(wanted, scale, zero, 0, 255)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-6)
    (rounded * weights).sum().backward()
    (expected * weights).sum().backward()
    assert found.grad is not None
    assert wanted.grad is not None
    assert torch.equal(found.grad, wanted.grad)
    assert 0 < int((found.grad == 0).sum()) < 900
