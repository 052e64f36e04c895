"""The drawing of a network: what the boxes add up to and how they are coloured."""

from __future__ import annotations

import math

import pytest

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.network.plan.cost import original_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.review.network_map import NEUTRAL, NetworkBox, network_boxes, network_figure

INVENTORY = load_inventory(find_model("inspection/resnet20"))


def by_name(boxes: tuple[NetworkBox, ...]) -> dict[str, NetworkBox]:
    return {box.name: box for box in boxes}


@pytest.mark.parametrize("amount", ["params", "bops"])
def test_boxes_add_up_to_the_network(amount: str) -> None:
    boxes = network_boxes(INVENTORY, amount=amount)  # type: ignore[arg-type]
    leaves = [box for box in boxes if box.kind]
    whole = getattr(original_cost(INVENTORY), amount)
    assert sum(box.amount for box in leaves) == pytest.approx(whole)
    assert by_name(boxes)[""].amount == pytest.approx(whole)
    assert sum(box.share for box in leaves) == pytest.approx(1.0)
    for box in boxes:
        inside = [child for child in boxes if child.parent == box.name]
        if inside:
            assert sum(child.amount for child in inside) == pytest.approx(box.amount)


def test_boxes_keep_the_order_of_the_forward_pass() -> None:
    names = [box.name for box in network_boxes(INVENTORY, amount="bops") if box.kind]
    forward = [info.name for info in INVENTORY]
    assert names == sorted(names, key=forward.index)


def test_a_module_shows_the_worst_error_inside() -> None:
    boxes = by_name(
        network_boxes(
            INVENTORY,
            amount="params",
            errors={"layer1.0.conv1": 0.2, "layer1.0.conv2": 0.3, "layer2.0.conv1": math.nan},
        )
    )
    assert boxes["layer1.0"].error == 0.3
    assert boxes[""].error == 0.3
    assert boxes["layer2.0.conv1"].error is None
    assert boxes["layer2"].error is None


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_marks_the_fragile_layer_most(dark: bool) -> None:
    errors = {"layer1.0.conv1": 0.1, "layer3.2.conv2": 0.5}
    boxes = network_boxes(INVENTORY, amount="params", errors=errors, title="net")
    figure = network_figure(boxes, amount="params", by_error=True, dark=dark)
    (trace,) = figure.data
    fill = dict(zip(trace.ids, trace.marker.colors, strict=True))
    assert fill["conv1"] == NEUTRAL[dark]
    assert len({fill["layer1.0.conv1"], fill["layer3.2.conv2"], fill["conv1"]}) == 3
    assert trace.labels[0] == "net"
    hover = dict(zip(trace.ids, trace.hovertext, strict=True))
    assert "Layer error 50.0 %" in hover["layer3.2.conv2"]
    assert "Largest layer error 50.0 %" in hover["layer3.2"]


def test_a_network_of_one_layer_and_an_empty_one_are_drawn() -> None:
    only = LayerInfo(name="(model)", kind="linear", weight_shape=(3, 4), params=12, macs=12)
    assert [box.share for box in network_boxes([only], amount="params")] == [1.0, 1.0]
    assert network_figure(network_boxes([only], amount="params"), amount="params").data
    assert network_figure(network_boxes([], amount="params"), amount="params").data
