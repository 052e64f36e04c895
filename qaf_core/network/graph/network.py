"""A captured network: its layers and tensors by name, and one program for each size of input it has met."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from qaf_core.errors import ModelError
from qaf_core.network.graph.program import Execution, Observer, Program
from qaf_core.network.modules.quantized import BatchNorm, FactorizedLayer, Layer

Signature = tuple[Any, ...]


class Capturer(Protocol):
    """Makes programs for inputs of further sizes."""

    def __call__(self, network: GraphNetwork, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Program:
        """A program for these arguments, over the network's layers."""
        ...

    def fix_batch_size(self) -> None:
        """Make programs for one number of images each."""
        ...


class GraphNetwork(nn.Module):
    """A network as programs over layers and tensors that all programs share.

    These have the names of the network; its own attributes are named as no part of a network is.

    Args:
        capture_again: Makes the program for inputs of a size that no program takes.

    Attributes:
        graph_programs: By the shapes they take; the first dimension is open where any number goes in.
        taken_up_parameters: Names of parameters that only a computed constant follows from.
        absent_parameters: Shapes of the original's parameters that no prediction reads, by name.
        absent_layer_kinds: Kinds of the layers of PyTorch among those that own such parameters, by name.
        first_computed_values: Its tensors computed from parameters, as they were when first captured.
        read_from_file: Its tensors have been read from a file, and are no longer those it was captured with.
        step_observer: Told of every step of every run; None: nobody is.
    """

    def __init__(self, capture_again: Capturer) -> None:
        super().__init__()
        self._capture_again = capture_again
        self.graph_programs: dict[Signature, Program] = {}
        self.absent_parameters: dict[str, tuple[int, ...]] = {}
        self.absent_layer_kinds: dict[str, str] = {}
        self.taken_up_parameters: set[str] = set()
        self.first_computed_values: dict[str, Tensor] = {}
        self.read_from_file = False
        self.step_observer: Observer | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        twin = GraphNetwork(self._capture_again)
        memo[id(self)] = twin
        twin.training = self.training
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            twin.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        twin.graph_programs, twin.taken_up_parameters = (
            dict(self.graph_programs),
            set(self.taken_up_parameters),
        )
        twin.absent_parameters, twin.absent_layer_kinds = self.absent_parameters, self.absent_layer_kinds
        twin.first_computed_values, twin.read_from_file = (
            dict(self.first_computed_values),
            self.read_from_file,
        )
        return twin

    @property
    def main_program(self) -> Program:
        """The program it was captured with first."""
        return next(iter(self.graph_programs.values()))

    def graph_program_for(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Program:
        """The program for a call's arguments; made now, if there is none yet.

        Raises:
            ModelError: If the network cannot be captured for such inputs.
        """
        leaves, spec = tree_flatten((tuple(args), dict(kwargs or {})))
        for any_batch in (True, False):
            key = signature(leaves, spec, any_batch=any_batch)
            if key in self.graph_programs:
                return self.graph_programs[key]
        program = self._capture_again(self, args, kwargs or {})
        self.graph_programs[signature(leaves, spec, any_batch=program.any_batch)] = program
        return program

    def fix_batch_size(self) -> None:
        """Have programs for one number of images each from now on."""
        self._capture_again.fix_batch_size()
        self.graph_programs = {
            key: program for key, program in self.graph_programs.items() if not program.any_batch
        }

    def start_run(self, *args: Any, **kwargs: Any) -> Execution:
        """Begin a run that can be stopped at any node."""
        leaves, _ = tree_flatten((args, kwargs))
        return self.graph_program_for(args, kwargs).start(self, leaves, self.step_observer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes."""
        run = self.start_run(*args, **kwargs)
        runner = _runners.get(threading.get_ident())
        return run.finish() if runner is None else runner(self, run)


Runner = Callable[[GraphNetwork, Execution], Any]
_runners: dict[int, Runner] = {}


@contextlib.contextmanager
def delegated(runner: Runner) -> Iterator[None]:
    """Let somebody else run the captured parts that this thread comes to."""
    _runners[threading.get_ident()] = runner
    try:
        yield
    finally:
        _runners.pop(threading.get_ident(), None)


@contextlib.contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Tell somebody of every step that the captured parts of a model run."""
    parts = list(networks_in(model).values())
    for part in parts:
        part.step_observer = observer
    try:
        yield
    finally:
        for part in parts:
            part.step_observer = None


def signature(leaves: Sequence[Any], spec: TreeSpec, *, any_batch: bool) -> Signature:
    """What distinguishes calls that need programs of their own."""
    rows: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            shape = tuple(leaf.shape)
            rows.append((str(leaf.dtype), (None, *shape[1:]) if any_batch and shape else shape))
        else:
            rows.append(("value", leaf if isinstance(leaf, bool | int | float | str | None) else repr(leaf)))
    return (str(spec), any_batch, *rows)


def networks_in(model: nn.Module) -> dict[str, GraphNetwork]:
    """The captured parts of a model by their paths: the model itself, or parts of a detector."""
    return {name: part for name, part in model.named_modules() if isinstance(part, GraphNetwork)}


def layers_in(model: nn.Module) -> dict[str, Layer]:
    """The layers of a captured model that are as they were, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Layer)}


def chains_in(model: nn.Module) -> dict[str, FactorizedLayer]:
    """The layers of a captured model that have become chains, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, FactorizedLayer)}


def norms_in(model: nn.Module) -> dict[str, BatchNorm]:
    """The BatchNorms of a captured model, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, BatchNorm)}


def layer_of(model: nn.Module, name: str) -> Layer:
    """One layer as it was.

    Raises:
        ModelError: If there is none of this name, or it has become a chain.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError("no such layer in the network", got=name) from error
    if not isinstance(layer, Layer):
        raise ModelError("the layer is not as it was", got=f"{name}, {type(layer).__name__}")
    return layer


def is_captured(model: nn.Module) -> bool:
    """Whether a model has been captured, as a whole or in parts."""
    return any(isinstance(part, GraphNetwork) for part in model.modules())


def first_tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in a nested value."""
    for leaf in tree_flatten(values)[0]:
        if isinstance(leaf, torch.Tensor):
            yield leaf
