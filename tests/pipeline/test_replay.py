"""Stopping at a layer gives what plain hooks give, with far fewer forward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.pipeline.replay import Replay


class Block(nn.Module):
    """A residual block whose activations work in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.conv1(values)))
        hidden = self.conv2(hidden)
        hidden += values
        result: Tensor = self.relu(hidden)
        return result


class Network(nn.Module):
    """Residuals, a branch that is used twice, a layer that never runs, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(*(Block(6) for _ in range(4)))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True))
        self.merge = nn.Conv2d(6, 4, 1)
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.blocks(self.relu(self.stem(images)))
        values = self.branch(values) + self.branch(0.5 * values)
        values = self.relu(self.merge(values)).mean((2, 3))
        result: Tensor = self.classifier(values)
        return result


LAYERS = (
    "stem",
    *(f"blocks.{index}.{name}" for index in range(4) for name in ("conv1", "conv2")),
    "branch.0",
    "merge",
    "classifier",
)


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def batches(count: int = 3) -> list[Tensor]:
    images = torch.randn(4 * count - 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return list(torch.split(images, 4))


def hooked(model: nn.Module, layer: str, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a layer's first call in each batch, by plain hooks on a copy."""
    model = copy.deepcopy(model)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    seen = 0

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) < seen:
            inputs.append(arguments[0].clone())
            outputs.append(output.clone())

    model.get_submodule(layer).register_forward_hook(keep)
    with torch.inference_mode():
        for batch in images:
            seen += 1
            model(batch)
    return inputs, outputs


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        # What is replayed was kept in half precision.
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)


def change(layer: nn.Module) -> None:
    """What calibration does: another weight in place."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(1.1)
        if layer.bias is not None:
            layer.bias.add_(0.05)


@pytest.mark.parametrize("changes", [False, True])
def test_front_to_back_it_sees_what_plain_hooks_see(changes: bool) -> None:
    model, images = network(), batches()
    replay = Replay(model, images, LAYERS)
    plain = copy.deepcopy(model)
    for layer in LAYERS:
        inputs, outputs = hooked(plain, layer, images)
        assert_same(replay.inputs(layer), inputs)
        assert_same(replay.outputs(layer), outputs)
        if changes:
            change(model.get_submodule(layer))
            change(plain.get_submodule(layer))
            assert_same(replay.outputs(layer), hooked(plain, layer, images)[1])
        replay.done(layer)
    replay.close()


def test_nothing_is_replayed_before_a_layer_is_done() -> None:
    model, images = network(), batches()
    replay = Replay(model, images, LAYERS)
    replay.inputs("merge")
    change(model.stem)
    assert_same(replay.inputs("merge"), hooked(model, "merge", images)[0])
    replay.close()


def test_some_layers_may_be_left_out() -> None:
    model, images = network(), batches()
    visited = ("blocks.0.conv2", "blocks.2.conv1", "classifier")
    replay, plain = Replay(model, images, visited), copy.deepcopy(model)
    for layer in visited:
        assert_same(replay.inputs(layer), hooked(plain, layer, images)[0])
        replay.done(layer)
    replay.close()


@pytest.mark.parametrize("counts", [(3, 1, 2), (1, 3, 1), (1, 2, 3)])
def test_fewer_batches_may_be_asked_for_one_layer_than_for_another(counts: tuple[int, ...]) -> None:
    model, images = network(), batches()
    replay, plain = Replay(model, images, LAYERS), copy.deepcopy(model)
    for index, layer in enumerate(LAYERS):
        count = counts[index % len(counts)]
        assert_same(replay.inputs(layer, count), hooked(plain, layer, images[:count])[0])
        change(model.get_submodule(layer))
        change(plain.get_submodule(layer))
        replay.done(layer)
    replay.close()


def convolutions_run(model: nn.Module, work: Callable[[], None]) -> int:
    """How many times convolutions compute while ``work`` is done."""
    count = 0
    compute = nn.Conv2d._conv_forward

    def counted(self: nn.Conv2d, *arguments: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return compute(self, *arguments)

    nn.Conv2d._conv_forward = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        nn.Conv2d._conv_forward = compute  # type: ignore[method-assign]
    return count


def test_the_whole_way_costs_a_few_passes_instead_of_one_per_layer() -> None:
    model, images = network(), batches()

    def front_to_back() -> None:
        replay = Replay(model, images, LAYERS)
        for layer in LAYERS:
            replay.inputs(layer)
            replay.done(layer)
        replay.close()

    def one_pass() -> None:
        with torch.inference_mode():
            for batch in images:
                model(batch)

    assert convolutions_run(model, front_to_back) < 3.5 * convolutions_run(model, one_pass)


def test_closing_gives_back_the_network_as_it_was() -> None:
    model, images = network(), batches()
    with torch.inference_mode():
        before = model(images[0])
    replay = Replay(model, images, LAYERS)
    for layer in LAYERS:
        replay.inputs(layer)
        replay.done(layer)
    assert any("forward" in vars(module) for module in model.modules())
    replay.close()
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.inference_mode():
        assert torch.equal(model(images[0]), before)


def test_large_activations_are_kept_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e6)  # type: ignore[operator]
    images = batches()
    expected = hooked(model, "1", images)[0]
    replay = Replay(model, images, ("0", "1"))
    replay.done("0")
    for _ in range(2):
        for found, wanted in zip(replay.inputs("1"), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    replay.close()


def test_batches_and_captured_tensors_are_not_changed_by_later_passes() -> None:
    model, images = network(), batches()
    copies = [batch.clone() for batch in images]
    replay = Replay(model, images, LAYERS)
    captured = replay.inputs("blocks.1.conv1")
    kept = [tensor.clone() for tensor in captured]
    replay.done("stem")
    replay.inputs("classifier")
    assert all(torch.equal(a, b) for a, b in zip(captured, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(images, copies, strict=True))
    replay.close()


def test_layers_that_never_run_are_told() -> None:
    replay = Replay(network(), batches(), (*LAYERS, "unused"))
    with pytest.raises(ModelError, match="does not run in a forward pass; got unused"):
        replay.inputs("unused")
    replay.close()


def test_a_fault_of_the_network_leaves_no_hooks() -> None:
    model = network()
    replay = Replay(model, [*batches(1), torch.zeros(1, 5, 8, 8)], LAYERS)
    with pytest.raises(RuntimeError):
        replay.inputs("merge")
    replay.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
