"""Chains that have left their grids come back to them, near to what they had learnt."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.passes.requantization import connect_chains
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.grid_setting import GridSetting
from qaf_core.pipeline.finetune.trainable import TrainableNetwork

SHAPE = (3, 8, 8)
RANKS = {"cp": 12, "tucker2": (8, 8), "svd": 10, "spatial": 12, "dense": None}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Flatten(), nn.Linear(768, 4),
    ).eval()  # fmt: skip


def compressed(original: nn.Module, structure: str, activation_bits: int = 8, bits: int = 6) -> nn.Module:
    """The second convolution in a structure, the others rounded."""
    inventory = take_inventory(original, SHAPE)
    rows = [
        LayerPlan(name=info.name, structure="dense", bits=bits)
        if info.name != "2"
        else LayerPlan(name="2", structure=structure, rank=RANKS[structure], bits=bits)
        for info in inventory
        if info.planned
    ]
    plan = Plan(model="test/net", layers=tuple(rows), activation_bits=activation_bits)
    return compress_network(original, plan, inventory, calibration=images(64)).model


def is_on_grid(chain: FactorizedLayer) -> bool:
    return all(
        link.codes.dtype == torch.int8
        and -(2 ** (link.bits - 1)) <= int(link.codes.min()) <= int(link.codes.max()) < 2 ** (link.bits - 1)
        for link in chain.chain
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("activation_bits", [8, 32])
def test_a_chain_is_set_near_to_what_it_has_learnt(
    original: nn.Module, structure: str, activation_bits: int
) -> None:
    """Codes are shaken by half a step; the network set again is no further from that than rounding is."""
    model = compressed(original, structure, activation_bits)
    twin, pictures = copy.deepcopy(model), images(64, seed=5)
    with TrainableNetwork(twin, trains_codes=True) as network:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for codes in network.codes():
                codes.add_(torch.rand(codes.shape, generator=generator) - 0.5)
            learnt = twin(pictures)
        captured = capture(original, SHAPE)
        setting = GridSetting(original=captured, progress=Progress())
        setting.set(network, ["2"], [images(16, seed=n) for n in range(8)])
        assert network.off_grid() == [name for name in network.chains() if name != "2"]
        found = twin(pictures)
        assert found.requires_grad  # what is set goes on learning its scales
        for name in network.off_grid():
            setting.set(network, [name], [images(16, seed=n) for n in range(8)])
        network.accept()
    assert all(is_on_grid(chain) for chain in chains_in(twin).values())
    with torch.no_grad():
        wanted, before, after = original(pictures), model(pictures), twin(pictures)
    size = wanted.square().mean()
    assert float((found.detach() - learnt).square().mean() / size) < 0.05
    assert (
        float((after - wanted).square().mean()) < 2.0 * float((before - wanted).square().mean()) + 1e-3 * size
    )


def test_set_chains_compute_with_codes_and_hand_on_what_the_next_reads(original: nn.Module) -> None:
    """The ranges have moved: what a chain puts out is on the grid that its reader now has."""
    model = compressed(original, "cp", bits=3)
    for chain in chains_in(model).values():
        assert chain.use_codes()
    assert connect_chains(model) > 0
    with TrainableNetwork(model, trains_codes=True) as network:
        with torch.no_grad():
            for codes in network.codes():
                codes.mul_(1.25)  # so that ranges move
        setting = GridSetting(original=capture(original, SHAPE), progress=Progress())
        setting.set(network, network.off_grid(), [images(16, seed=n) for n in range(4)])
        floats = model(images(8, seed=9)).detach()
        network.accept()
    chains = chains_in(model)
    assert all(chain.runs_on_codes for chain in chains.values())
    for name, reader in (("0", "2"), ("2", "4")):
        assert chains[name].output_qparams == chains[reader].chain[0].input_quantizer.qparams
    with torch.no_grad():
        torch.testing.assert_close(model(images(8, seed=9)), floats, rtol=0.05, atol=0.05)
