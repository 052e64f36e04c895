"""What each layer is calibrated on, layer after layer, in one walk through two networks side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, ModelError
from qaf_core.network.graph.network import layer_of
from qaf_core.pipeline.walk import Segment, Walk


@dataclass(frozen=True, kw_only=True)
class LayerSamples:
    """What a layer is calibrated on.

    Attributes:
        inputs: What reaches it in the compressed network, one tensor per batch and call.
        targets: What it should put out, likewise.
        calls: Tensors that belong to one batch; 1 behind a choice, where some may be missing.
        sites: Which of the layer's operations each of these calls is; behind a choice that of each tensor.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    calls: int
    sites: tuple[int, ...]


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
        counts: Layer -> how many batches it is shown.
        visit: Called once for each layer.
        after_choice: Layers behind a choice by value.

    Raises:
        ModelError: If a layer does not run, or the images take different ways.
        DataError: If nothing reaches a layer on any image.
    """
    open_layers = set(counts)
    with Walk(original, batches) as before, Walk(compressed or original, batches) as after:
        pairs = zip(before.segments(), after.segments(), strict=True) if compressed is not None else (
            (segment, segment) for segment in before.segments()
        )  # fmt: skip
        for first, second in pairs:
            for name in [name for name in second.layers() if name in open_layers]:
                open_layers.discard(name)
                _visit(name, first, second, original, counts[name], visit, name in after_choice)
            if not open_layers:
                return
    if open_layers:
        name = min(open_layers)
        raise ModelError("the layer does not run in a forward pass", got=name, remedy="plan it as keep")


def _visit(
    name: str, before: Segment, after: Segment, original: nn.Module, count: int, visit: Visit, chosen: bool
) -> None:
    calls, sites = after.calls(name), after.sites(name)
    inputs = _at_all_calls(after, name, count, outputs=False)
    if chosen:
        layer = layer_of(original, name)
        targets = [[layer(values, site) for values in row] for row, site in zip(inputs, sites, strict=True)]
    else:
        targets = _at_all_calls(before, name, count, outputs=True)
    # One batch after the other, its calls next to each other.
    flat_inputs = [values for row in zip(*inputs, strict=True) for values in row]
    flat_targets = [values for row in zip(*targets, strict=True) for values in row]
    if chosen:
        kept = [index for index, values in enumerate(flat_inputs) if values.numel()]
        if not kept:
            raise DataError(
                "the network chooses nothing for a layer on any calibration image",
                got=name,
                remedy="give images that show what the network looks for, or plan the layer as keep",
            )
        flat_inputs, flat_targets = [flat_inputs[i] for i in kept], [flat_targets[i] for i in kept]
        calls, sites = 1, tuple(sites[index % calls] for index in kept)
    del inputs, targets
    visit(name, LayerSamples(inputs=flat_inputs, targets=flat_targets, calls=calls, sites=sites))


def _at_all_calls(segment: Segment, name: str, count: int, *, outputs: bool) -> list[list[Tensor]]:
    """What a layer takes in, or puts out, at each of its calls; the segment stands at its first call after.

    Behind it, if it is the only one and has been run.
    """
    calls = segment.calls(name)
    if calls == 1:
        return [segment.reach(name, 0, count, after=outputs)]
    segment.reach(name, 0, count)
    states = segment.copies(count)
    found = [segment.reach(name, call, count, after=outputs) for call in range(calls)]
    segment.restore(states)  # layers between its calls are still to be visited
    return found
