"""Which exchanged layers hand their outputs to the next one only, so that they can round them themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qaf_core.network.layers import ACTIVATION_LEVELS, FactorizedLayer

Grid = tuple[float, int]
_ATEN = torch.ops.aten
# Put out numbers of their input and no others: rounding before them is rounding after them.
_CHOOSING = {
    _ATEN.max_pool2d_with_indices.default, _ATEN.max_pool2d.default, _ATEN.adaptive_max_pool2d.default,
    _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints,
    _ATEN.permute.default, _ATEN.transpose.int, _ATEN.squeeze.dim, _ATEN.unsqueeze.default,
    _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.alias.default, _ATEN.detach.default,
}  # fmt: skip
_POSITIVE_PARTS = {_ATEN.relu.default, _ATEN.relu_.default}
_CLIPS = {_ATEN.hardtanh.default, _ATEN.hardtanh_.default, _ATEN.clamp.default, _ATEN.clamp_.default}


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of chains through one forward pass.

    Attributes:
        takers: Chain -> those that take its output, perhaps pooled or cut off below.
        bounds: Chain -> the limits its output is cut off at on the way.
        others: Chains whose output something else takes, too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.takers: dict[FactorizedLayer, set[FactorizedLayer]] = {}
        self.bounds: dict[FactorizedLayer, list[tuple[float, float]]] = {}
        self.others: set[FactorizedLayer] = set()
        self._made_by: dict[int, FactorizedLayer] = {}
        self._alive: list[Tensor] = []
        self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if not self._inside:
            for maker in self._makers((args, kwargs)):
                self._follow(maker, func, args, kwargs, outputs)
        return outputs

    def _follow(self, maker: FactorizedLayer, func: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        if func in _POSITIVE_PARTS:
            self.bounds.setdefault(maker, []).append((0.0, float("inf")))
        elif func in _CLIPS:
            self.bounds.setdefault(maker, []).append(_limits(func, args, kwargs))
        elif func not in _CHOOSING:
            self.others.add(maker)
            return
        self.made(maker, outputs[0] if isinstance(outputs, tuple) else outputs)

    def made(self, maker: FactorizedLayer, output: Tensor) -> None:
        """Remember whose numbers a tensor holds."""
        self._made_by[id(output)] = maker
        self._alive.append(output)  # so that no other tensor gets its id

    def enter(self, chain: FactorizedLayer, inputs: tuple[Any, ...]) -> None:
        """A chain takes its input."""
        self._inside = True
        maker = self._made_by.get(id(inputs[0])) if inputs else None
        if maker is not None:
            self.takers.setdefault(maker, set()).add(chain)

    def leave(self, chain: FactorizedLayer, output: Tensor) -> None:
        """A chain has put out."""
        self._inside = False
        self.made(chain, output)

    def finish(self, outputs: Any) -> None:
        """What the network itself puts out is taken by others."""
        self.others |= self._makers(outputs)

    def _makers(self, tree: Any) -> set[FactorizedLayer]:
        return {self._made_by[id(leaf)] for leaf in tree_leaves(tree) if id(leaf) in self._made_by}


def _limits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, float]:
    defaults = (-1.0, 1.0) if func in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default) else (None, None)
    low = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val", defaults[0]))
    high = args[2] if len(args) > 2 else kwargs.get("max", kwargs.get("max_val", defaults[1]))
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def connect_chains(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Let chains round their outputs for the chains that take them, where nothing else does.

    The outputs stay the same, but for those that lie between two codes. An integer runtime then never leaves
    whole numbers on the way from one layer to the next.

    Args:
        model: With chains that compute on codes; changed in place.
        input_shape: (C, H, W) of one image.

    Returns:
        How many chains round their outputs.
    """
    chains = [part for part in model.modules() if isinstance(part, FactorizedLayer) and part.runs_on_codes]
    if len(chains) < 2:
        return 0
    flow = _Flow()
    with _hooks(chains, flow), torch.no_grad(), flow:
        flow.finish(model(torch.zeros(1, *input_shape)))
    grids = {chain: _common_grid(chain, flow) for chain in chains}
    for chain, grid in grids.items():
        if grid is not None:
            chain.use_codes(grid)
    return sum(chain.output_grid is not None for chain in chains)


@contextmanager
def _hooks(chains: Sequence[FactorizedLayer], flow: _Flow) -> Iterator[None]:
    handles = [chain.register_forward_pre_hook(flow.enter) for chain in chains]
    handles += [
        chain.register_forward_hook(lambda chain, _inputs, output: flow.leave(chain, output))
        for chain in chains
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _common_grid(chain: FactorizedLayer, flow: _Flow) -> Grid | None:
    """The one grid that all takers of a chain's output round it to; None if there is no such grid."""
    found = {taker.chain[0].input_quantizer.grid for taker in flow.takers.get(chain, ())}
    if chain in flow.others or len(found) != 1:
        return None
    (grid,) = found
    if grid is None or not all(_holds(grid, limits) for limits in flow.bounds.get(chain, ())):
        return None
    return grid


def _holds(grid: Grid, limits: tuple[float, float]) -> bool:
    """Whether rounding to the grid alone keeps values within the limits."""
    (step, zero), (low, high) = grid, limits
    above = low == float("-inf") or -zero >= round(low / step)
    return above and (high == float("inf") or ACTIVATION_LEVELS - zero <= round(high / step))
