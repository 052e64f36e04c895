"""Stopping a network at a layer, again and again, without paying for the whole way each time.

Calibration goes through the layers front to back and needs, for each, what reaches it. A module whose layers
are all done gives the same output on every later pass: it is computed once and replayed. So the way through
all layers costs about as much as one forward pass, for any network whose modules run once each. A layer that
runs several times in one pass, as a detector's head on every scale, is seen at all of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from qaf_core.errors import DataError, ModelError
from qaf_core.network.inventory import LayerInfo

_KEPT_AS_IS = (
    Tensor,
    bool,
    int,
    float,
    str,
    type(None),
)  # what the leaves of an output may be, to be replayed


class _Reached(Exception):
    """The wanted layer has been reached: nothing after it needs to run."""


class Replay:
    """Runs a network on fixed batches up to a layer.

    Args:
        model: In evaluation mode; restored by :meth:`close`.
        batches: Inputs ``(B, C, H, W)``, the same on every pass.
        layers: Names of the layers that will be visited, in the order of the visits; a module is replayed
            once all of its layers have been marked done.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], layers: Sequence[str]) -> None:
        self._model = model
        self._batches = batches
        self._open = set(layers)
        self._outputs: dict[str, dict[int, Any]] = {}
        self._batch = 0
        self._calls: dict[str, int] = {}
        self._forwards: dict[str, Callable[..., Any]] = {}
        self._known: dict[str, int] = {}
        self._once = self._modules_to_record(layers)

    def _modules_to_record(self, layers: Sequence[str]) -> set[str]:
        """The layers and modules above them that run once in a forward pass and put out what can be kept."""
        above = {name.rpartition(".")[0] for name in layers}
        for name in list(above):
            while name:
                name = name.rpartition(".")[0]
                above.add(name)
        above |= set(layers)
        above.discard("")
        counts = dict.fromkeys(above, 0)
        opaque: set[str] = set()
        handles = []
        for name in above:

            def count(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                counts[name] += 1
                if not all(isinstance(leaf, _KEPT_AS_IS) for leaf in tree_leaves(output)):
                    opaque.add(name)

            handles.append(self._model.get_submodule(name).register_forward_hook(count))
        with torch.inference_mode():
            self._model(self._batches[0][:1])
        for handle in handles:
            handle.remove()
        self._known = counts
        return {name for name, count in counts.items() if count == 1} - opaque

    def done(self, layer: str) -> None:
        """Mark a layer as final: it will not change any more."""
        self._open.discard(layer)

    def calls(self, layer: str) -> int:
        """How often the layer runs in one forward pass."""
        return self._known.get(layer, 0)

    def inputs(self, layer: str, batches: int | None = None) -> list[Tensor]:
        """What reaches the layer: the tensors of all its calls in each of the first ``batches`` batches.

        Args:
            layer: One of those named at the start.
            batches: None: all.

        Returns:
            ``calls(layer)`` tensors for each batch, one batch after the other.

        Raises:
            ModelError: If the layer does not run, or not as often for every image.
        """
        return self._run(layer, batches, wants_input=True)

    def outputs(self, layer: str, batches: int | None = None) -> list[Tensor]:
        """What the layer puts out, likewise."""
        return self._run(layer, batches, wants_input=False)

    @torch.inference_mode()
    def _run(self, layer: str, batches: int | None, *, wants_input: bool) -> list[Tensor]:
        calls = self.calls(layer)
        if calls == 0:
            raise ModelError("the layer does not run in a forward pass", got=layer, remedy="plan it as keep")
        captured: list[Tensor] = []
        expected = 0

        def catch(tensor: Tensor) -> None:
            captured.append(
                tensor if calls == 1 else tensor.clone()
            )  # the pass goes on, and may work in place
            if len(captured) == expected:
                raise _Reached

        target = self._model.get_submodule(layer)
        if wants_input:
            handles = [target.register_forward_pre_hook(_input_catcher(catch), with_kwargs=True)]
        else:
            handles = [target.register_forward_hook(lambda _module, _inputs, output: catch(output))]
        handles += [self._recorder(name) for name in self._final()]
        try:
            for index, batch in enumerate(self._batches[:batches]):
                self._batch = index
                expected += calls
                try:
                    self._model(batch)
                except _Reached:
                    continue
                raise ModelError(
                    "the layer does not run as often for every image",
                    got=f"{layer}, {len(captured) - expected + calls} calls",
                    expected=f"{calls} calls, as for the first image",
                    remedy="plan it as keep",
                )
        finally:
            for handle in handles:
                handle.remove()
        self._replay_recorded()
        return captured

    def _final(self) -> list[str]:
        """Outermost modules whose layers are all done."""
        final = [
            name
            for name in self._once
            if not any(layer == name or layer.startswith(name + ".") for layer in self._open)
        ]
        return [name for name in final if not any(name.startswith(other + ".") for other in final)]

    def _recorder(self, name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            stored = self._outputs.setdefault(name, {})
            if self._batch not in stored:
                stored[self._batch] = tree_map(_compact, output)

        return self._model.get_submodule(name).register_forward_hook(record)

    def _replay_recorded(self) -> None:
        """Put a replayer in place of every recorded module; once it has all batches, drop those inside it."""
        for name, stored in list(self._outputs.items()):
            if name not in self._forwards and stored:
                self._forwards[name] = module_forward = self._model.get_submodule(name).forward
                self._model.get_submodule(name).forward = self._replayer(stored, module_forward)
            if len(stored) == len(self._batches):
                for inner in [n for n in self._forwards if n.startswith(name + ".")]:
                    self._restore(inner)

    def _replayer(self, stored: dict[int, Any], forward: Callable[..., Any]) -> Callable[..., Any]:
        def replay(*inputs: Any, **named: Any) -> Any:
            if self._batch in stored:
                return tree_map(_restored, stored[self._batch])
            return forward(*inputs, **named)

        return replay

    def _restore(self, name: str) -> None:
        del self._model.get_submodule(name).forward
        del self._forwards[name]
        self._outputs.pop(name, None)

    def close(self) -> None:
        """Give the network its own forward functions back and free what was recorded."""
        for name in list(self._forwards):
            self._restore(name)


def _input_catcher(catch: Callable[[Tensor], None]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        catch(next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor)))

    return hook


def _compact(output: Any) -> Any:
    """A copy, in half precision where that holds the values: its rounding is far below that of 8 bits."""
    if not isinstance(output, Tensor):
        return output
    if output.dtype == torch.float32 and output.numel() and float(output.abs().max()) < 3e4:
        return output.half()
    return output.clone()


def _restored(kept: Any) -> Any:
    if not isinstance(kept, Tensor):
        return kept
    return kept.float() if kept.dtype == torch.half else kept.clone()


@dataclass(frozen=True, kw_only=True)
class LayerSamples:
    """What a layer is calibrated on.

    Attributes:
        inputs: What reaches its chain in the compressed network, one tensor per batch and call.
        targets: What it should put out, likewise.
        calls: Tensors that belong to one batch.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    calls: int


def sample_layer(
    info: LayerInfo, before: Replay, after: Replay, original: nn.Module, count: int
) -> LayerSamples:
    """What a layer sees in the compressed network, and what the original makes of it.

    The targets are what the layer puts out in the original network, so that a fit repairs the errors of the
    layers before it too. Behind a choice, as of boxes, the rows of the two networks do not belong together:
    there the targets are what the original layer makes of the compressed network's inputs.

    Args:
        info: The layer's row.
        before: Of the original network.
        after: Of the compressed network.
        original: The layer in the original network.
        count: Batches to look at.

    Raises:
        ModelError: If the layer does not run, or not as often for every image.
        DataError: If nothing reaches the layer on any image.
    """
    inputs, calls = after.inputs(info.name, count), after.calls(info.name)
    if not info.after_choice:
        return LayerSamples(inputs=inputs, targets=before.outputs(info.name, count), calls=calls)
    inputs = [values for values in inputs if values.numel()]
    if not inputs:
        raise DataError(
            "the network chooses nothing for a layer on any calibration image",
            got=info.name,
            remedy="give images that show what the network looks for, or plan the layer as keep",
        )
    with torch.inference_mode():
        return LayerSamples(inputs=inputs, targets=[original(values) for values in inputs], calls=1)
