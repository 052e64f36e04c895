"""The proof of a capture: the captured network computes what the network does, and always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle

from qaf_core.errors import ModelError
from qaf_core.network.graph.export import RefusedNetworkError
from qaf_core.network.graph.inference import example_images, inference
from qaf_core.network.graph.network import GraphNetwork, networks_in
from qaf_core.text.said import say

PROVED_BATCHES = (1, 2, 3, 8)  # images; the last shows networks that split a batch
PROVED_BATCHES_IN_PARTS = (1, 2)  # what is captured in parts runs Python of its own for each image
TOLERANCE = 1e-4  # relative difference of outputs that rounding explains


@torch.no_grad()
def prove_capture(original: nn.Module, captured: nn.Module, input_shape: Sequence[int]) -> None:
    """Compare a captured network with its original on a few batches of noise.

    Raises:
        ModelError: If the original gives another answer the second time, or changes its own state, or if the
            captured network computes something else.
    """
    if any(tensor.device.type == "meta" for tensor in original.parameters()):
        return
    with inference(original):
        state = {name: tensor.clone() for name, tensor in original.named_buffers()}
        counts = PROVED_BATCHES if isinstance(captured, GraphNetwork) else PROVED_BATCHES_IN_PARTS
        for count in counts:
            images = _noise(original, input_shape, count)
            expected = original(images.clone())  # it may write into what it is given
            if count == counts[0] and largest_difference(expected, original(images.clone())) > 0.0:
                raise ModelError(
                    "the network does not give the same answer twice",
                    got=say("another answer for the same image"),
                    remedy="switch off what is random in a prediction, such as functional dropout",
                )
            difference = largest_difference(expected, captured(images.clone()))
            if difference > TOLERANCE and _any_batch(captured):
                _fix_batch(captured)
                difference = largest_difference(expected, captured(images.clone()))
            if difference > TOLERANCE:
                raise ModelError(
                    "the captured graph computes something else than the network",
                    got=say(
                        "a relative difference of {difference:.2g} on {count} images",
                        difference=difference,
                        count=count,
                    ),
                    expected=say("at most {tolerance:g}", tolerance=TOLERANCE),
                )
        changed = [name for name, tensor in original.named_buffers() if not _same(tensor, state.get(name))]
    if changed:
        raise RefusedNetworkError(
            "the network changes its own state while it runs",
            got=", ".join(changed[:3]),
            remedy="make its forward pass leave parameters and buffers as they are",
        )


class Answers:
    """What a model and its captured parts put out for some batches, to hold another model against.

    A detector chooses among its scores: after a change of 1e-7 it may put out other boxes. So the parts of
    the other model are compared one by one, and after each of them Python goes on with what the first model's
    part put out.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        """Run the model.

        Args:
            model: Captured, as a whole or in parts.
            batches: ``(N, C, H, W)`` each.
        """
        self._rows: list[tuple[Tensor, Any, dict[str, list[Any]]]] = []
        for batch in batches:
            parts: dict[str, list[Any]] = {name: [] for name in networks_in(model)}
            handles = [
                part.register_forward_hook(partial(_record, parts[name]))
                for name, part in networks_in(model).items()
            ]
            with _removed(handles):
                self._rows.append((batch, model(batch), parts))

    def difference(self, other: nn.Module) -> float:
        """The largest relative difference of the other model's outputs, and of its parts', over all batches;
        inf where it calls its parts in another way.
        """
        largest = 0.0
        for batch, expected, parts in self._rows:
            answers = {name: iter(calls) for name, calls in parts.items()}
            differences: list[float] = []
            handles = [
                part.register_forward_hook(partial(_compare, answers.get(name, iter(())), differences))
                for name, part in networks_in(other).items()
                if networks_in(other).keys() == parts.keys()
            ]
            with _removed(handles):
                try:
                    largest = max(largest, largest_difference(expected, other(batch)), *differences)
                except _OtherCallsError:
                    return float("inf")
            if handles and any(
                next(calls, _OtherCallsError) is not _OtherCallsError for calls in answers.values()
            ):
                return float("inf")
        return largest


class _OtherCallsError(Exception):
    """A part is called more or less often than in the first model."""


def _record(calls: list[Any], _part: nn.Module, _inputs: Any, output: Any) -> None:
    calls.append(_copied(output))


def _compare(
    answers: Iterator[Any], differences: list[float], _part: nn.Module, _inputs: Any, output: Any
) -> Any:
    expected = next(answers, _OtherCallsError)
    if expected is _OtherCallsError:
        raise _OtherCallsError
    differences.append(largest_difference(expected, output))
    return _copied(expected)


def _copied(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)


@contextmanager
def _removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noise(network: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    like = example_images(network, input_shape, 1)
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, *input_shape, generator=generator).to(like)


def largest_difference(expected: Any, actual: Any) -> float:
    """The largest relative difference between two nested outputs, over their tensors.

    Of a tensor it is that of all its numbers, or the root mean square over its channels, those of its second
    dimension or those of its last, whichever is largest: so a class masked by -1e9 does not hide the others.

    Returns:
        0 for equal outputs; inf if they differ in kind, or in where they are not finite.
    """
    before, after = tree_flatten(expected)[0], tree_flatten(actual)[0]
    if len(before) != len(after):
        return float("inf")
    return max((_difference(one, two) for one, two in zip(before, after, strict=True)), default=0.0)


def _difference(one: Any, two: Any) -> float:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return 0.0 if type(one) is type(two) and bool(one == two) else float("inf")
    if one.shape != two.shape:
        return float("inf")
    if _same(one, two):
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    first, second = one.to(wide), two.to(wide)
    odd = ~first.isfinite()
    if not torch.equal(odd, ~second.isfinite()) or not _same(
        first[odd].nan_to_num(), second[odd].nan_to_num()
    ):
        return float("inf")
    change = (first - second).masked_fill(odd, 0).abs().square()
    size = first.masked_fill(odd, 0).abs().square()
    overall = math.sqrt(float(change.sum()) / max(float(size.sum()), 1e-60))
    return max((overall, *(_by_channel(change, size, dim) for dim in {1, one.ndim - 1} if one.ndim > 1)))


def _by_channel(change: Tensor, size: Tensor, dim: int) -> float:
    """The root mean square over channels of ``change`` over ``size``, both squares of a tensor's numbers.

    A channel smaller than half of the others counts as large as those.
    """
    others = [other for other in range(size.ndim) if other != dim]
    change, size = change.sum(others), size.sum(others)
    alive = size[size > 0]
    least = float(alive.median()) if len(alive) else 0.0
    return float((change / size.clamp_min(max(least, 1e-60))).mean().sqrt())


def _same(one: Tensor, two: Tensor | None) -> bool:
    return two is not None and one.shape == two.shape and bool(torch.equal(one, two))


def _any_batch(model: nn.Module) -> bool:
    parts = networks_in(model).values()
    return any(program.any_batch for part in parts for program in part.graph_programs.values())


def _fix_batch(model: nn.Module) -> None:
    """Let every part be captured anew for each number of images."""
    for part in networks_in(model).values():
        part.fix_batch_size()
