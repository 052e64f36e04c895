"""Fine-tuning: the outputs come closer to the original's, never further away, and a stop keeps the best."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, PlanError
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.modules.quantized import FactorizedLayer
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import CompressOptions
from qaf_core.pipeline.divergence import divergence
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.finetune import finetune, grid_setting
from qaf_core.pipeline.finetune.finetune import finetune_network
from qaf_core.pipeline.finetune.options import FinetuneOptions
from qaf_core.pipeline.finetune.validation import Validation, split

SHAPE = (3, 8, 8)
QUICK = CompressOptions(solver=SolverOptions(starts=1, start_iterations=10, iterations=1, rounding_rounds=2))


def keep_points(points: list[dict[str, Any]]) -> Callable[[RunEvent], None]:
    return lambda event: points.append(event.data) if event.kind == "finetune" else None


def images(count: int = 256, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """An original and its compressed form, rounded coarsely and not fitted."""
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        original[-1].weight.mul_(20.0)
    inventory = take_inventory(original, SHAPE)
    plan = plan_for_ratio(inventory, model="test/net", ratio=2.0, bits=3, activation_bits=8)
    options = CompressOptions(solver=QUICK.solver, output_fit=False)
    found = compress_network(original, plan, inventory, calibration=images(128), options=options)
    return original, found.model


def damaged(model: nn.Module) -> nn.Module:
    """A copy whose channels are out of scale by up to a quarter, which learning can make good."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    for chain in copied.modules():
        if isinstance(chain, FactorizedLayer):
            for link in chain.chain:
                link.scales.mul_(0.8 + 0.45 * torch.rand(link.scales.shape, generator=generator))
    return copied


def codes(model: nn.Module) -> list[Tensor]:
    chains = [part for part in model.modules() if isinstance(part, FactorizedLayer)]
    return [link.codes.clone() for chain in chains for link in chain.chain]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_other_codes(model: nn.Module) -> nn.Module:
    """A copy in which one code in ten of three bits is one step off."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    for chain in copied.modules():
        for link in chain.chain if isinstance(chain, FactorizedLayer) else ():
            if link.bits == 3:
                moved, up = (torch.rand(link.codes.shape, generator=generator) for _ in range(2))
                steps = (moved < 0.1) * torch.where(up < 0.5, 1, -1)
                link.codes.copy_((link.codes + steps).clamp(-4, 3))
    return copied


@pytest.mark.parametrize(
    ("trains", "damage", "epochs"), [("scales", damaged, 40), ("codes", with_other_codes, 80)]
)
def test_damage_is_made_good_on_unseen_images_too(
    networks: tuple[nn.Module, nn.Module], trains: str, damage: Callable[[nn.Module], nn.Module], epochs: int
) -> None:
    """The network as it was is the original here, so that everything can be learnt back."""
    original = networks[1]
    model = damage(original)
    unseen, before_codes = [images(200, seed=9)], codes(model)
    before = divergence(original, model, unseen)
    points: list[dict[str, Any]] = []
    options = FinetuneOptions(trains=trains, epochs=epochs, time_limit_seconds=None)
    found = finetune_network(original, model, images(), options, progress=Progress(keep_points(points)))
    assert found.after < 0.3 * found.before
    assert divergence(original, model, unseen) < 0.3 * before
    same = all(torch.equal(new, old) for new, old in zip(codes(model), before_codes, strict=True))
    assert same == (trains == "scales")
    assert [point["epoch"] for point in points] == list(range(epochs + 1))
    assert points[0]["loss"] is None
    assert points[0]["held_back"] == pytest.approx(found.before)
    assert found.after in [pytest.approx(point["held_back"]) for point in points]
    assert [point["best"] for point in points] == sorted((point["best"] for point in points), reverse=True)
    assert found.status == "completed"


def test_the_network_is_left_in_the_best_state(networks: tuple[nn.Module, nn.Module]) -> None:
    original, model = networks[0], copy.deepcopy(networks[1])
    found = finetune_network(original, model, images(), FinetuneOptions(epochs=4))
    validation = Validation(images(), split(images())[1])
    assert validation.verdict(original, model).mean == pytest.approx(found.after, rel=1e-3)
    assert validation.verdict(original, model).plain <= validation.verdict(original, networks[1]).plain


def test_a_network_that_only_gets_worse_stays_to_the_last_bit(
    networks: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "GAIN_RATE", 50.0)
    original, model = networks[0], copy.deepcopy(networks[1])
    before = state(model)
    found = finetune_network(original, model, images(), FinetuneOptions(epochs=3))
    assert found.best_epoch == 0
    assert found.after == found.before
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rates_that_lead_far_away_are_lowered(
    networks: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learnt then is as good as with a rate that suits the network."""
    monkeypatch.setattr(finetune, "CODE_RATE", 300 * finetune.CODE_RATE)
    model, points = with_other_codes(networks[1]), list[dict[str, Any]]()
    options = FinetuneOptions(epochs=60, time_limit_seconds=None)
    found = finetune_network(networks[1], model, images(), options, progress=Progress(keep_points(points)))
    assert len(points) < 61  # some passes were for nothing
    assert all(point["held_back"] <= 1.5 * found.before for point in points[:10])
    assert found.after < 0.3 * found.before


def test_a_stop_keeps_the_best_so_far(networks: tuple[nn.Module, nn.Module]) -> None:
    original, model = networks[0], damaged(networks[1])
    points: list[dict[str, Any]] = []
    found = finetune_network(
        original, model, images(), FinetuneOptions(epochs=50, trains="scales"),
        progress=Progress(keep_points(points), lambda: len(points) > 3),
    )  # fmt: skip
    assert found.status == "cancelled"
    assert found.epochs == 3
    assert found.best_epoch >= 1
    assert found.after == pytest.approx(min(point["held_back"] for point in points))


@pytest.mark.parametrize("passes", [6, 15])
def test_a_stop_sets_codes_that_are_off_their_grids(
    networks: tuple[nn.Module, nn.Module], passes: int
) -> None:
    """Before the first chain is set, and when some are."""
    model, points = damaged(networks[1]), list[dict[str, Any]]()
    progress = Progress(keep_points(points), lambda: len(points) > passes)
    found = finetune_network(networks[1], model, images(), FinetuneOptions(epochs=25), progress=progress)
    assert (found.status, found.best_epoch, found.epochs) == ("cancelled", passes + 1, passes + 1)
    assert [point["on_grid"] for point in points] == [True] + [False] * passes + [True]
    assert points[-2]["held_back"] < found.before == points[-2]["best"]
    assert points[-1]["held_back"] == points[-1]["best"] == found.after
    assert found.after < 0.5 * found.before
    chains = [part for part in model.modules() if isinstance(part, FactorizedLayer)]
    assert all(link.codes.dtype == torch.int8 for chain in chains for link in chain.chain)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.84, 0.95])
def test_a_stop_within_the_only_pass_keeps_what_was_learnt(
    networks: tuple[nn.Module, nn.Module], share: float
) -> None:
    """Off the grid, while chains are set, and when all are but were not judged yet."""
    model, steps = damaged(networks[1]), [0]

    def stop() -> bool:
        steps[0] += 1
        return steps[0] > share * 60

    options = FinetuneOptions(epochs=1, time_limit_seconds=None)
    found = finetune_network(networks[1], model, images(2048), options, progress=Progress(should_stop=stop))
    assert (found.status, found.best_epoch) == ("cancelled", 1)
    assert found.after < 0.5 * found.before


def test_a_stop_before_the_first_step_changes_nothing(networks: tuple[nn.Module, nn.Module]) -> None:
    model, points = damaged(networks[1]), list[dict[str, Any]]()
    before = state(model)
    progress = Progress(keep_points(points), lambda: len(points) > 0)
    found = finetune_network(networks[0], model, images(), progress=progress)
    assert (found.status, found.best_epoch, found.epochs) == ("cancelled", 0, 0)
    assert all(torch.equal(before[name], value) for name, value in state(model).items())


def test_a_time_limit_ends_it_with_a_low_rate(networks: tuple[nn.Module, nn.Module]) -> None:
    original, model = networks[0], copy.deepcopy(networks[1])
    points: list[dict[str, Any]] = []
    options = FinetuneOptions(epochs=100_000, time_limit_seconds=1.0)
    found = finetune_network(original, model, images(), options, progress=Progress(keep_points(points)))
    assert found.status == "time_limit"
    assert found.seconds < 5.0
    assert points[-1]["fraction"] > 0.4  # the learning rate falls by the clock, not by the passes


def test_a_failure_leaves_the_network_as_it_was(
    networks: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(grid_setting, "solve_layer", fail)
    model = damaged(networks[1])
    before, flags = state(model), [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="broken"):
        finetune_network(networks[0], model, images(), FinetuneOptions(epochs=3))
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_the_same_seed_gives_the_same_network(networks: tuple[nn.Module, nn.Module]) -> None:
    first, second, third = (damaged(networks[1]) for _ in range(3))
    for model, seed in ((first, 0), (second, 0), (third, 1)):
        options = FinetuneOptions(epochs=6, seed=seed, time_limit_seconds=None)
        assert finetune_network(networks[1], model, images(128), options).best_epoch > 0
    assert all(torch.equal(new, state(second)[name]) for name, new in state(first).items())
    assert any(not torch.equal(new, state(third)[name]) for name, new in state(first).items())


def test_neither_original_nor_images_change(networks: tuple[nn.Module, nn.Module]) -> None:
    original, given = networks[0], images(64)
    before, pictures = state(original), given.clone()
    finetune_network(original, copy.deepcopy(networks[1]), given, FinetuneOptions(epochs=1))
    assert all(torch.equal(before[name], value) for name, value in state(original).items())
    assert torch.equal(given, pictures)
    assert not any(parameter.grad is not None for parameter in original.parameters())


def test_normalisations_beside_the_chains_are_learnt_and_keep_their_flags(
    networks: tuple[nn.Module, nn.Module],
) -> None:
    model = copy.deepcopy(networks[1])
    norm = model.get_submodule("3")
    norm.requires_grad_(False)
    before = norm.get_parameter("weight").detach().clone()
    found = finetune_network(networks[0], model, images(), FinetuneOptions(epochs=3))
    assert found.best_epoch > 0
    assert not torch.equal(norm.get_parameter("weight"), before)
    assert not any(parameter.requires_grad for parameter in norm.parameters())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trains": "weights"}, "scales or codes"),
        ({"epochs": 0}, "at least 1"),
        ({"epochs": True}, "at least 1"),
        ({"time_limit_seconds": 0.0}, "above 0"),
        ({"time_limit_seconds": float("nan")}, "above 0"),
    ],
)
def test_options_out_of_range_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        FinetuneOptions(**fields)


def test_one_image_is_too_few(networks: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(DataError, match="too few images"):
        finetune_network(networks[0], copy.deepcopy(networks[1]), images(1))
    found = finetune_network(networks[0], copy.deepcopy(networks[1]), images(2), FinetuneOptions(epochs=1))
    assert found.after <= found.before


class LeftOrRight(nn.Module):
    """Two classes: which half of the image is brighter."""

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.stack([half.mean(dim=(1, 2, 3)) for half in pictures.chunk(2, dim=3)], dim=1)


def test_images_are_changed_only_where_the_original_answers_the_same() -> None:
    pictures = torch.zeros(32, 3, 8, 8)
    pictures[::2, :, :, 6] = pictures[1::2, :, :, 1] = 1.0
    validation = Validation(pictures, torch.arange(32))
    assert not validation.is_safe(LeftOrRight(), lambda batch: batch.flip(3))
    assert validation.is_safe(LeftOrRight(), lambda batch: batch.flip(2))
    assert validation.is_safe(nn.Identity(), lambda batch: batch.flip(3))  # nothing is said of one class


def test_labels_are_learnt_from_and_judge(networks: tuple[nn.Module, nn.Module]) -> None:
    original, model, given = networks[0], copy.deepcopy(networks[1]), images(128)
    labels = torch.arange(128) % 4
    held = split(given)[1]
    with torch.no_grad():
        plain, whole = (Validation(given, held, said).verdict(original, model) for said in (None, labels))
        expected = nn.functional.cross_entropy(model(given[held]), labels[held])
    assert whole.plain - plain.plain == pytest.approx(float(expected), rel=1e-4)
    found = finetune_network(original, model, given, FinetuneOptions(epochs=1, flips=True), labels=labels)
    assert (found.labelled, found.flips, found.images) == (True, True, 128)
    assert found.after <= found.before == pytest.approx(whole.mean, rel=1e-3)


def test_no_more_than_some_images_are_held_back() -> None:
    for count, side, most in ((2, 8, 1), (9, 8, 1), (64, 8, 8), (9000, 2, 512), (700, 128, 64)):
        learnt, held = split(torch.zeros(1, 1, side, side).expand(count, 1, side, side))
        assert 1 <= len(held) <= most
        assert sorted([*learnt.tolist(), *held.tolist()]) == list(range(count))
