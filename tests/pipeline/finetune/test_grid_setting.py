"""Chains that have left their grids come back to them, near to what they had learnt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.passes.requantization import connect_chains
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune import grid_setting
from qaf_core.pipeline.finetune.finetune import finetune_network
from qaf_core.pipeline.finetune.grid_setting import GridSetting, run_order
from qaf_core.pipeline.finetune.options import FinetuneOptions
from qaf_core.pipeline.finetune.trainable import TrainableNetwork, trained_links

SHAPE = (3, 8, 8)
QUICK = CompressOptions(solver=SolverOptions(starts=1, start_iterations=10, iterations=1, rounding_rounds=2))
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
    return compress_network(original, plan, inventory, calibration=images(64), options=QUICK).model


def is_on_grid(chain: FactorizedLayer) -> bool:
    return all(
        link.codes.dtype == torch.int8
        and -(2 ** (link.bits - 1)) <= int(link.codes.min()) <= int(link.codes.max()) < 2 ** (link.bits - 1)
        for link in chain.chain
    )


@pytest.mark.parametrize(
    ("structure", "activation_bits"), [*((name, 8) for name in STRUCTURES), ("cp", 32), ("dense", 32)]
)
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


def test_what_has_not_been_learnt_is_set_as_it_was(original: nn.Module) -> None:
    model = compressed(original, "cp", bits=3)
    before = [link.codes.clone() for chain in chains_in(model).values() for link in chain.chain]
    with TrainableNetwork(model, trains_codes=True) as network:
        setting = GridSetting(original=capture(original, SHAPE), progress=Progress())
        setting.set(network, ["2"], [])
        setting.set(network, network.off_grid(), [])
        network.accept()
    after = [link.codes for chain in chains_in(model).values() for link in chain.chain]
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))


def test_chains_that_no_image_reaches_keep_their_ranges_and_learnt_biases(
    original: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("the network chooses nothing for a layer on any calibration image")

    monkeypatch.setattr(grid_setting, "walk_layers", fail)
    model = compressed(original, "svd")
    with TrainableNetwork(model, trains_codes=True) as network:
        ranges = {name: network.first_quantizer(name) for name in network.chains()}
        last = trained_links(network.chain("6"))[-1]
        assert last.bias_change is not None
        with torch.no_grad():
            last.bias_change.add_(1.0)
        learnt = last.bias()
        setting = GridSetting(original=capture(original, SHAPE), progress=Progress())
        setting.set(network, network.off_grid(), [images(8)])
        assert network.off_grid() == []
        network.accept()
    chains = chains_in(model)
    assert {name: chain.chain[0].input_quantizer.qparams for name, chain in chains.items()} == ranges
    assert all(is_on_grid(chain) for chain in chains.values())
    torch.testing.assert_close(chains["6"].last.bias, learnt)


def test_layers_of_many_inputs_are_fitted_only_where_there_is_time(
    original: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[bool] = []
    plain = grid_setting.calibrate_layer

    def calibrate(*given: Any, fit: bool, **more: Any) -> float:
        fits.append(fit)
        return plain(*given, fit=fit, **more)

    monkeypatch.setattr(grid_setting, "calibrate_layer", calibrate)
    monkeypatch.setattr(grid_setting, "FIT_SECONDS_PER_CUBE", 1e-6)  # the classifier has 768 inputs
    setting = GridSetting(original=capture(original, SHAPE), progress=Progress())
    for seconds, wanted in ((None, [True] * 4), (400.0, [True, True, True, False]), (1e-9, [False] * 4)):
        fits.clear()
        with TrainableNetwork(compressed(original, "dense"), trains_codes=True) as network:
            setting.set(network, network.off_grid(), [images(16, seed=n) for n in range(4)], seconds)
        assert fits == wanted


class InTurn(nn.Module):
    """Layers of two lists by turns, and two that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1) for width in (3, 8))
        self.end = nn.Linear(16 * 64, 4)

    def forward(self, values: Tensor) -> Tensor:
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            values = torch.relu(narrow(torch.relu(wide(values))))
        pair = torch.cat([self.left(values), self.right(values)], dim=1)
        result: Tensor = self.end(torch.relu(pair).flatten(1))
        return result


def test_chains_are_set_as_they_run_and_readers_of_one_tensor_keep_one_grid() -> None:
    torch.manual_seed(1)
    original = InTurn().eval()
    inventory = take_inventory(original, SHAPE)
    rows = [LayerPlan(name=info.name, structure="dense", bits=4) for info in inventory if info.planned]
    plan = Plan(model="test/net", layers=tuple(rows), activation_bits=8)
    model = compress_network(original, plan, inventory, calibration=images(64)).model
    for chain in chains_in(model).values():
        chain.use_codes()
    assert connect_chains(model) > 0
    before = {name for name, chain in chains_in(model).items() if chain.output_qparams is not None}
    assert "narrow.1" in before
    messages: list[str] = []
    progress = Progress(
        lambda event: messages.append(str(event.data["message"])) if event.kind == "stage" else None
    )
    options = FinetuneOptions(epochs=14, time_limit_seconds=None, crops=False)
    found = finetune_network(original, model, images(256), options, progress=progress, inventory=inventory)
    assert found.best_epoch > 0
    set_first = [text.split()[1] for text in messages if text.startswith("Setting ")]
    order = list(run_order(capture(original, SHAPE)))
    assert order.index("wide.0") < order.index("narrow.0") < order.index("wide.1")
    assert set_first == [name for name in order if name not in ("right",)]
    after = {name for name, chain in chains_in(model).items() if chain.output_qparams is not None}
    assert after == before
