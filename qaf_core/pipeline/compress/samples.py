"""What each layer is calibrated on, layer after layer, in one walk through two networks side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from qaf_core.errors import DataError, ModelError
from qaf_core.network.graph.network import GraphNetwork, layer_of, layers_in, networks_in, observed
from qaf_core.network.graph.nodes import site_of
from qaf_core.network.graph.program import Execution
from qaf_core.pipeline.compress.walk import Segment, Walk
from qaf_core.pipeline.divergence import SMALLEST, class_scores, output_divergence
from qaf_core.text.said import say

LARGEST_STATE = 80_000_000  # numbers that the batches at one layer hold, its inputs and what waits (320 MB)


@dataclass(frozen=True, kw_only=True)
class LayerSamples:
    """What a layer is calibrated on.

    Attributes:
        inputs: What reaches it in the compressed network, one tensor per batch and call.
        targets: What it should put out, likewise.
        originals: What reaches it in the original network, likewise; behind a choice the inputs themselves;
            empty: not known.
        calls: Tensors that belong to one batch; 1 behind a choice, where some may be missing.
        sites: Which of the layer's operations each of these calls is; behind a choice that of each tensor.
        ahead: The rest of the original network; None where it cannot be run from here.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    originals: list[Tensor] = field(default_factory=list)
    calls: int = 1
    sites: tuple[int, ...] = (0,)
    ahead: Ahead | None = None


class Ahead:
    """What follows a layer in the original network, up to its answers.

    Class scores count as they are and divided by their own spread: of images that a network knows by heart
    nearly all divergence comes from the few that it is not sure of.

    Args:
        segment: The whole network, standing behind the layer.
        layer: Called once in it.
        answers: The original's by batch, as far as they are known; filled here.
    """

    def __init__(self, segment: Segment, layer: str, answers: dict[int, Any]) -> None:
        self._segment, self._layer, self._answers = segment, layer, answers

    def divergence(self, outputs: Mapping[int, Tensor]) -> float:
        """How far the answers move where the layer puts out other tensors, given by batch."""
        plain = smooth = 0.0
        for batch, output in outputs.items():
            if batch not in self._answers:
                self._answers[batch] = self._segment.finish_copy(batch)
            answers = self._answers[batch]
            moved = self._segment.finish_copy(batch, self._layer, output)
            plain += output_divergence(answers, moved) * len(output)
            smooth += output_divergence(answers, moved, _spread(answers)) * len(output)
        return math.sqrt(plain * smooth) / max(sum(map(len, outputs.values())), 1)


def _spread(answers: Any) -> float:
    scores = class_scores(answers)
    return 1.0 if scores is None else max(float(scores.std()), SMALLEST)


Visit = Callable[[str, LayerSamples], None]


@torch.inference_mode()
def walk_layers(
    original: nn.Module,
    compressed: nn.Module | None,
    batches: Sequence[Tensor],
    counts: Mapping[str, int],
    visit: Visit,
    *,
    after_choice: Collection[str] = (),
) -> None:
    """Visit layers front to back, each with what it sees in the compressed network as it is by then.

    The targets are what the layer puts out in the original network, so that a fit repairs the errors of the
    layers before it too. Behind a choice, as of boxes, the rows of the two networks do not belong together:
    there the targets are what the original layer makes of the compressed network's inputs. A layer that runs
    several times in one pass, as a detector's head on every scale, is seen at all of its calls.

    Args:
        original: Captured, in evaluation mode.
        compressed: Likewise; ``visit`` may change the layer it is called for. None: the original itself.
        batches: Images ``(B, C, H, W)``.
        counts: Layer -> how many batches it is shown at most.
        visit: Called once for each layer.
        after_choice: Layers behind a choice by value.

    Raises:
        ModelError: If a layer does not run, or the images take different ways.
        DataError: If nothing reaches a layer on any image.
    """
    batches = _even_batches(original, batches)
    open_layers = set(counts)
    later = _later_calls(original, batches, counts)
    answers: dict[int, Any] | None = {} if isinstance(original, GraphNetwork) else None
    with Walk(original, batches) as before, Walk(compressed or original, batches) as after:
        pairs = zip(before.segments(), after.segments(), strict=False) if compressed is not None else (
            (segment, segment) for segment in before.segments()
        )  # fmt: skip
        for first, second in pairs:
            if first.path != second.path:
                raise ModelError(
                    "the compressed network takes another way than the original",
                    got=say(
                        "{path} where that runs {path2}",
                        path=second.path or "the whole",
                        path2=first.path or "the whole",
                    ),
                    remedy="plan the layers before that place as keep",
                )
            for name in [name for name in second.layers() if name in open_layers]:
                open_layers.discard(name)
                chosen = name in after_choice
                samples = _samples(name, first, second, original, counts[name], later, chosen)
                if answers is not None and samples.calls == 1 and not chosen:
                    samples = replace(samples, ahead=Ahead(first, name, answers))
                visit(name, samples)
            if not open_layers:
                return
    if open_layers:
        name = min(open_layers)
        raise ModelError("the layer does not run in a forward pass", got=name, remedy="plan it as keep")


def _even_batches(model: nn.Module, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """The batches without a smaller last one, which would run through another graph where the network fixes
    the number of images.
    """
    programs = [program for part in networks_in(model).values() for program in part.graph_programs.values()]
    uneven = len(batches) > 1 and len(batches[-1]) < len(batches[0])
    return batches[:-1] if uneven and not all(program.any_batch for program in programs) else batches


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what it takes in, what it should put out, which of its operations it is, and what
    it takes in in the original network.
    """

    values: Tensor
    target: Tensor
    site: int
    original: Tensor


def _calls(
    name: str, before: Segment, after: Segment, original: nn.Module, count: int, chosen: bool
) -> list[list[_Call]]:
    """The layer's calls in one segment, by batch."""
    sites = after.sites(name)
    inputs = _at_all_calls(after, name, count, outputs=False)
    if chosen:
        layer = layer_of(original, name)
        targets = [[layer(values, site) for values in row] for row, site in zip(inputs, sites, strict=True)]
        originals = inputs
    else:
        originals = _at_all_calls(before, name, count, outputs=False)
        targets = _at_all_calls(before, name, count, outputs=True)
    by_batch = zip(*(zip(*rows, strict=True) for rows in (inputs, targets, originals)), strict=True)
    return [
        [_Call(*call) for call in zip(operands, put_out, sites, firsts, strict=True)]
        for operands, put_out, firsts in by_batch
    ]


def _samples(
    name: str,
    before: Segment,
    after: Segment,
    original: nn.Module,
    count: int,
    later: Sequence[dict[str, list[_Call]]],
    chosen: bool,
) -> LayerSamples:
    """One batch after the other, its calls next to each other; those of later calls are given away."""
    count = min(count, max(after.room(name, LARGEST_STATE), 2))
    batches = _calls(name, before, after, original, count, chosen)
    for batch, more in zip(batches, later, strict=False):
        batch += more.pop(name, ())
    flat = [call for batch in batches for call in batch if call.values.numel() or not chosen]
    if not flat:
        raise DataError(
            "the network chooses nothing for a layer on any calibration image",
            got=name,
            remedy="give images that show what the network looks for, or plan the layer as keep",
        )
    calls = 1 if chosen else len(batches[0])
    return LayerSamples(
        inputs=[call.values for call in flat],
        targets=[call.target for call in flat],
        originals=[call.original for call in flat],
        calls=calls,
        sites=tuple(call.site for call in (flat if chosen else batches[0])),
    )


def _later_calls(
    original: nn.Module, batches: Sequence[Tensor], counts: Mapping[str, int]
) -> list[dict[str, list[_Call]]]:
    """For each batch, calls of layers in a part that Python calls again, without those of its first call.

    A layer is visited at its part's first call. What it takes in later is not known by then in the compressed
    network, so what it takes in in the original stands for it.
    """
    later: list[dict[str, list[_Call]]] = []
    if isinstance(original, GraphNetwork):
        return later
    modules = layers_in(original)
    names = {id(modules[name]): name for name in counts}
    first: dict[str, Execution] = {}

    def look(execution: Execution, node: Node, result: Tensor) -> None:
        if node.op != "call_module":
            return
        name = names.get(id(execution.root.get_submodule(str(node.target))))
        if name is None or len(later) > counts[name] or first.setdefault(name, execution) is execution:
            return
        later[-1].setdefault(name, []).append(
            _Call(execution.operand(node), result, site_of(node), execution.operand(node))
        )

    with observed(original, look):
        for batch in batches[: max(counts.values(), default=0)]:
            first.clear()
            later.append({})
            original(batch)
    return later


def _at_all_calls(segment: Segment, name: str, count: int, *, outputs: bool) -> list[list[Tensor]]:
    """What a layer takes in, or puts out, at each of its calls; the segment stands at its first call after.

    Behind it, if it is the only one and has been run.
    """
    calls = segment.calls(name)
    if calls == 1:
        return [segment.reach(name, 0, count, after=outputs)]
    segment.reach(name, 0, count)
    states = segment.copies(count)
    tensors = [segment.reach(name, call, count, after=outputs) for call in range(calls)]
    segment.restore(states)  # layers between its calls are still to be visited
    return tensors
