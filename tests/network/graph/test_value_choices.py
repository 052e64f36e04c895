"""Choices by value: how much they may keep, and which layers they lead to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import SIDE, detector
from torch import Tensor, nn

from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.value_choices import is_choice, keep_everything
from qaf_core.network.plan.layer_info import LayerInfo

ATEN = torch.ops.aten
NMS = torch.ops.torchvision.nms.default  # known once torchvision is imported


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("operation", "arguments", "shapes"),
    [
        (ATEN.nonzero.default, (on_meta(3, 4),), [(12, 2)]),
        (ATEN.masked_select.default, (on_meta(3, 1), on_meta(4, dtype=torch.bool)), [(12,)]),
        (ATEN.index.Tensor, (on_meta(3, 4, 5), [on_meta(3, 4, dtype=torch.bool)]), [(12, 5)]),
        (ATEN.index.Tensor, (on_meta(3, 4), [None, on_meta(4, dtype=torch.bool)]), [(3, 4)]),
        (NMS, (on_meta(7, 4), on_meta(7), 0.5), [(7,)]),
        (ATEN._unique2.default, (on_meta(7),), [(1,), (7,), (1,)]),
        (ATEN.topk.default, (on_meta(7), 3), [(3,), (3,)]),
    ],
)
def test_a_choice_without_values_keeps_everything(
    operation: Any, arguments: tuple[Any, ...], shapes: list[tuple[int, ...]]
) -> None:
    found = keep_everything(operation, arguments, {})
    found = (found,) if isinstance(found, Tensor) else found
    assert [tuple(tensor.shape) for tensor in found] == shapes
    assert is_choice(operation, arguments)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (ATEN.relu.default, (on_meta(3, 4),)),
        (ATEN.index.Tensor, (on_meta(3, 4), [on_meta(6, dtype=torch.long)])),
        (ATEN.max_pool2d_with_indices.default, (on_meta(1, 2, 4, 4), [2, 2])),
    ],
)
def test_other_operations_are_no_choices(operation: Any, arguments: tuple[Any, ...]) -> None:
    assert not is_choice(operation, arguments)
    expected, found = operation(*arguments), keep_everything(operation, arguments, {})
    assert [t.shape for t in torch.utils._pytree.tree_leaves(found)] == [
        t.shape for t in torch.utils._pytree.tree_leaves(expected)
    ]


def test_values_are_chosen_as_they_are() -> None:
    values = torch.tensor([0.0, 2.0, 0.0, 3.0])
    assert keep_everything(ATEN.nonzero.default, (values,), {}).tolist() == [[1], [3]]


class Selecting(nn.Module):
    """Gives the best tokens to one head, written among zeros to a second, and all of them to a third."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(6, 1)
        self.best = nn.Linear(6, 3)
        self.marked = nn.Linear(6, 3)
        self.every = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        index = self.score(tokens)[..., 0].topk(2, dim=1).indices
        best = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
        marked = torch.zeros_like(tokens)
        marked[:, :2] = best
        return self.best(best), self.marked(marked), self.every(tokens)


def rows_of(model: nn.Module, shape: tuple[int, ...]) -> dict[str, LayerInfo]:
    return {row.name: row for row in take_inventory(model, shape)}


def test_layers_behind_a_choice_are_known() -> None:
    rows = rows_of(Selecting(), (5, 6))
    assert {name for name, row in rows.items() if row.after_choice} == {"best", "marked"}
    assert {name for name, row in rows.items() if row.final} == {"best", "marked", "every"}


def test_a_detector_is_listed_at_its_busiest() -> None:
    rows = rows_of(detector(), (3, SIDE, SIDE))
    boxes, levels, most = 8 * 8 + 4 * 4 + 2 * 2, 3, 20
    box_head = rows["roi_heads.box_head.fc6"]
    assert box_head.after_choice
    assert box_head.macs == min(boxes, most) * 8 * 7 * 7 * 24
    assert rows["rpn.head.cls_logits"].calls == levels
    assert not rows["rpn.head.cls_logits"].after_choice
    heads = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
    assert tuple(name for name, row in rows.items() if row.final) == heads
