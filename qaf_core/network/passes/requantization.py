"""Which exchanged layers hand their outputs to the next one only, so that they can round them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.fx import Node

from qaf_core.network.graph.network import GraphNetwork, networks_in
from qaf_core.network.graph.nodes import operator_of
from qaf_core.network.modules.quantized import FactorizedLayer, Folded
from qaf_core.quantization.grid import ACTIVATION_GRID, Qparams

# Put out numbers of their input and no others: rounding before them is rounding after them.
CHOOSING = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose",
    "squeeze", "unsqueeze", "clone", "contiguous", "alias", "detach",
)  # fmt: skip
_CLIPS = {"hardtanh": (-1.0, 1.0), "relu6": (0.0, 6.0), "clamp": (None, None), "clamp_min": (None, None)}


@dataclass
class _Readers:
    """What takes the output of a chain, perhaps pooled or cut off on the way."""

    chains: set[FactorizedLayer] = field(default_factory=set)
    bounds: list[tuple[float, float]] = field(default_factory=list)
    others: bool = False


def connect_chains(model: nn.Module) -> int:
    """Let chains round their outputs for the chains that take them, where nothing else does.

    The outputs stay the same, but for those that lie between two codes. An integer runtime then never leaves
    whole numbers on the way from one layer to the next.

    Args:
        model: Captured, with chains that compute on codes; changed in place.

    Returns:
        How many chains round their outputs.
    """
    by_chain: dict[FactorizedLayer, _Readers] = {}
    for network in networks_in(model).values():
        for program in network.graph_programs.values():
            for name, nodes in program.calls.items():
                chain = network.get_submodule(name)
                if isinstance(chain, FactorizedLayer) and chain.runs_on_codes:
                    readers = by_chain.setdefault(chain, _Readers())
                    for node in nodes:
                        _follow(node, network, readers)
    for chain, readers in by_chain.items():
        qparams = _common_qparams(readers)
        if qparams is not None:
            chain.use_codes(qparams)
    return sum(chain.output_qparams is not None for chain in by_chain)


def _follow(node: Node, network: GraphNetwork, readers: _Readers) -> None:
    for user in node.users:
        module = network.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, FactorizedLayer):
            readers.chains.add(module)
        elif isinstance(module, Folded):
            _follow(user, network, readers)
        elif user.op != "call_function":
            readers.others = True
        else:
            _follow_operation(user, node, network, readers)


def _follow_operation(user: Node, node: Node, network: GraphNetwork, readers: _Readers) -> None:
    name = operator_of(user)
    first = str(user.target) == "<built-in function getitem>" and user.args[1] == 0
    if not user.args or user.args[0] is not node:
        readers.others = True
    elif name == "relu":
        readers.bounds.append((0.0, float("inf")))
        _follow(user, network, readers)
    elif name in _CLIPS:
        readers.bounds.append(_limits(name, user.args[1:]))
        _follow(user, network, readers)
    elif name in CHOOSING or first:
        _follow(user, network, readers)
    else:
        readers.others = True


def _limits(name: str, arguments: Sequence[object]) -> tuple[float, float]:
    low, high = (*arguments, *_CLIPS[name][len(arguments) :])[:2]
    below = float(low) if isinstance(low, int | float) else float("-inf")
    return below, float(high) if isinstance(high, int | float) else float("inf")


def _common_qparams(readers: _Readers) -> Qparams | None:
    """Scale and zero point that all readers round a chain's output to; None if they differ."""
    candidates = {chain.chain[0].input_quantizer.qparams for chain in readers.chains}
    if readers.others or len(candidates) != 1:
        return None
    (qparams,) = candidates
    if qparams is None or not all(_holds(qparams, limits) for limits in readers.bounds):
        return None
    return qparams


def _holds(qparams: Qparams, limits: tuple[float, float]) -> bool:
    """Whether rounding alone keeps values within the limits."""
    (step, zero), (low, high) = qparams, limits
    above = low == float("-inf") or -zero >= round(low / step)
    return above and (high == float("inf") or ACTIVATION_GRID.high - zero <= round(high / step))
