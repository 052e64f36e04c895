"""The drawing's text: what a layer becomes, and names that would break it."""

from __future__ import annotations

import itertools
import re

import pytest

from qaf_core.data.models.catalogue import find_model, load_structure
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.network.topology.description import Edge, Node, Topology
from qaf_core.review.network_graph import measures
from qaf_core.review.network_graph.dot import LOOKS, WORD_JOINER, Drawing, dot_text
from qaf_core.review.network_graph.view import view_of
from qaf_core.text.units import count_text

INVENTORY, TOPOLOGY = load_structure(find_model("inspection/resnet20"))
CP = LayerPlan(name="layer1.0.conv1", structure="cp", rank=12, bits=(8, 4, 3))
PLAN = Plan(
    model="inspection/resnet20",
    layers=(
        *(
            LayerPlan(name=info.name, structure="keep")
            for info in INVENTORY
            if info.planned and info.name not in (CP.name, "layer1.0.conv2")
        ),
        CP,
        LayerPlan(name="layer1.0.conv2", structure="dense", bits=5),
    ),
)


def drawing(topology: Topology, inventory: tuple[LayerInfo, ...], **options: object) -> Drawing:
    view = view_of(topology)
    measure = measures.params_of(inventory, None, [info.name for info in inventory])
    return Drawing(
        view=view, inventory={info.name: info for info in inventory}, measure=measure, told=count_text,
        scale=measures.scale_for(measure, [measure.of(box.layers) for box in view.boxes], False),
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def rows_of(text: str, title: str) -> list[str]:
    """The lines in the first box with a title."""
    line = next(line for line in text.splitlines() if f"<B>{title}</B>" in line)
    return re.findall(r"<FONT[^>]*>(?:<B>)?([^<]*)", line)


def test_a_layer_is_told_as_it_is() -> None:
    assert TOPOLOGY is not None
    text = dot_text(drawing(TOPOLOGY, INVENTORY))
    assert rows_of(text, "linear")[:2] == ["linear", "64→8"]
    assert rows_of(text, "conv2") == ["conv2", "3×3 16→16", "2.34 k"]
    assert text.count("->") == len(TOPOLOGY.edges)
    assert text.count("shape=ellipse") == 9
    assert text.count("subgraph") == 3 + 9


def test_a_replaced_layer_opens_into_its_links() -> None:
    assert TOPOLOGY is not None
    text = dot_text(drawing(TOPOLOGY, INVENTORY, plan=PLAN))
    first = next(line for line in text.splitlines() if "dw 12→12" in line)
    links = re.findall(r">([^<>]*·[^<>]*)<", first)
    # Factors are C_out×12 (8 bits), C_in×12 (4 bits), 9×12 (3 bits); the second runs first, at 64×64 pixels.
    assert links == [
        "1×1 16→12 · 4 bit · 786 kMACs", "3×3 dw 12→12 · 3 bit · 442 kMACs", "1×1 12→16 · 8 bit · 786 kMACs",
    ]  # fmt: skip
    assert "3×3 16→16 · 5 bit · 9.44 MMACs" in text


def test_the_chosen_layer_stands_out() -> None:
    assert TOPOLOGY is not None
    text = dot_text(drawing(TOPOLOGY, INVENTORY, highlighted="layer2.0.conv1"))
    (marked,) = (line for line in text.splitlines() if LOOKS[False].accent in line)
    assert "layer2.0.conv1" in marked


HOSTILE = (
    'a"]; evil [label="x',
    "<img src=x onerror=alert(1)>",
    "</TABLE>> -> n0",
    "back\\slash\\",
    "\\N \\G",
    "line\nbreak\x00\u202e",
    "&lt;&amp;",
    "層" * 60,
    "]]>",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    layer = LayerInfo(name=f"b.{name}", kind="linear", weight_shape=(3, 4), params=12, macs=12)
    nodes = (
        Node(name="input", kind="input", shape=(4,)),
        Node(name=layer.name, kind="layer", operation="linear", layer=layer.name, scope=f"b.{name}"),
        Node(name=f"{name}:{name}", kind="merge", operation=name, scope=f"b.{name}"),
        Node(name="output", kind="output"),
    )
    ends = [node.name for node in nodes]
    edges = tuple(Edge(source=a, target=b, through=(name,)) for a, b in itertools.pairwise(ends))
    text = dot_text(drawing(Topology(nodes=nodes, edges=edges), (layer,)))
    # Every line is a statement of its own; outside strings and labels only our own words remain.
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    bare = re.sub(r"label=<<TABLE.*?</TABLE>>", "", bare)
    assert set(re.findall(r"[a-z_]+(?==)", bare)) <= {
        "rankdir", "bgcolor", "nodesep", "ranksep", "fontname", "fontsize", "fontcolor", "labeljust", "shape",
        "style", "margin", "height", "color", "penwidth", "arrowsize", "tooltip", "label", "fillcolor",
        "width", "peripheries",
    }  # fmt: skip
    assert bare.count("->") == len(edges)
    assert "evil" not in bare
    labels = re.findall(r"label=<(<TABLE.*?</TABLE>)>", text)
    assert not any("<img" in label or re.search(r"\\[A-Za-z]", label) for label in labels)
    assert all(sign.isprintable() or sign in ("\n", WORD_JOINER) for sign in text)
