"""Layers, merges and the edges between them, as plain data. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qaf_core.errors import ModelError
from qaf_core.records import Record, from_plain

INPUT, OUTPUT, LAYER, MERGE = "input", "output", "layer", "merge"
CODE = "code"  # operation of a merge in Python, between captured parts


@dataclass(frozen=True, kw_only=True)
class Node(Record):
    """One call of a layer, a place where branches meet, the network's input, or its output.

    Attributes:
        name: No other node has it.
        kind: ``input``, ``output``, ``layer`` or ``merge``.
        operation: Of a layer its kind in the inventory, of a merge what it does: ``add``, ``cat``, ``mul`` …
        layer: Of a layer the name of its inventory row, which all its calls share; empty of others.
        scope: Path of the module in whose forward pass it stands; empty for the network itself.
        shape: Of what it puts out, without the images.
    """

    name: str
    kind: str
    operation: str = ""
    layer: str = ""
    scope: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one node puts out reaches another.

    Attributes:
        source, target: Names of the nodes.
        through: Element-wise operations, normalisations and views on the way, in order.
    """

    source: str
    target: str
    through: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A network's nodes in the order they run, and its edges; those of one target in the order it reads."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: a row for each node without its defaults, edges by the numbers of nodes."""
        numbers = {node.name: number for number, node in enumerate(self.nodes)}
        return {
            "nodes": [{key: value for key, value in node.to_dict().items() if value} for node in self.nodes],
            "edges": [[numbers[edge.source], numbers[edge.target], *edge.through] for edge in self.edges],
        }

    @classmethod
    def from_dict(cls, row: Any) -> Topology:
        """Read what ``to_dict`` wrote.

        Raises:
            ModelError: If it is damaged.
        """
        try:
            nodes = tuple(from_plain(Node, node) for node in row["nodes"])
            edges = tuple(_edge(nodes, edge) for edge in row["edges"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                "damaged description of a network's graph",
                got=f"{type(error).__name__}: {error}"[:120],
                remedy="take the inventory again from the model",
            ) from error
        return cls(nodes=nodes, edges=edges)

    def node(self, name: str) -> Node:
        """The node of a name; a KeyError where there is none."""
        return self.by_name()[name]

    def by_name(self) -> Mapping[str, Node]:
        """All nodes by name."""
        return {node.name: node for node in self.nodes}

    def sources(self) -> dict[str, tuple[str, ...]]:
        """What each node reads, in its order."""
        sources: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for edge in self.edges:
            sources[edge.target].append(edge.source)
        return {name: tuple(names) for name, names in sources.items()}


def _edge(nodes: Sequence[Node], row: Sequence[Any]) -> Edge:
    source, target, *through = row
    if not all(isinstance(n, int) and 0 <= n < len(nodes) for n in (source, target)):
        raise ValueError(f"edge {row!r:.60}")
    return Edge(
        source=nodes[source].name, target=nodes[target].name, through=from_plain(tuple[str, ...], through)
    )
