"""Stopping a network at a layer, again and again, without paying for the whole way each time.

Calibration goes through the layers front to back and needs, for each, what reaches it. A module whose layers
are all done gives the same output on every later pass: it is computed once and replayed. So the way through
all layers costs about as much as one forward pass, for any network whose modules run once each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError


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
        self._once = self._modules_that_run_once(layers)

    def _modules_that_run_once(self, layers: Sequence[str]) -> set[str]:
        """Modules above the layers that are entered exactly once in a forward pass."""
        above = {name.rpartition(".")[0] for name in layers}
        for name in list(above):
            while name:
                name = name.rpartition(".")[0]
                above.add(name)
        above |= set(layers)
        above.discard("")
        counts = dict.fromkeys(above, 0)
        handles = []
        for name in above:

            def count(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                counts[name] += 1

            handles.append(self._model.get_submodule(name).register_forward_pre_hook(count))
        with torch.inference_mode():
            self._model(self._batches[0][:1])
        for handle in handles:
            handle.remove()
        self._known = counts
        return {name for name, count in counts.items() if count == 1}

    def done(self, layer: str) -> None:
        """Mark a layer as final: it will not change any more."""
        self._open.discard(layer)

    def inputs(self, layer: str, batches: int | None = None) -> list[Tensor]:
        """What reaches the layer, one tensor for each of the first ``batches`` batches (None: all)."""
        return self._run(layer, batches, wants_input=True)

    def outputs(self, layer: str, batches: int | None = None) -> list[Tensor]:
        """What the layer puts out, likewise."""
        return self._run(layer, batches, wants_input=False)

    @torch.inference_mode()
    def _run(self, layer: str, batches: int | None, *, wants_input: bool) -> list[Tensor]:
        if self._known.get(layer, 0) == 0:
            raise ModelError("the layer does not run in a forward pass", got=layer, remedy="plan it as keep")
        captured: list[Tensor] = []

        def catch_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            captured.append(inputs[0])
            raise _Reached

        def catch_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
            captured.append(output)
            raise _Reached

        target = self._model.get_submodule(layer)
        handles = [
            target.register_forward_pre_hook(catch_input)
            if wants_input
            else target.register_forward_hook(catch_output)
        ]
        handles += [self._recorder(name) for name in self._final()]
        try:
            for index, batch in enumerate(self._batches[:batches]):
                self._batch = index
                try:
                    self._model(batch)
                except _Reached:
                    continue
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
            if isinstance(output, Tensor) and self._batch not in stored:
                stored[self._batch] = _compact(output)

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

    def _replayer(self, stored: dict[int, Tensor], forward: Callable[..., Any]) -> Callable[..., Any]:
        def replay(*inputs: Any, **named: Any) -> Any:
            if self._batch in stored:
                kept = stored[self._batch]
                return kept.float() if kept.dtype == torch.half else kept.clone()
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


def _compact(output: Tensor) -> Tensor:
    """A copy, in half precision where that holds the values: its rounding is far below that of 8 bits."""
    if output.dtype == torch.float32 and float(output.abs().max()) < 3e4:
        return output.half()
    return output.clone()
