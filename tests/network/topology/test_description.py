"""A graph's plain form is read as it was written, and damage is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qaf_core.errors import ModelError
from qaf_core.network.topology.description import Edge, Node, Topology

GRAPH = Topology(
    nodes=(
        Node(name="input", kind="input", shape=(3, 8, 8)),
        Node(name='a"<b>\\', kind="layer", operation="conv2d", layer='a"<b>\\', scope="", shape=(4, 8, 8)),
        Node(name="output", kind="output"),
    ),
    edges=(
        Edge(source="input", target='a"<b>\\'),
        Edge(source='a"<b>\\', target="output", through=("relu", "view")),
    ),
)


def test_it_is_read_as_it_was_written() -> None:
    assert Topology.from_dict(json.loads(json.dumps(GRAPH.to_dict()))) == GRAPH
    assert GRAPH.sources() == {"input": (), 'a"<b>\\': ("input",), "output": ('a"<b>\\',)}


@pytest.mark.parametrize(
    "row",
    [
        None,
        {"nodes": []},
        {"nodes": [{"kind": "layer"}], "edges": []},
        {"nodes": [{"name": "a", "kind": "layer"}], "edges": [[0, 1]]},
        {"nodes": [{"name": "a", "kind": "layer"}], "edges": [[0, -1]]},
        {"nodes": [{"name": "a", "kind": "layer"}], "edges": [[0, 0, 3]]},
        {"nodes": [{"name": "a", "kind": "layer"}], "edges": [[0]]},
    ],
)
def test_damage_is_said(row: Any) -> None:
    with pytest.raises(ModelError, match="damaged description"):
        Topology.from_dict(row)
