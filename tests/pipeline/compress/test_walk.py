"""A walk from layer to layer: the same numbers as in one go, each operation once, nothing kept in vain."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import GraphNetwork, layer_of, layers_in, observed
from qaf_core.network.graph.program import Execution
from qaf_core.network.modules.quantized import Layer
from qaf_core.pipeline.compress.walk import Segment, Walk

SHAPE = (3, 8, 8)


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


class Maps(nn.Module):
    """Puts out a dict that holds a list; its second layer is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        large = self.first(images).relu()
        return {"maps": [large, self.second(input=large).relu()]}


class Scales(nn.Module):
    """One head over maps of several sizes, as in a detector; maps and results travel in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Maps()
        self.head = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1))

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        return {"boxes": [self.head(values) for values in self.body(images)["maps"]]}


SCALES_LAYERS = ("body.first", "body.second", "head.0", "head.2")


class Strides(nn.Module):
    """One weight at two strides, another layer between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.between = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.between(self.shared(images).relu())
        return nn.functional.conv2d(values, self.shared.weight, self.shared.bias, stride=2, padding=1)


class Boxed:
    """A tensor inside an object of the network's own."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Wrapping(nn.Module):
    """Puts out what no one else can look into, and decides by value where to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))

    def forward(self, images: Tensor) -> Boxed:
        return Boxed(self.inner(images) * (2.0 if float(images.sum()) > 0 else 1.0))


class Unwrapping(nn.Module):
    """Goes on with it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Wrapping()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.body(images).values)
        return found


class Counting(nn.Module):
    """Runs its layer as often as the first pixel says, then another one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(max(int(images.flatten()[0]), 1)):
            images = self.layer(images)
        found: Tensor = self.last(images)
        return found


class Failing(nn.Module):
    """Two parts with Python between them that does not take every image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.first(images)
        if float(images.flatten()[0]) < 0:
            raise RuntimeError("no negative images")
        found: Tensor = self.second(values)
        return found


def batches(count: int = 3) -> list[Tensor]:
    """Batches of four images, the last of three."""
    images = torch.randn(4 * count - 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return list(torch.split(images, 4))


Seen = list[tuple[Tensor, Tensor]]


def seen_plainly(model: nn.Module, layer: str, images: Sequence[Tensor]) -> Seen:
    """Inputs and outputs of a layer at all calls in each batch, as the captured model runs in one go."""
    wanted, found = model.get_submodule(layer), Seen()

    def look(execution: Execution, node: Node, result: Any) -> None:
        if node.op == "call_module" and execution.root.get_submodule(str(node.target)) is wanted:
            found.append((execution.operand(node).clone(), result.clone()))

    with observed(model, look), torch.inference_mode():
        for batch in images:
            model(batch)
    return found


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """To the last bit: a walk runs the same operations on the same batches."""
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


def calls_made(work: Callable[[], object]) -> int:
    """How many times layers compute while ``work`` is done."""
    count, computed = 0, Layer.forward

    def counted(self: Layer, values: Tensor, site: int = 0) -> Tensor:
        nonlocal count
        count += 1
        return computed(self, values, site)

    Layer.forward = counted  # type: ignore[method-assign]
    try:
        work()
    finally:
        Layer.forward = computed  # type: ignore[method-assign]
    return count


# Whole networks


def captured(model: nn.Module) -> nn.Module:
    return capture(model.eval(), SHAPE)


@pytest.fixture(scope="module")
def captured_once() -> nn.Module:
    torch.manual_seed(0)
    return captured(Network())


@pytest.fixture
def network(captured_once: nn.Module) -> nn.Module:
    return copy.deepcopy(captured_once)


def only_segment(model: nn.Module, images: list[Tensor]) -> Segment:
    (segment,) = Walk(model, images).segments()
    return segment


@pytest.mark.parametrize("changes", [False, True])
@torch.inference_mode()
def test_front_to_back_each_layer_sees_what_plain_execution_sees(network: nn.Module, changes: bool) -> None:
    plain, images = copy.deepcopy(network), batches()
    segment = only_segment(network, images)
    for layer in LAYERS:
        seen, states = seen_plainly(plain, layer, images), segment.copies()
        inputs = [segment.reach(layer, call) for call in range(segment.calls(layer))]
        assert_same([values for row in zip(*inputs, strict=True) for values in row], [row[0] for row in seen])
        segment.restore(states)
        if changes:
            segment.reach(layer, 0)
            change(layer_of(network, layer))
            change(layer_of(plain, layer))
    ends = [run.finish() for run in segment.runs]
    assert_same(ends, [plain(batch) for batch in images])


@torch.inference_mode()
def test_outputs_are_those_of_the_layer(network: nn.Module) -> None:
    images = batches()
    segment = only_segment(network, images)
    for layer in ("stem", "blocks.2.conv1", "classifier"):
        outputs = segment.reach(layer, 0, after=True)
        assert_same(outputs, [row[1] for row in seen_plainly(network, layer, images)])


@torch.inference_mode()
def test_each_image_passes_each_operation_once(network: nn.Module) -> None:
    images = batches()

    def front_to_back() -> None:
        segment = only_segment(network, images)
        for layer in LAYERS:
            segment.reach(layer, 0)
        for run in segment.runs:
            run.finish()

    assert calls_made(front_to_back) == calls_made(lambda: [network(batch) for batch in images])
    assert calls_made(front_to_back) == 13 * len(images)


@torch.inference_mode()
def test_batches_that_are_not_asked_for_wait_where_they_are(network: nn.Module) -> None:
    segment = only_segment(network, batches())
    assert len(segment.reach("merge", 0, 1)) == 1
    assert [run.position > 0 for run in segment.runs] == [True, False, False]
    assert calls_made(lambda: segment.reach("classifier", 0, 1)) == 1
    assert calls_made(lambda: segment.reach("classifier", 0)) == 2 * 12


@torch.inference_mode()
def test_what_no_later_node_reads_is_freed(network: nn.Module) -> None:
    images = batches()
    segment = only_segment(network, images)
    before = [weakref.ref(values) for values in segment.reach("blocks.1.conv1", 0)]
    widest = 0
    for layer in LAYERS[4:]:
        segment.reach(layer, 0)
        widest = max(widest, *(len(run.values) for run in segment.runs))
    gc.collect()
    assert all(reference() is None for reference in before)
    assert widest <= 3  # a residual, what goes on beside it, and the shape of the images
    for run in segment.runs:
        read = {node for step in run.program.steps[run.position :] for node in step.all_input_nodes}
        assert set(run.values) <= read


@torch.inference_mode()
def test_values_that_were_reached_are_not_changed_by_what_follows(network: nn.Module) -> None:
    """The activations of the network work in place; those of the graph must not."""
    images = batches()
    copies = [batch.clone() for batch in images]
    segment = only_segment(network, images)
    reached = segment.reach("blocks.1.conv1", 0)
    kept = [values.clone() for values in reached]
    for run in segment.runs:
        run.finish()
    assert_same(reached, kept)
    assert_same(images, copies)


@torch.inference_mode()
def test_a_state_can_be_gone_back_to(network: nn.Module) -> None:
    images = batches()
    segment = only_segment(network, images)
    segment.reach("blocks.0.conv2", 0)
    states = segment.copies(2)
    first = [run.finish() for run in segment.runs]
    segment.restore(states)
    assert_same([run.finish() for run in segment.runs[:2]], first[:2])


@torch.inference_mode()
def test_a_layer_at_several_calls_is_seen_at_all_of_them() -> None:
    torch.manual_seed(0)
    model, images = captured(Scales()), batches()
    segment = only_segment(model, images)
    assert [segment.calls(layer) for layer in SCALES_LAYERS] == [1, 1, 2, 2]
    assert list(segment.layers()) == list(SCALES_LAYERS)
    large, small = segment.reach("head.0", 0), segment.reach("head.0", 1)
    seen = [row[0] for row in seen_plainly(model, "head.0", images)]
    assert_same(large, seen[::2])
    assert_same(small, seen[1::2])


@torch.inference_mode()
def test_a_layer_at_two_sites_is_told_apart() -> None:
    torch.manual_seed(0)
    model, images = captured(Strides()), batches()
    segment = only_segment(model, images)
    assert segment.sites("shared") == (0, 1)
    assert segment.sites("between") == (0,)
    inputs, outputs = segment.reach("shared", 0), segment.reach("shared", 1, after=True)
    assert inputs[0].shape[-1] == 8
    assert outputs[0].shape[-1] == 4


def test_layers_that_never_run_are_not_held(network: nn.Module) -> None:
    segment = only_segment(network, batches())
    assert "unused" not in segment.layers()
    assert "merge" in segment.layers()


def test_without_a_batch_there_is_nothing_to_hold(network: nn.Module) -> None:
    segment = only_segment(network, [])
    assert list(segment.layers()) == []


# In parts


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Look whether threads that began in a test have ended with it."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@torch.inference_mode()
def test_a_model_in_parts_is_walked_part_by_part(no_thread_left: None) -> None:
    torch.manual_seed(0)
    model, images = captured(Unwrapping()), batches()
    assert not isinstance(model, GraphNetwork)
    expected = [[row[0] for row in seen_plainly(model, layer, images)] for layer in layers_in(model)]
    plain = calls_made(lambda: [model(batch) for batch in images])
    found, paths = {}, []

    def through() -> None:
        with Walk(model, images) as walk:
            for segment in walk.segments():
                paths.append(segment.path)
                for layer in segment.layers():
                    found[layer] = segment.reach(layer, 0)

    assert calls_made(through) == plain
    assert paths == ["body.inner", "last"]
    for layer, wanted in zip(layers_in(model), expected, strict=True):
        assert_same(found[layer], wanted)


@torch.inference_mode()
def test_what_calibration_changes_reaches_the_parts_behind(no_thread_left: None) -> None:
    torch.manual_seed(0)
    model, images = captured(Unwrapping()), batches()
    first, _, last = layers_in(model)
    with Walk(model, images) as walk:
        for segment in walk.segments():
            if first in segment.layers():
                segment.reach(first, 0)
                change(layer_of(model, first))
            if last in segment.layers():
                found = segment.reach(last, 0)
    assert_same(found, [row[0] for row in seen_plainly(model, last, images)])


def walked_with_a_fault(model: nn.Module) -> None:
    with Walk(model, batches()) as walk:
        for _ in walk.segments():
            raise ZeroDivisionError


def walked(model: nn.Module, images: list[Tensor], paths: list[str]) -> None:
    """Walk to the end, and note the parts on the way."""
    with Walk(model, images) as walk:
        paths.extend(segment.path for segment in walk.segments())


@torch.inference_mode()
def test_threads_end_when_the_walk_is_left_early(no_thread_left: None) -> None:
    model = captured(Unwrapping())
    with Walk(model, batches()) as walk:
        next(walk.segments())
    with pytest.raises(ZeroDivisionError):
        walked_with_a_fault(model)


@torch.inference_mode()
def test_a_fault_of_the_network_is_raised_and_ends_all_threads(no_thread_left: None) -> None:
    model, images = captured(Failing()), [batch.abs() for batch in batches()]
    images[1] = -images[1]
    reached: list[str] = []
    with pytest.raises(RuntimeError, match="no negative images"):
        walked(model, images, reached)
    assert reached == ["first"]


@torch.inference_mode()
def test_a_fault_before_the_first_part_ends_all_threads_too(no_thread_left: None) -> None:
    model, images = captured(Counting()), [*batches(2), torch.zeros(1, 5, 8, 8)]
    with pytest.raises(ModelError, match="cannot be captured for inputs of this size"):
        walked(model, images, [])


@torch.inference_mode()
def test_a_layer_that_runs_for_one_image_and_not_for_another_is_told(no_thread_left: None) -> None:
    model, images = captured(Counting()), [torch.full((1, *SHAPE), float(count)) for count in (2, 1)]
    paths: list[str] = []
    with pytest.raises(ModelError, match="same way for every image; got last and layer; plan.* keep"):
        walked(model, images, paths)
    assert paths == ["layer"]


@torch.inference_mode()
def test_images_that_end_earlier_than_others_are_told_as_well(no_thread_left: None) -> None:
    class Ending(Counting):
        def forward(self, images: Tensor) -> Tensor:
            values = self.layer(images)
            found: Tensor = self.last(values) if float(images.flatten()[0]) >= 0 else values
            return found

    images = [torch.full((1, *SHAPE), value) for value in (1.0, -1.0)]
    with pytest.raises(ModelError, match="got its end and last"):
        walked(captured(Ending()), images, [])
