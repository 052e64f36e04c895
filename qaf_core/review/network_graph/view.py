"""What of a network's graph is drawn: blocks stand for what is in them until they are opened.

A block is a module that holds several nodes. Small networks are open from the start; of large ones as many
levels as a page can show.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qaf_core.network.topology.description import LAYER, MERGE, Edge, Node, Topology

BLOCK = "block"
MOST_BOXES = 40  # that are drawn without being asked for
CAT = "cat"


@dataclass(frozen=True, kw_only=True)
class Box:
    """One thing that is drawn.

    Attributes:
        name: Of the node, or the block's path.
        kind: The node's, or ``block``.
        title: The name without the blocks it is drawn in.
        operation: The node's.
        layers: Inventory rows that stand in it, each once.
        merges: How many merges a block holds.
        within: The open blocks around it, outermost first.
        shape: What leaves the node, without the images; empty for blocks.
    """

    name: str
    kind: str
    title: str
    operation: str = ""
    layers: tuple[str, ...] = ()
    merges: int = 0
    within: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """Data that goes from one box to another: what it passes, and its shape."""

    source: str
    target: str
    through: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class View:
    """Boxes in the order they run, and the arrows between them.

    Attributes:
        boxes, arrows: What is drawn.
        opened: The blocks that are open.
        closed: The blocks that stand as one box, in the order they run.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    opened: frozenset[str]
    closed: tuple[str, ...]


def view_of(topology: Topology, *, chosen: Iterable[str] = (), most: int = MOST_BOXES) -> View:
    """What is drawn of a network.

    Args:
        topology: The network.
        chosen: Blocks to open beside those that are open from the start.
        most: Boxes that may be drawn without being asked for.
    """
    topology = joined_stepwise(topology)
    blocks = {path for chain in _homes(topology).values() for path in chain}
    topology = _apart_from(blocks, topology)
    homes = _homes(topology)
    opened = set(_open_at_first(homes, most))
    for path in chosen:
        opened |= {block for block in blocks if path == block or path.startswith(f"{block}.")}
    boxes, place = _boxes(topology.nodes, homes, opened)
    closed = tuple(box.name for box in boxes if box.kind == BLOCK)
    return View(boxes=tuple(boxes), arrows=_arrows(topology, place), opened=frozenset(opened), closed=closed)


def blocks_of(topology: Topology) -> tuple[str, ...]:
    """All blocks there are, in the order they run, outer ones first."""
    return tuple(dict.fromkeys(path for chain in _homes(topology).values() for path in chain))


def home_of(topology: Topology, layer: str) -> tuple[str, ...]:
    """The blocks around a layer, outermost first: what has to be open to see it."""
    homes = _homes(joined_stepwise(topology))
    return next((homes[node.name] for node in topology.nodes if node.layer == layer), ())


def joined_stepwise(topology: Topology) -> Topology:
    """The same network, a concatenation of what another one begins with read from that one.

    In a dense block every layer reads all before it: n layers make n²/2 edges, which nobody can follow. Read
    step by step, each concatenation adds one input to the one before; it then stands beside the layers that
    share it.
    """
    reads: dict[str, list[Edge]] = {node.name: [] for node in topology.nodes}
    for edge in topology.edges:
        reads[edge.target].append(edge)
    first: dict[tuple[tuple[str, tuple[str, ...]], ...], Node] = {}
    scopes: dict[str, str] = {}
    for node in topology.nodes:
        if node.kind != MERGE or node.operation != CAT:
            continue
        inputs = tuple((edge.source, edge.through) for edge in reads[node.name])
        begun = next((n for n in range(len(inputs) - 1, 1, -1) if inputs[:n] in first), None)
        first.setdefault(inputs, node)
        if begun is not None:
            step = first[inputs[:begun]]
            reads[node.name] = [Edge(source=step.name, target=node.name), *reads[node.name][begun:]]
            scopes[step.name] = _common(scopes.get(step.name, step.scope), node.scope)
    nodes = (replace(node, scope=scopes.get(node.name, node.scope)) for node in topology.nodes)
    return Topology(nodes=tuple(nodes), edges=tuple(edge for edges in reads.values() for edge in edges))


def _apart_from(blocks: Collection[str], topology: Topology) -> Topology:
    """The same network, a node that is called as a block is (``input``, ``output``, ``add``) renamed."""
    taken = {*blocks, *topology.by_name()}
    names: dict[str, str] = {}
    for node in topology.nodes:
        if node.name in blocks:
            free = (f"{node.name} ({number})" for number in range(2, len(taken) + 3))
            names[node.name] = next(name for name in free if name not in taken)
            taken.add(names[node.name])
    if not names:
        return topology
    nodes = (replace(node, name=names.get(node.name, node.name)) for node in topology.nodes)
    edges = (
        replace(edge, source=names.get(edge.source, edge.source), target=names.get(edge.target, edge.target))
        for edge in topology.edges
    )
    return Topology(nodes=tuple(nodes), edges=tuple(edges))


def _common(one: str, other: str) -> str:
    parts: list[str] = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)


def _homes(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Node -> the blocks it stands in, outermost first; modules of one node, or of all, are no blocks."""
    inside: dict[str, list[str]] = {}
    for node in topology.nodes:
        for path in _above(node.scope):
            inside.setdefault(path, []).append(node.name)
    whole = sum(node.kind in (LAYER, MERGE) for node in topology.nodes)
    innermost = {tuple(names): path for path, names in inside.items()}  # a module around one other is skipped
    blocks = {path for names, path in innermost.items() if 1 < len(names) < whole}
    return {node.name: tuple(p for p in _above(node.scope) if p in blocks) for node in topology.nodes}


def _above(scope: str) -> tuple[str, ...]:
    parts = scope.split(".") if scope else []
    return tuple(".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _open_at_first(homes: Mapping[str, Sequence[str]], most: int) -> Collection[str]:
    """As many levels of blocks as make no more than so many boxes."""
    opened: set[str] = set()
    for depth in range(max(map(len, homes.values()), default=0) + 1):
        deeper = {path for chain in homes.values() for path in chain[:depth]}
        count = len({_standing(name, chain, deeper) for name, chain in homes.items()})
        if count > most:
            break
        opened = deeper
    return opened


def _standing(name: str, chain: Sequence[str], opened: Collection[str]) -> tuple[str, str]:
    """What stands for a node: the outermost closed block around it, or itself."""
    closed = next((path for path in chain if path not in opened), None)
    return ("node", name) if closed is None else (BLOCK, closed)


def _boxes(
    nodes: Sequence[Node], homes: Mapping[str, tuple[str, ...]], opened: Collection[str]
) -> tuple[list[Box], dict[str, str]]:
    """The boxes, and node -> name of its box."""
    members: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        members.setdefault(_standing(node.name, homes[node.name], opened), []).append(node)
    boxes, place = [], {}
    for (kind, name), inside in members.items():
        first = inside[0]
        within = tuple(path for path in homes[first.name] if path in opened and path != name)
        box = Box(
            name=name, kind=BLOCK if kind == BLOCK else first.kind, title=_title(name, within),
            operation="" if kind == BLOCK else first.operation,
            layers=tuple(dict.fromkeys(node.layer for node in inside if node.layer)),
            merges=sum(node.kind == MERGE for node in inside), within=within,
            shape=() if kind == BLOCK else first.shape,
        )  # fmt: skip
        boxes.append(box)
        place.update({node.name: box.name for node in inside})
    return boxes, place


def _title(name: str, within: Sequence[str]) -> str:
    around = within[-1] if within else ""
    return name[len(around) + 1 :] if around and name.startswith((f"{around}.", f"{around}:")) else name


def _arrows(topology: Topology, place: Mapping[str, str]) -> tuple[Arrow, ...]:
    """One arrow for all edges between two boxes; none inside one."""
    shapes = {node.name: node.shape for node in topology.nodes}
    arrows: dict[tuple[str, str], Arrow] = {}
    for edge in topology.edges:
        ends = place[edge.source], place[edge.target]
        if ends[0] != ends[1]:
            arrows.setdefault(
                ends,
                Arrow(source=ends[0], target=ends[1], through=edge.through, shape=shapes[edge.source]),
            )
    return tuple(arrows.values())
