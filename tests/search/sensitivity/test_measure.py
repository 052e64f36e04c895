"""What changes of weights are expected to harm, against what they do."""

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import RunCancelled
from qaf_core.factorization.structures import Rank
from qaf_core.files import ContentCache
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.divergence import output_divergence
from qaf_core.pipeline.events import Progress
from qaf_core.search.sensitivity import measure
from qaf_core.search.sensitivity.changes import Weight, dense_change, factorized_changes
from qaf_core.search.sensitivity.curvature import measure_curvature
from qaf_core.search.sensitivity.exchange import Exchange
from qaf_core.search.sensitivity.measure import MeasuredNetwork, corrected, measure_sensitivity, spread_over
from qaf_core.search.sensitivity.settings import (
    BITS,
    UNEVEN_BITS,
    between_bits,
    sensitivity_from_dict,
    uneven_bits,
)
from tests.helpers import draw

SHAPE = (3, 8, 8)


class Small(nn.Module):
    """Two convolutions and a classifier; ``integer`` lets no gradient pass."""

    def __init__(self, *, integer: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(8, 4)
        self.integer = integer

    def forward(self, images: Tensor) -> Tensor:
        values = self.second(self.first(images).relu()).relu().mean(dim=(2, 3))
        if self.integer:
            values = (values * 64).to(torch.int32).float() / 64
        return self.last(values)


def network(*, integer: bool = False) -> Small:
    torch.manual_seed(0)
    made = Small(integer=integer).eval()
    with torch.no_grad():
        made.last.weight.mul_(4.0)
    return made


def measured(model: nn.Module, images: Tensor) -> MeasuredNetwork:
    found = MeasuredNetwork.of(model, take_inventory(model, SHAPE), images, 0, Progress())
    found.judging = images
    found.exchange = Exchange(found.network, images, found.weights, 1.0)
    found.probe(Progress())
    return found


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_small_changes_harm_as_expected(name: str) -> None:
    found = measured(network(), draw(192, *SHAPE, seed=1))
    rows = found.weights[name].rows
    changes = torch.stack([0.02 * draw(rows.numel(), seed=seed) for seed in range(6)])
    expected = found.curvatures[name].harms(changes)
    true = torch.tensor([found.exchange.divergence({name: change}) for change in changes])
    assert float((expected.log() - true.log()).mean().exp()) == pytest.approx(1.0, abs=0.3)
    assert torch.equal(found.network(found.exchange.images), found.exchange.reference)  # all is as it was


def test_a_change_that_a_bias_takes_back_harms_nothing() -> None:
    images = torch.ones(64, *SHAPE) + 1e-3 * draw(64, *SHAPE)
    found = measured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 3)), images)
    change = torch.full((1, 12), 0.1)
    assert float(found.curvatures["0"].harms(change)) < 1e-4
    assert found.exchange.divergence({"0": change[0]}) < 1e-4


def test_every_layer_has_settings_and_the_finer_ones_harm_less() -> None:
    model, images = network(), draw(64, *SHAPE, seed=1)
    found = measure_sensitivity(model, take_inventory(model, SHAPE), images)
    assert list(found.settings) == ["first", "second", "last"]
    assert found.how == "curvature"
    for rows in found.settings.values():
        dense = {row.row.bits: row.harm for row in rows if row.row.structure == "dense"}
        assert dense[8] < dense[4] < dense[2]
        assert rows[0].row.structure == "keep"
        assert rows[0].harm == 0.0
    assert {row.row.structure for row in found.settings["second"]} == {"keep", "dense"}  # several groups
    assert found.floor >= 0
    assert sensitivity_from_dict(found.to_dict()) == found


def test_a_network_without_gradients_is_measured_instead() -> None:
    model, images = network(integer=True), draw(32, *SHAPE, seed=1)
    model.second = nn.Conv2d(8, 8, 1)
    found = measure_sensitivity(model, take_inventory(model, SHAPE), images)
    harms = {row.row.bits: row.harm for row in found.settings["first"] if row.row.structure == "dense"}
    assert harms[2] > harms[4] > 0


def test_a_stopped_measurement_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model, images, cache = network(), draw(32, *SHAPE, seed=1), ContentCache(tmp_path)
    inventory = take_inventory(model, SHAPE)
    tried: list[str] = []
    harms = MeasuredNetwork.harms

    def counted(self: MeasuredNetwork, info, progress):  # type: ignore[no-untyped-def]
        if len(tried) == 2:
            raise RunCancelled
        tried.append(info.name)
        return harms(self, info, progress)

    monkeypatch.setattr(measure.MeasuredNetwork, "harms", counted)
    with pytest.raises(RunCancelled):
        measure_sensitivity(model, inventory, images, cache=cache)
    tried.clear()
    measure_sensitivity(model, inventory, images, cache=cache)
    assert tried == ["last"]


def test_the_output_side_is_fitted_under_the_inputs() -> None:
    images = draw(64, *SHAPE, seed=1).cumsum(dim=2).cumsum(dim=3) / 4
    weight = measured(network(), images).weights["first"]
    assert weight.statistics is not None
    blind = Weight(rows=weight.rows, statistics=None, by_channel=weight.by_channel)

    def error(change: Tensor) -> float:
        return float(((change @ weight.statistics.covariance) * change).sum())  # type: ignore[union-attr]

    assert error(dense_change(weight, 3).weight) < error(dense_change(blind, 3).weight)
    fitted, plain = (factorized_changes(row, "cp", 6, (32, 4), 0, 8)[4].weight for row in (weight, blind))
    assert error(fitted) < error(plain)


class Halted(nn.Module):
    """Two captured parts; Python between them lets no gradient pass, as a detector's may."""

    def __init__(self) -> None:
        super().__init__()
        self.early = capture(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval(), SHAPE)
        self.late = capture(nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 4)).eval(), (8, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            values = self.early(images)
        return self.late(values)


def test_a_part_without_gradients_leaves_the_others_theirs() -> None:
    found = measure_curvature(Halted().eval(), ["early.0", "late.1"], draw(16, *SHAPE, seed=1), {})
    assert set(found) == {"late.1"}


def test_the_largest_factor_that_is_not_fitted_may_have_a_bit_less() -> None:
    assert uneven_bits("cp", 6, (16, 3, 3, 3), 4) == (4, 4, 3)  # here the kernel's
    assert uneven_bits("cp", 6, (8, 64, 3, 3), 4) == (4, 3, 4)
    assert uneven_bits("tucker2", (8, 8), (16, 16, 3, 3), 3) == (3, 2, 3)
    assert uneven_bits("svd", 4, (16, 16), 3) == (3, 2)


def test_uneven_bits_harm_more_than_a_bit_more_and_less_than_a_bit_less_everywhere() -> None:
    model = network()
    found = measure_sensitivity(model, take_inventory(model, SHAPE), draw(64, *SHAPE, seed=1))
    settings = {(row.row.structure, row.row.rank, row.row.bits): row.harm for row in found.settings["first"]}
    uneven = {key: harm for key, harm in settings.items() if isinstance(key[2], tuple)}
    assert len(uneven) == len(UNEVEN_BITS) * len({key[:2] for key in settings if key[1] is not None})
    between = [
        settings[(*key[:2], max(key[2]))] * 0.8 <= harm <= settings[(*key[:2], min(key[2]))] * 1.25
        for key, harm in uneven.items()
    ]
    assert sum(between) >= 0.9 * len(between)


def test_the_harm_of_noise_on_outputs_is_the_divergence_that_such_noise_causes() -> None:
    found = measured(network(), draw(64, *SHAPE, seed=1))
    layer, generator = layer_of(found.network, "first"), torch.Generator().manual_seed(0)
    spread = 0.02 * draw(len(layer.rows), 3, seed=5)
    watched = layer.register_forward_hook(
        lambda _, __, output: (
            output
            + torch.einsum(
                "on,bnhw->bohw", spread, torch.randn(len(output), 3, *output.shape[2:], generator=generator)
            )
        )
    )
    with torch.inference_mode():
        noisy = [
            output_divergence(found.exchange.reference, found.network(found.exchange.images))
            for _ in range(30)
        ]
    watched.remove()
    expected = found.curvatures["first"].harm_of_noise(spread)
    assert expected == pytest.approx(sum(noisy) / len(noisy), rel=0.4)


@pytest.mark.parametrize(("structure", "rank"), [("cp", 6), ("tucker2", (3, 2)), ("svd", 4)])
def test_rounding_between_links_spreads_about_as_much_noise_as_it_is_said_to(
    structure: str, rank: Rank
) -> None:
    images = draw(64, *SHAPE, seed=1)
    weight = measured(network(), images).weights["first"]
    change = factorized_changes(weight, structure, rank, (8,), 0, 8)[8]
    assert change.spread is not None
    inventory = take_inventory(network(), SHAPE)
    rows = [LayerPlan(name=info.name, structure="keep") for info in inventory if info.planned]
    rows[0] = LayerPlan(name="first", structure=structure, rank=rank, bits=8)
    plan = Plan(model="", layers=tuple(rows), activation_bits=8)
    compressed = compress_network(network(), plan, inventory, calibration=images).model
    chain = next(part for part in compressed.modules() if isinstance(part, FactorizedLayer))
    with torch.inference_mode():
        inputs = chain.chain[0].input_quantizer(images)  # what comes in is rounded of any layer
        outputs = [chain(inputs)]
        for link in chain.chain:
            link.input_quantizer = nn.Identity()
        outputs.append(chain(inputs))
    noise = float((outputs[0] - outputs[1]).square().mean(dim=(0, 2, 3)).sum())
    assert 0.25 < float(change.spread.square().sum()) / noise < 4


def test_a_plan_is_rehearsed_as_a_whole() -> None:
    found = measured(network(), draw(64, *SHAPE, seed=1))
    rows = (
        LayerPlan(name="first", structure="cp", rank=4, bits=3),
        LayerPlan(name="second", structure="keep"),
        LayerPlan(name="last", structure="dense", bits=2),
    )
    plan = Plan(model="small", layers=rows)
    assert 0 < found.rehearse(plan, without="first") < found.rehearse(plan)


def test_harms_between_bit_widths() -> None:
    found = between_bits({4: 1.5, 2: 17.0}, unrounded=1.0)
    assert list(found) == list(BITS)
    assert [found[4], found[2]] == [1.5, 17.0]
    assert 1.0 < found[8] < found[6] < found[5] < 1.5
    assert 1.5 < found[3] < 17.0


def test_corrections_follow_what_was_found_and_stay_near() -> None:
    assert corrected([0.1, 0.0], []) == [0.1, 0.0]
    rising = corrected([0.01, 0.1, 1.0, 100.0], [(0.01, 0.01), (0.1, 0.2), (1.0, 4.0)])
    assert 0.005 < rising[0] < 0.015
    assert 1.5 < rising[2] < 6.0
    assert rising[3] / 100.0 < 1.5 * rising[2]


def test_values_are_picked_evenly() -> None:
    values = [1e-6, 1e-3, 1.1e-3, 1e-2, 1e-1, 1.0, 50.0]
    assert spread_over(values, (1e-4, 10.0), 4) == [1, 3, 4, 5]
    assert spread_over([1e-9], (1e-4, 10.0), 4) == []


def test_a_fit_to_few_images_is_judged_on_others() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(192, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(images.flatten(1))

    torch.manual_seed(0)
    model = Wide().eval()
    images = draw(48, *SHAPE, seed=7)
    inventory = take_inventory(model, SHAPE)
    table = measure_sensitivity(model, inventory, images)
    row = LayerPlan(name="last", structure="dense", bits=2)
    compression = compress_network(
        model, Plan(model="", layers=(row,)), inventory, method="dense", calibration=images
    )
    others = draw(512, *SHAPE, seed=8)
    with torch.inference_mode():
        real = output_divergence(model(others), compression.model(others))
    expected = table.harm_of(row)
    assert expected is not None
    assert expected > 0.7 * real  # of the images it was fitted to, less than a third
