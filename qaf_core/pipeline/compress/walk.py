"""A captured network on many batches at once, from layer to layer: what calibration goes along.

Every batch stands at some node of the graph and goes on when it is asked for; what no later node reads is
freed. So each image passes each operation once, whatever number of layers is visited, and images that an
early layer does not look at wait at the beginning, where they are small.

Of a detector only parts are captured. Its Python runs in one thread for each batch, which halts whenever it
calls a captured part until the walk has gone through that part with all batches.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.network.graph.network import GraphNetwork, delegated, first_tensors, networks_in
from qaf_core.network.graph.nodes import site_of
from qaf_core.network.graph.program import Execution


@dataclass(kw_only=True)
class Segment:
    """One call of a captured part, with all batches.

    Attributes:
        path: Where the part stands in the model; empty for the whole.
        runs: One for each batch.
    """

    path: str
    runs: list[Execution]

    def layers(self) -> Iterator[str]:
        """Names of all that is called here, in the order of the first calls."""
        for name in self.runs[0].program.calls if self.runs else ():
            yield f"{self.path}.{name}" if self.path else name

    def calls(self, layer: str) -> int:
        """How often the layer runs here."""
        return len(self.runs[0].program.calls[self._local(layer)])

    def sites(self, layer: str) -> tuple[int, ...]:
        """Which of the layer's operations each call is."""
        nodes = self.runs[0].program.calls[self._local(layer)]
        return tuple(site_of(node) for node in nodes)

    def reach(self, layer: str, call: int, count: int | None = None, *, after: bool = False) -> list[Tensor]:
        """Bring the first batches to a call of a layer: its inputs there, or ``after`` it its outputs."""
        tensors = []
        for run in self.runs[:count]:
            node = run.program.calls[self._local(layer)][call]
            position = run.program.index(node)
            if after:
                run.run_to(position)
                result = run.compute(node)
                run.accept(node, result)
                tensors.append(result)
            else:
                run.run_to(position)
                tensors.append(run.operand(node))
        return tensors

    def finish_copy(self, batch: int, layer: str | None = None, output: Tensor | None = None) -> Any:
        """The results of one batch from where it stands, perhaps with another output of the layer run last;
        the batch itself stays there.
        """
        run = self.runs[batch].copy()
        if layer is not None:
            run.values[run.program.calls[self._local(layer)][0]] = output
        return run.finish()

    def room(self, layer: str, largest: int) -> int:
        """How many batches may come to a layer's first call holding no more than ``largest`` numbers."""
        if not self.runs:
            return 0
        self.reach(layer, 0, 1)
        run = self.runs[0]
        values = [value for node, value in run.values.items() if node.op != "get_attr"]
        numbers = sum(tensor.numel() for tensor in first_tensors(values))
        return largest // max(numbers, 1)

    def copies(self, count: int | None = None) -> list[Execution]:
        """The state of the first batches, to come back to."""
        return [run.copy() for run in self.runs[:count]]

    def restore(self, states: Sequence[Execution]) -> None:
        """Go back to states of the first batches."""
        self.runs[: len(states)] = states

    def _local(self, layer: str) -> str:
        return layer[len(self.path) + 1 :] if self.path else layer


class Walk:
    """Goes through a model with all batches, part by part; use as a context manager.

    Args:
        model: Captured, in evaluation mode.
        batches: Inputs ``(B, C, H, W)``.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self._model, self._batches = model, batches
        self._drivers: list[_Driver] = []

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self._drivers:
            driver.abandon()

    def segments(self) -> Iterator[Segment]:
        """Every call of a captured part in turn; what the caller leaves open of one is run before the next.

        Raises:
            ModelError: If the batches do not take the same way.
        """
        if isinstance(self._model, GraphNetwork):
            yield Segment(path="", runs=[self._model.start_run(batch) for batch in self._batches])
            return
        self._drivers, reached = [], []
        for batch in self._batches:  # one after the other: their Python parts shall not run at once
            self._drivers.append(_Driver(self._model, batch))
            reached.append(self._drivers[-1].next_call())
        while any(call is not None for call in reached):
            segment = _joined(reached)
            yield segment
            reached = []
            for driver, run in zip(self._drivers, segment.runs, strict=True):
                driver.hand_back(run.finish())
                reached.append(driver.next_call())


def _joined(reached: Sequence[tuple[str, Execution] | None]) -> Segment:
    """The part that all batches have come to."""
    paths = {None if call is None else call[0] for call in reached}
    if len(paths) != 1:
        raise ModelError(
            "the network does not take the same way for every image",
            got=" and ".join(sorted(str(path or "its end") for path in paths)),
            remedy="plan the layers behind that place as keep",
        )
    return Segment(path=next(iter(paths)) or "", runs=[call[1] for call in reached if call is not None])


class _Abandoned(BaseException):
    """The walk has ended before the network did."""


class _Driver:
    """Runs a model on one batch in a thread, halting at every captured part."""

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self._calls: SimpleQueue[tuple[str, Execution] | BaseException | None] = SimpleQueue()
        self._results: SimpleQueue[Any] = SimpleQueue()
        self._paths: Mapping[GraphNetwork, str] = {part: path for path, part in networks_in(model).items()}
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(_own_python(model), batch), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, batch: Tensor) -> None:
        try:
            with torch.inference_mode(), delegated(self._hand_over):
                model(batch)
            self._calls.put(None)
        except BaseException as error:
            self._calls.put(None if isinstance(error, _Abandoned) else error)

    def _hand_over(self, network: GraphNetwork, run: Execution) -> Any:
        self._calls.put((self._paths[network], run))
        result = self._results.get()
        if result is _ABANDONED:
            raise _Abandoned
        return result

    def next_call(self) -> tuple[str, Execution] | None:
        """The captured part the model has come to; None at its end."""
        if self._ended:
            return None
        call = self._calls.get()
        if isinstance(call, BaseException):
            self._ended = True
            raise call
        self._ended = call is None
        return call

    def hand_back(self, result: Any) -> None:
        """Let the model go on with what a part put out."""
        self._results.put(result)

    def abandon(self) -> None:
        """End the thread."""
        if not self._ended:
            self._results.put(_ABANDONED)
        self._thread.join()


def _own_python(model: nn.Module) -> nn.Module:
    """A copy whose Python may leave values on its modules; captured parts and tensors are shared."""
    shared = (*networks_in(model).values(), *model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(thing): thing for thing in shared})


_ABANDONED = object()
