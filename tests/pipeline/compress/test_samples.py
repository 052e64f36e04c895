"""What each layer is calibrated on: both networks side by side, at every call, and behind a choice."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.errors import DataError, ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of, layers_in, observed
from qaf_core.network.graph.program import Execution
from qaf_core.network.modules.quantized import Layer
from qaf_core.pipeline.compress import samples
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers
from qaf_core.pipeline.divergence import output_divergence
from tests.helpers import draw

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """A residual, a branch that runs twice with a layer of its own, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.relu(self.stem(images))
        values = self.relu(values + self.inner(values))
        values = self.branch(values) + self.branch(0.5 * values)
        found: Tensor = self.classifier(values.mean((2, 3)))
        return found


LAYERS = ("stem", "inner", "branch.0", "branch.2", "classifier")


class Strides(nn.Module):
    """One weight at two strides, another layer between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.between = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.between(self.shared(images).relu())
        return nn.functional.conv2d(values, self.shared.weight, self.shared.bias, stride=2, padding=1)


class Choosing(nn.Module):
    """Passes on the rows with the best scores."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, 4)
        found: Tensor = self.head(flat[self.score(flat)[:, 0] > 0])
        return found


class ChoosingTwice(Choosing):
    """Its head runs on what is above one threshold and above another."""

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, 4)
        score = self.score(flat)[:, 0]
        return torch.cat([self.head(flat[score > 0]), self.head(flat[score > 1000])])


class Again(nn.Module):
    """Python calls one part again and again, on ever larger values."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, rows: Tensor) -> Tensor:
        for _ in range(2 if float(rows.sum()) < 1e9 else 3):
            rows = rows + 10 * self.block(rows)
        return rows


class Stepwise(nn.Module):
    """Python between its parts that looks at values: captured in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images)
        found: Tensor = self.last(values * (2.0 if float(values.sum()) > 1.0 else 1.0))
        return found


def captured(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    return capture(model.eval(), shape)


def batches(count: int = 3) -> list[Tensor]:
    """Batches of four images, the last of three."""
    images = torch.randn(4 * count - 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    return list(torch.split(images, 4))


def seen_plainly(model: nn.Module, layer: str, images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a layer at all calls in each batch, as the model runs in one go."""
    wanted = model.get_submodule(layer)
    inputs, outputs = [], []

    def look(execution: Execution, node: Node, result: Any) -> None:
        if node.op == "call_module" and execution.root.get_submodule(str(node.target)) is wanted:
            inputs.append(execution.operand(node).clone())
            outputs.append(result.clone())

    with observed(model, look), torch.inference_mode():
        for batch in images:
            model(batch)
    return inputs, outputs


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def change(layer: nn.Module) -> None:
    """What calibration does: another weight in place."""
    assert isinstance(layer, Layer)
    with torch.no_grad():
        layer.weight.mul_(1.1)
        if layer.bias is not None:
            layer.bias.add_(0.05)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return captured(Residual())


@pytest.fixture
def calls_made(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """The layer of every computation of a layer."""
    made: list[Layer] = []
    computed = Layer.forward

    def counted(self: Layer, values: Tensor, site: int = 0) -> Tensor:
        made.append(self)
        return computed(self, values, site)

    monkeypatch.setattr(Layer, "forward", counted)
    return made


def both_walked(original: nn.Module, images: Sequence[Tensor], counts: dict[str, int]) -> list[str]:
    """Walk with a copy that changes at every visit, each time against plain execution."""
    compressed, visited = copy.deepcopy(original), []

    def visit(name: str, samples: LayerSamples) -> None:
        visited.append(name)
        shown = images[: counts[name]]
        assert_same(samples.inputs, seen_plainly(compressed, name, shown)[0])
        assert_same(samples.targets, seen_plainly(original, name, shown)[1])
        assert len(samples.sites) == samples.calls
        assert len(samples.inputs) == samples.calls * len(shown)
        change(compressed.get_submodule(name))

    walk_layers(original, compressed, images, counts, visit)
    return visited


def test_inputs_are_the_changed_networks_and_targets_the_originals(network: nn.Module) -> None:
    images = batches()
    before = copy.deepcopy(network)
    assert both_walked(network, images, dict.fromkeys(LAYERS, 3)) == list(LAYERS)
    for (name, kept), (_, now) in zip(before.named_parameters(), network.named_parameters(), strict=True):
        assert torch.equal(kept, now), name


@pytest.mark.parametrize("counts", [(3, 1, 2), (1, 3, 1), (1, 2, 3)])
def test_fewer_batches_may_be_shown_to_one_layer_than_to_another(
    network: nn.Module, counts: tuple[int, ...]
) -> None:
    wanted = {layer: counts[index % len(counts)] for index, layer in enumerate(LAYERS)}
    assert both_walked(network, batches(), wanted) == list(LAYERS)


def test_some_layers_may_be_left_out(network: nn.Module) -> None:
    assert both_walked(network, batches(), {"inner": 3, "classifier": 2}) == ["inner", "classifier"]


def test_both_networks_run_each_layer_once_on_each_image(network: nn.Module, calls_made: list[Layer]) -> None:
    images, compressed = batches(), copy.deepcopy(network)
    names = ("stem", "inner", "classifier")
    walk_layers(network, compressed, images, dict.fromkeys(names, 3), lambda *_: None)
    for name in names:
        assert sum(made is network.get_submodule(name) for made in calls_made) == 3
    # The walk ends at the input of the last layer of the compressed network.
    assert [sum(made is compressed.get_submodule(name) for made in calls_made) for name in names] == [3, 3, 0]


def test_without_a_compressed_network_the_original_is_walked_once(
    network: nn.Module, calls_made: list[Layer]
) -> None:
    images, found = batches(), {}
    walk_layers(
        network, None, images, dict.fromkeys(LAYERS, 3), lambda name, samples: found.update({name: samples})
    )
    for name in ("stem", "inner", "classifier"):
        assert sum(made is network.get_submodule(name) for made in calls_made) == 3
    for name in LAYERS:
        inputs, outputs = seen_plainly(network, name, images)
        assert_same(found[name].inputs, inputs)
        assert_same(found[name].targets, outputs)


def test_calls_stand_next_to_each_other(network: nn.Module) -> None:
    found: dict[str, LayerSamples] = {}
    walk_layers(
        network, copy.deepcopy(network), batches(), {"branch.0": 3},
        lambda name, samples: found.update({name: samples}),
    )  # fmt: skip
    samples = found["branch.0"]
    assert samples.calls == 2
    assert samples.sites == (0, 0)
    for index in (0, 2, 4):
        torch.testing.assert_close(samples.inputs[index + 1], 0.5 * samples.inputs[index])


def test_a_layer_at_two_sites_is_seen_at_both_and_the_one_between_afterwards() -> None:
    torch.manual_seed(0)
    model, images = captured(Strides()), batches()
    sites: dict[str, tuple[int, ...]] = {}
    walk_layers(
        model, copy.deepcopy(model), images, {"shared": 3, "between": 3},
        lambda name, samples: sites.update({name: samples.sites}),
    )  # fmt: skip
    assert sites == {"shared": (0, 1), "between": (0,)}
    assert both_walked(model, images, {"shared": 2, "between": 3}) == ["shared", "between"]


def test_layers_that_never_run_are_told(network: nn.Module) -> None:
    with pytest.raises(ModelError, match="does not run in a forward pass; got unused; plan it as keep"):
        walk_layers(network, None, batches(), {"stem": 1, "unused": 1}, lambda *_: None)


def test_a_fault_in_a_visit_is_passed_on(network: nn.Module) -> None:
    def visit(_name: str, _samples: LayerSamples) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        walk_layers(network, None, batches(), {"stem": 1}, visit)


def test_a_model_in_parts_is_walked_side_by_side_as_well() -> None:
    torch.manual_seed(0)
    model = captured(Stepwise())
    names = list(layers_in(model))
    assert names == ["first.0", "last.0"]
    assert both_walked(model, batches(), {"first.0": 2, "last.0": 3}) == names


# Behind a choice


def chosen_rows() -> list[Tensor]:
    return list(torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(2)).split(2))


def test_behind_a_choice_the_original_layer_is_asked_about_the_rows_that_were_chosen() -> None:
    torch.manual_seed(0)
    original, rows = captured(Choosing(), (9, 4)), chosen_rows()
    compressed = copy.deepcopy(original)
    change(layer_of(compressed, "head"))
    with torch.no_grad():
        layer_of(compressed, "score").bias.sub_(0.3)  # type: ignore[union-attr]
    assert take_inventory(original, (9, 4))[1].after_choice
    found: dict[str, LayerSamples] = {}
    walk_layers(
        original, compressed, rows, {"score": 3, "head": 3},
        lambda name, samples: found.update({name: samples}), after_choice=["head"],
    )  # fmt: skip
    head = layer_of(original, "head")
    with torch.inference_mode():
        assert_same(found["head"].targets, [head(values) for values in found["head"].inputs])
    assert_same(found["head"].inputs, seen_plainly(compressed, "head", rows)[0])
    assert sum(map(len, found["head"].inputs)) != sum(map(len, seen_plainly(original, "head", rows)[0]))
    assert_same(found["score"].targets, seen_plainly(original, "score", rows)[1])


def test_a_part_that_python_calls_again_is_seen_at_its_later_calls_too() -> None:
    torch.manual_seed(0)
    model = Again().eval()
    network, rows = capture(model, (4,)), torch.randn(6, 4)
    seen: dict[str, LayerSamples] = {}
    counts = {"block.0": 2, "block.2": 1}
    walk_layers(network, copy.deepcopy(network), rows.split(2), counts, seen.__setitem__)
    with torch.inference_mode():
        second = rows + 10 * model.block(rows)
    first = seen["block.0"]
    assert first.calls == 2
    assert first.sites == (0, 0)
    for found, wanted in zip(first.inputs, (rows[:2], second[:2], rows[2:4], second[2:4]), strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.inference_mode():
        for values, target in zip(first.inputs, first.targets, strict=True):
            torch.testing.assert_close(model.block[0](values), target)
    assert len(seen["block.2"].inputs) == 2


def test_images_on_which_nothing_is_chosen_are_left_out() -> None:
    torch.manual_seed(0)
    original, rows = captured(ChoosingTwice(), (9, 4)), chosen_rows()
    found: dict[str, LayerSamples] = {}
    walk_layers(
        original, copy.deepcopy(original), rows, {"head": 3},
        lambda name, samples: found.update({name: samples}), after_choice=["head"],
    )  # fmt: skip
    samples = found["head"]
    assert len(samples.inputs) == len(samples.targets) == len(samples.sites) == 3
    assert samples.calls == 1
    assert all(len(values) for values in samples.inputs)


def test_a_layer_that_nothing_reaches_is_told() -> None:
    model = captured(Choosing(), (9, 4))
    with torch.no_grad():
        layer_of(model, "score").bias.fill_(-100.0)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="chooses nothing for a layer.*got head"):
        walk_layers(
            model, copy.deepcopy(model), chosen_rows(), {"score": 3, "head": 3}, lambda *_: None,
            after_choice=["head"],
        )  # fmt: skip


def test_no_more_batches_come_to_a_layer_than_may_wait_there(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))), batches(5)
    for largest, shown in ((10**9, 5), (3 * images[0].numel(), 3), (1, 2)):
        monkeypatch.setattr(samples, "LARGEST_STATE", largest)
        seen: list[int] = []
        walk_layers(
            model, None, images, {"0": 5}, lambda _name, given, seen=seen: seen.append(len(given.inputs))
        )
        assert seen == [shown]


def test_what_follows_a_layer_tells_what_another_output_of_it_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5 * 16, 6)
    ).eval()
    network = capture(model, (3, 8, 8))
    batches = [draw(6, 3, 8, 8, seed=seed) for seed in (1, 2)]
    told: dict[str, list[float]] = {}

    def visit(name: str, samples: LayerSamples) -> None:
        assert samples.ahead is not None
        told[name] = [
            samples.ahead.divergence({0: samples.targets[0], 1: samples.targets[1]}),
            samples.ahead.divergence({1: 1.5 * samples.targets[1]}),
        ]
        assert torch.equal(samples.originals[0], samples.inputs[0])  # nothing is changed in front of it

    walk_layers(network, copy.deepcopy(network), batches, dict.fromkeys(("0", "2", "4"), 2), visit)
    assert [own for own, _ in told.values()] == [0.0, 0.0, 0.0]
    with torch.no_grad():
        expected = network(batches[1])
        moved = model[2:](nn.functional.relu(1.5 * model[0](batches[1])))
        parts = [output_divergence(expected, moved, size) for size in (1.0, float(expected.std()))]
    assert told["0"][1] == pytest.approx(math.sqrt(parts[0] * parts[1]), rel=1e-4)
