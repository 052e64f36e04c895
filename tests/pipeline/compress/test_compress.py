"""A small network compressed end to end: what changes, what stays, what is told, and how it stops."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Remembered
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.errors import DataError, PlanError, SolverError, WeightsError
from qaf_core.factorization.options import METHODS, SolverOptions
from qaf_core.factorization.solve import relative_error
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import chains_in, observed
from qaf_core.network.graph.program import Execution
from qaf_core.network.modules.quantized import FactorizedLayer, Layer
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio, replace_layer
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.compress.compress import FITTED_METHODS, batch_size, compress_network, shrink
from qaf_core.pipeline.compress.result import Compression, CompressOptions
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.pipeline.divergence import divergence
from qaf_core.pipeline.events import EVENT_KINDS, Progress, RunEvent

SHAPE = (3, 12, 12)
QUICK = CompressOptions(
    solver=SolverOptions(
        starts=1, start_iterations=8, iterations=1, rounding_rounds=2, time_limit_seconds=20.0
    ),
    paper_inner_iterations=3,
)
# The published method may turn in circles until its time is up.
QUICK_PAPER = replace(QUICK, solver=replace(QUICK.solver, time_limit_seconds=0.05))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(values)))
        hidden = self.conv2(hidden)
        hidden += values
        result: Tensor = self.relu(hidden)
        return result


class Network(nn.Module):
    """Convolutions of all kinds, a residual with in-place activations, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.pointwise = nn.Conv2d(12, 16, 1)
        self.hidden = nn.Linear(16, 20)
        self.classifier = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        values = self.block(torch.relu(self.stem(images)))
        values = torch.relu(self.pointwise(torch.relu(self.depthwise(self.down(values)))))
        result: Tensor = self.classifier(torch.relu(self.hidden(values.mean((2, 3)))))
        return result


FACTORIZED = ("block.conv1", "block.conv2", "down", "pointwise", "hidden")
ALL_LAYERS = ("stem", "block.conv1", "block.conv2", "down", "depthwise", "pointwise", "hidden", "classifier")


def make_network() -> Network:
    torch.manual_seed(0)
    network = Network().train()
    for _ in range(3):  # BatchNorm statistics of its own
        network(images(64))
    return network.eval()


@functools.cache
def captured_network() -> nn.Module:
    return capture(make_network(), SHAPE)


@functools.cache
def rows_of_network() -> tuple[LayerInfo, ...]:
    return take_inventory(captured_network(), SHAPE)


def rows_of(model: nn.Module) -> tuple[LayerInfo, ...]:
    return rows_of_network() if hasattr(model, "pointwise") else take_inventory(model, SHAPE)


@pytest.fixture
def model() -> nn.Module:
    """A copy of the network, captured once."""
    return copy.deepcopy(captured_network())


def images(count: int = 160, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


SOLVED = Remembered()  # what a run does with solved layers is the same, whoever solved them


def plan_of(model: nn.Module, **options: Any) -> Plan:
    options = {"ratio": 1.5, "bits": 4, "activation_bits": 8, **options}
    return plan_for_ratio(rows_of(model), model="test/network", **options)


def run(model: nn.Module, plan: Plan | None = None, **options: Any) -> Compression:
    plan = plan_of(model, method=options.get("method", "joint")) if plan is None else plan
    quick = QUICK_PAPER if options.get("method") == "paper" else QUICK
    options = {"calibration": images(), "options": quick, "cache": SOLVED, **options}
    return compress_network(model, plan, rows_of(model), **options)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def agreement(original: nn.Module, compressed: nn.Module) -> float:
    with torch.no_grad():
        batch = images(200, seed=9)
        return float((original(batch).argmax(dim=1) == compressed(batch).argmax(dim=1)).float().mean())


# End to end


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("activation_bits", "calibrated"), [(8, True), (32, True), (32, False)])
def test_every_method_compresses_what_the_plan_names(
    model: nn.Module, method: str, activation_bits: int, calibrated: bool
) -> None:
    plan = plan_of(model, activation_bits=activation_bits, method=method, bits=6)
    result = run(model, plan, method=method, calibration=images() if calibrated else None)
    assert result.status == "completed"
    planned = [row.name for row in plan.layers if row.structure != "keep"]
    assert [outcome.name for outcome in result.layers] == planned
    assert set(planned) == set(ALL_LAYERS if activation_bits == 8 else FACTORIZED)
    for outcome in result.layers:
        row, chain = plan.layer(outcome.name), result.model.get_submodule(outcome.name)
        assert isinstance(chain, FactorizedLayer)
        assert (outcome.structure, outcome.rank, outcome.bits) == (row.structure, row.rank, row.bits)
        assert chain.structure == row.structure
        for link in chain.chain:
            assert bool(link.input_quantizer.enabled) == (activation_bits == 8)
        weight = model.get_submodule(outcome.name).get_parameter("weight")
        assert outcome.relative_error == pytest.approx(relative_error(weight, outcome.factors), rel=1e-6)
        assert (outcome.output_error is not None) == calibrated
        assert outcome.output_error is None or math.isfinite(outcome.output_error)
    assert result.seconds.keys() == {"factorize", "calibrate"}
    assert not result.model.training
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(images(3))).all())


def test_the_original_is_not_changed_and_not_shared() -> None:
    model = make_network().train()
    before, modes = state(model), [module.training for module in model.modules()]
    result = run(model)
    assert same_state(state(model), before)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert not own & {tensor.data_ptr() for tensor in result.model.parameters()}


def test_kept_layers_stay_as_they_are(model: nn.Module) -> None:
    plan = plan_of(model)
    for name in ("stem", "down", "classifier"):
        plan = replace_layer(plan, LayerPlan(name=name, structure="keep"))
    result = run(model, plan)
    for name in ("stem", "down", "classifier"):
        kept = result.model.get_submodule(name)
        assert isinstance(kept, Layer)
        assert same_state(state(kept), state(model.get_submodule(name)))
    assert not {"stem", "down", "classifier"} & {outcome.name for outcome in result.layers}


def test_an_empty_plan_gives_the_original(model: nn.Module) -> None:
    plan = plan_of(model, activation_bits=32)
    rows = tuple(LayerPlan(name=row.name, structure="keep") for row in plan.layers)
    result = run(model, replace(plan, layers=rows))
    assert (result.status, result.layers) == ("completed", ())
    with torch.no_grad():
        assert torch.equal(result.model(images(4)), model(images(4)))


def test_eight_bits_lose_almost_nothing(model: nn.Module) -> None:
    result = run(model, plan_of(model, method="dense", bits=8), method="dense")
    assert agreement(model, result.model) > 0.97
    assert all(outcome.relative_error < 0.02 for outcome in result.layers)


@pytest.mark.parametrize("method", ["joint", "dense"])
def test_fitting_outputs_brings_the_scores_closer(model: nn.Module, method: str) -> None:
    plan = plan_of(model, method=method, bits=3, ratio=2.0)
    fitted = run(model, plan, method=method)
    unfitted = run(model, plan, method=method, options=replace(QUICK, output_fit=False))
    batches = [images(200, seed=9)]
    assert divergence(model, fitted.model, batches) < 0.7 * divergence(model, unfitted.model, batches)


def test_the_same_seed_gives_the_same_network(model: nn.Module) -> None:
    first, again, other = (run(model, replace(plan_of(model), seed=seed), cache=None) for seed in (0, 0, 1))
    assert same_state(state(first.model), state(again.model))
    assert not same_state(state(first.model), state(other.model))


def test_each_factor_may_have_its_own_width(model: nn.Module) -> None:
    plan = replace_layer(plan_of(model), LayerPlan(name="down", structure="cp", rank=10, bits=(8, 4, 6)))
    result = run(model, plan)
    outcome = next(outcome for outcome in result.layers if outcome.name == "down")
    assert outcome.factors.bits == (8, 4, 6)
    chain = result.model.get_submodule("down")
    assert isinstance(chain, FactorizedLayer)
    assert [link.bits for link in chain.chain] == [4, 6, 8]
    assert outcome.to_dict()["bits"] == [8, 4, 6]


def test_tucker_layers_run_too(model: nn.Module) -> None:
    result = run(model, plan_of(model, structure="tucker2", bits=8))
    assert {outcome.structure for outcome in result.layers} == {"tucker2", "svd", "dense"}
    outcome = next(outcome for outcome in result.layers if outcome.structure == "tucker2")
    assert isinstance(outcome.rank, tuple)
    assert outcome.to_dict()["rank"] == list(outcome.rank)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_kernels_in_two_factors_run_too(model: nn.Module, weight: float) -> None:
    plan = plan_of(model, structure="svd", bits=8)
    options = replace(QUICK, moment_weight=weight)
    fitted, plain = (run(model, plan, options=replace(options, output_fit=fit)) for fit in (True, False))
    assert {outcome.structure for outcome in fitted.layers} == {"svd", "dense"}
    with torch.no_grad():
        batch = images(64, seed=9)
        errors = [float((found.model(batch) - model(batch)).square().sum()) for found in (fitted, plain)]
    assert errors[0] < errors[1]


def test_outcomes_are_ready_for_json_with_a_histogram_per_factor(model: nn.Module) -> None:
    for outcome in run(model).layers:
        told = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
        assert set(told["histograms"]) == {"weight", *outcome.factors.names}
        for name, codes in zip(outcome.factors.names, outcome.factors.codes, strict=True):
            assert sum(told["histograms"][name]["counts"]) == codes.numel()


def test_a_layer_that_stands_in_two_places_is_compressed_in_both() -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(6, 6, 3, padding=1)
    twice = nn.Sequential(
        nn.Conv2d(3, 6, 1), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(864, 4)
    ).eval()
    result = run(twice, plan_of(twice))
    assert isinstance(result.model.get_submodule("1"), FactorizedLayer)
    assert list(chains_in(result.model)) == [outcome.name for outcome in result.layers] == ["0", "1", "5"]
    made: list[str] = []

    def look(_execution: Execution, node: Node, _result: Any) -> None:
        made.append(str(node.target))

    with observed(result.model, look), torch.no_grad():
        result.model(images(2))
    assert made.count("1") == 2


def test_a_compressed_network_takes_images_of_another_size(model: nn.Module) -> None:
    """Its program for that size is captured anew, with the chains where the layers were."""
    result = run(model, plan_of(model, bits=8, ratio=1.0, method="dense"), method="dense")
    larger = torch.randn(3, 3, 17, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = result.model(larger), model(larger)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("captured", [True, False])
def test_without_images_the_shape_is_the_networks_own(captured: bool) -> None:
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()
    inventory = take_inventory(small, (1, 8, 8))
    plan = plan_for_ratio(
        inventory, model="test/small", ratio=1.0, bits=8, activation_bits=32, method="dense"
    )
    network = capture(small, (1, 8, 8)) if captured else small
    result = compress_network(network, plan, inventory, method="dense", calibration=None, options=QUICK)
    batch = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(result.model(batch), small(batch), rtol=0.1, atol=0.05)


# Events


def test_events_tell_the_run_in_order(model: nn.Module) -> None:
    events: list[RunEvent] = []
    run(model, progress=Progress(events.append), cache=None)
    assert {event.kind for event in events} <= set(EVENT_KINDS)
    times = [event.elapsed_seconds for event in events]
    assert times == sorted(times)
    for event in events:
        json.dumps(event.data, allow_nan=False)
    stages = [event.data["stage"] for event in events if event.kind == "stage"]
    assert stages == sorted(stages, key=("solving", "calibrating").index)
    fractions = [event.data["fraction"] for event in events if event.kind == "stage"]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    started = [event for event in events if event.kind == "layer_started"]
    finished = [event for event in events if event.kind == "layer_finished"]
    assert [event.layer for event in started] == [event.layer for event in finished] == list(ALL_LAYERS)
    assert [event.data["index"] for event in started] == list(range(len(ALL_LAYERS)))
    assert {event.data["total"] for event in started} == {len(ALL_LAYERS)}


def test_iterations_come_between_start_and_finish_of_their_layer(model: nn.Module) -> None:
    events: list[RunEvent] = []
    result = run(model, progress=Progress(events.append), cache=None)
    current, seen = None, 0
    for event in events:
        if event.kind == "layer_started":
            current, seen = event.layer, 0
        elif event.kind == "iteration":
            assert event.layer == current
            assert event.data["iteration"] > seen
            seen = event.data["iteration"]
    outcomes = {outcome.name: outcome for outcome in result.layers}
    for event in (event for event in events if event.kind == "layer_finished"):
        outcome = outcomes[event.layer or ""]
        assert event.data["relative_error"] == outcome.relative_error
        assert event.data["status"] == outcome.status
        assert event.data["explanation"].endswith(".")
        assert event.data["iterations"] == outcome.iterations


# Stopping


def stop_after(count: int) -> Callable[[], bool]:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > count

    return should_stop


def test_a_stop_before_anything_gives_the_original(model: nn.Module) -> None:
    result = run(model, progress=Progress(should_stop=lambda: True), cache=None)
    assert (result.status, result.layers) == ("cancelled", ())
    with torch.no_grad():
        assert torch.equal(result.model(images(4)), model(images(4)))


def test_a_stop_keeps_the_layers_that_are_done(model: nn.Module) -> None:
    finished: list[str] = []

    def watch(event: RunEvent) -> None:
        if event.kind == "layer_finished":
            finished.append(event.layer or "")

    def stop_in_the_fourth_layer() -> bool:
        return len(finished) >= 3

    result = run(model, progress=Progress(watch, stop_in_the_fourth_layer), cache=None)
    assert result.status == "cancelled"
    assert [outcome.name for outcome in result.layers] == finished == list(ALL_LAYERS[:3])
    for name in ALL_LAYERS:
        layer = result.model.get_submodule(name)
        assert isinstance(layer, FactorizedLayer) == (name in finished)
        if name in finished:
            assert isinstance(layer, FactorizedLayer)
            assert all(bool(link.input_quantizer.enabled) for link in layer.chain)
    assert all(outcome.output_error is not None for outcome in result.layers)


@pytest.mark.parametrize("count", [1, 8, 25])
def test_a_stop_at_any_time_gives_a_network_that_runs(model: nn.Module, count: int) -> None:
    result = run(model, progress=Progress(should_stop=stop_after(count)), cache=None)
    assert result.status == "cancelled"
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(images(3))).all())
    for outcome in result.layers:
        assert isinstance(result.model.get_submodule(outcome.name), FactorizedLayer)
    assert not any("forward" in vars(module) for module in result.model.modules())


def test_a_stop_while_calibrating_keeps_all_layers(model: nn.Module) -> None:
    stage = ""

    def watch(event: RunEvent) -> None:
        nonlocal stage
        stage = event.data.get("stage", stage)

    result = run(model, progress=Progress(watch, lambda: stage == "calibrating"), cache=None)
    assert result.status == "cancelled"
    assert [outcome.name for outcome in result.layers] == list(ALL_LAYERS)
    assert result.layers[0].output_error is not None
    assert result.layers[-1].output_error is None


# Solved layers


def test_solved_layers_are_found_again(model: nn.Module, tmp_path: Path) -> None:
    cache, events = SolveCache(tmp_path), []
    first = run(model, cache=cache)
    again = run(model, cache=cache, progress=Progress(events.append))
    assert not [event for event in events if event.kind == "iteration"]
    assert same_state(state(first.model), state(again.model))


def test_a_changed_row_solves_one_layer(model: nn.Module, tmp_path: Path) -> None:
    cache, plan = SolveCache(tmp_path), plan_of(model)
    run(model, plan, cache=cache)
    events: list[RunEvent] = []
    run(
        model,
        replace_layer(plan, replace(plan.layer("down"), bits=3)),
        cache=cache,
        progress=Progress(events.append),
    )
    assert {event.layer for event in events if event.kind == "iteration"} == {"down"}


# Few images, odd weights, bad input


@pytest.mark.parametrize(
    ("method", "count"),
    [("paper", 1), ("sequential", 1), *((name, n) for name in FITTED_METHODS for n in (1, 33))],
)
def test_few_images_are_enough(model: nn.Module, method: str, count: int) -> None:
    result = run(model, method=method, calibration=images(count))
    assert result.status == "completed"
    for outcome in result.layers:
        assert outcome.output_error is not None
        assert math.isfinite(outcome.output_error)
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(images(3))).all())


def test_images_that_are_all_black_are_survived(model: nn.Module) -> None:
    result = run(model, calibration=torch.zeros(40, *SHAPE))
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(torch.zeros(2, *SHAPE))).all())


def test_a_layer_of_zeros_stays_zero(model: nn.Module) -> None:
    with torch.no_grad():
        model.down.weight.zero_()
        model.depthwise.weight.zero_()
    result = run(model)
    for name in ("down", "depthwise"):
        chain = result.model.get_submodule(name)
        assert isinstance(chain, FactorizedLayer)
        assert not bool(chain.chain[0].codes.any())
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(images(3))).all())


@pytest.mark.parametrize("name", ["stem", "pointwise", "classifier"])
def test_weights_that_are_not_finite_are_told_by_layer(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        model.get_submodule(name).get_parameter("weight").view(-1)[3] = math.nan
    with pytest.raises(WeightsError, match=f"NaN or infinite.*{name}"):
        run(model)


def test_requests_that_cannot_be_met_are_told(model: nn.Module) -> None:
    with pytest.raises(PlanError, match="unknown method; got magic; expected joint"):
        run(model, plan_of(model), method="magic")
    with pytest.raises(PlanError, match="need calibration images.*act-bits 32"):
        run(model, calibration=None)
    with pytest.raises(PlanError, match="8 bits or not at all; got 4 bits; expected 8 or 32"):
        run(model, plan_of(model, activation_bits=4))
    with pytest.raises(DataError, match="no calibration images"):
        run(model, calibration=images(0))
    with pytest.raises(DataError, match="calibration images hold NaN or infinite"):
        run(model, calibration=torch.full((40, *SHAPE), math.nan))


def test_options_that_are_not_known_are_told(model: nn.Module) -> None:
    with pytest.raises(SolverError, match="granularity; got channel"):
        run(model, options=replace(QUICK, granularity="channel"))
    with pytest.raises(SolverError, match="inner_iterations"):
        run(model, method="paper", options=replace(QUICK, paper_inner_iterations=0))


@pytest.mark.parametrize("choice", ["keep", "reestimate", "better"])
def test_batchnorm_of_the_published_method_is_a_choice(model: nn.Module, choice: str) -> None:
    result = run(model, method="paper", options=replace(QUICK_PAPER, paper_batchnorm=choice))
    kept = torch.equal(
        result.model.get_submodule("block.bn1").get_buffer("running_mean"), model.block.bn1.running_mean
    )
    if choice != "better":
        assert kept == (choice == "keep")


# Small parts


def test_shrinking_keeps_the_mean_of_the_diagonal() -> None:
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    moment = rows.mT @ rows
    shrunk = shrink(moment, 0.9)
    assert float(shrunk.trace()) == pytest.approx(float(moment.trace()), rel=1e-5)
    assert float(torch.linalg.eigvalsh(shrunk).min()) > 0.05 * float(moment.diagonal().mean())


@pytest.mark.parametrize("method", ["joint", "dense", "sequential"])
def test_dead_and_constant_layers_leave_the_outputs(method: str) -> None:
    """Behind an all-zero kernel every activation is constant: no fit may blow that up."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        network[3].weight.zero_()
        network[5].weight.fill_(0.1)
    result = run(network, method=method)
    with torch.no_grad():
        wanted, found = network(images(50, seed=5)), result.model(images(50, seed=5))
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    for layer in result.layers:
        assert layer.output_error is not None
        assert 0.0 <= layer.output_error < 1e7


@pytest.mark.parametrize(("count", "size"), [(1, 1), (9, 1), (32, 4), (300, 32), (1024, 32)])
def test_some_batches_always_judge_the_fits(count: int, size: int) -> None:
    assert batch_size(images(count)) == size
