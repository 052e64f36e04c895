"""Stopping at a layer gives what plain hooks give, with far fewer forward calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, ModelError
from qaf_core.network.inventory import LayerInfo, take_inventory
from qaf_core.pipeline.replay import Replay, sample_layer


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
    """Inputs and outputs of a layer at all calls in each batch, by plain hooks on a copy."""
    model = copy.deepcopy(model)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...], named: Any, output: Tensor) -> None:
        inputs.append((*arguments, *named.values())[0].clone())
        outputs.append(output.clone())

    model.get_submodule(layer).register_forward_hook(keep, with_kwargs=True)
    with torch.inference_mode():
        for batch in images:
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


class Scales(nn.Module):
    """One head over maps of several sizes, as in a detector; maps and results travel in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Maps()
        self.head = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1))

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        return {"boxes": [self.head(values) for values in self.body(images)["maps"]]}


class Maps(nn.Module):
    """Puts out a dict that holds a list; its second layer is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        large = self.first(images).relu()
        return {"maps": [large, self.second(input=large).relu()]}


SCALES_LAYERS = ("body.first", "body.second", "head.0", "head.2")


def test_a_layer_that_runs_on_several_scales_is_seen_on_all() -> None:
    torch.manual_seed(0)
    model, images = Scales().eval(), batches()
    replay, plain = Replay(model, images, SCALES_LAYERS), copy.deepcopy(model)
    assert [replay.calls(layer) for layer in SCALES_LAYERS] == [1, 1, 2, 2]
    for layer in SCALES_LAYERS:
        inputs, outputs = hooked(plain, layer, images)
        assert len(inputs) == replay.calls(layer) * len(images)
        assert_same(replay.inputs(layer), inputs)
        assert_same(replay.outputs(layer), outputs)
        change(model.get_submodule(layer))
        change(plain.get_submodule(layer))
        replay.done(layer)
    replay.close()


def runs_per_visit(model: nn.Module, images: Sequence[Tensor], layers: Sequence[str], last: str) -> int:
    """Convolutions computed for a second look at the last layer, once all before it are done."""
    replay = Replay(model, images, layers)
    for layer in layers:
        if layer != last:
            replay.inputs(layer)
            replay.done(layer)
    replay.inputs(last)
    count = convolutions_run(model, lambda: replay.inputs(last) and None)
    replay.close()
    return count


def test_outputs_in_dicts_are_replayed() -> None:
    layers = ("body.first", "body.second", "head.0")
    # Of three batches the whole head on the first scale, and no more: on the second the layer is reached.
    assert runs_per_visit(Scales().eval(), batches(3), layers, "head.0") == 3 * 2


class Boxed:
    """A tensor inside an object of the network's own."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Boxing(nn.Module):
    """Puts out what no one else can look into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))

    def forward(self, images: Tensor) -> Boxed:
        return Boxed(self.inner(images))


class Unboxing(nn.Module):
    """Goes on with it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Boxing()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.body(images).values)


def test_what_cannot_be_kept_is_computed_from_what_can() -> None:
    layers = ("body.inner.0", "body.inner.1", "last")
    assert runs_per_visit(Unboxing().eval(), batches(3), layers, "last") == 0


class Counting(nn.Module):
    """Runs its layer as often as the first pixel says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(int(images.flatten()[0])):
            images = self.layer(images)
        return images


def test_a_layer_that_runs_once_for_one_image_and_twice_for_another_is_refused() -> None:
    images = [torch.full((1, 3, 2, 2), float(count)) for count in (2, 1)]
    replay = Replay(Counting().eval(), images, ("layer",))
    with pytest.raises(ModelError, match="as often for every image; got layer, 1 calls; expected 2 calls"):
        replay.inputs("layer")
    replay.close()


class Choosing(nn.Module):
    """Passes on the rows with the best scores."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, 4)
        return self.head(flat[self.score(flat)[:, 0] > 0])


def samples_of(info: LayerInfo, original: Choosing, compressed: Choosing, rows: list[Tensor]) -> Any:
    names = ("score", "head")
    before, after = Replay(original, rows, names), Replay(compressed, rows, names)
    return sample_layer(info, before, after, original.get_submodule(info.name), len(rows))


def test_behind_a_choice_the_original_layer_is_asked_about_the_rows_that_were_chosen() -> None:
    torch.manual_seed(0)
    original = Choosing().eval()
    compressed = copy.deepcopy(original)
    change(compressed.score)
    change(compressed.head)
    with torch.no_grad():
        compressed.score.bias.sub_(0.3)
    rows = [torch.randn(2, 9, 4) for _ in range(3)]
    score, head = take_inventory(original, (9, 4))
    assert head.after_choice
    samples = samples_of(head, original, compressed, rows)
    with torch.inference_mode():
        for given, wanted in zip(samples.inputs, samples.targets, strict=True):
            torch.testing.assert_close(wanted, original.head(given))
    assert sum(map(len, samples.inputs)) != sum(map(len, hooked(original, "head", rows)[0]))
    plain = samples_of(score, original, compressed, rows)
    assert_same(plain.targets, hooked(original, "score", rows)[1])


def test_a_layer_that_nothing_reaches_is_told() -> None:
    model = Choosing().eval()
    with torch.no_grad():
        model.score.bias.fill_(-100.0)
    with pytest.raises(DataError, match="chooses nothing for a layer.*got head"):
        samples_of(take_inventory(model, (9, 4))[1], model, model, [torch.randn(2, 9, 4)])
