"""Rows read off captured networks: of parts, of normalisations, and of parameters that nothing reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import BY_BATCH, NOT_RUN, norm_parameters, take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.quantized import swap_layer
from qaf_core.pipeline.check.equivalence import exact_chain

SHAPE = (4, 8, 8)


class Deciding(nn.Module):
    """Looks at values between two parts; a third one and a parameter are never read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
        self.head, self.spare = nn.Sequential(nn.Linear(6, 3)), nn.Linear(2, 2)
        self.own = nn.Parameter(torch.ones(5))

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images).mean((2, 3))
        scores: Tensor = self.head(found if float(found.sum()) < 1e9 else -found)
        return scores


def test_rows_of_parts_are_named_by_their_whole_paths() -> None:
    rows = {row.name: row for row in take_inventory(Deciding(), SHAPE)}
    assert list(rows)[:3] == ["body.0", "body.1", "head.0"]
    assert rows["body.1"].folded_into == "body.0"
    assert rows["head.0"].final
    assert {name for name, row in rows.items() if not row.calls} == {"spare", "(model)"}
    assert rows["spare"].skip_reason == rows["(model)"].skip_reason == NOT_RUN
    assert sum(row.params for row in rows.values()) == sum(p.numel() for p in Deciding().parameters())


def test_a_batchnorm_by_the_batch_is_told_and_stays() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    row = take_inventory(model, SHAPE)[-1]
    assert (row.name, row.kind, row.structures, row.folded_into) == ("1", "batchnorm", (), None)
    assert row.skip_reason == BY_BATCH
    assert (row.params, row.macs) == (12, 2 * 6 * 36)


def test_the_parameters_of_all_normalisations() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(6), nn.PReLU(6),
        nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6, affine=False),
    )  # fmt: skip
    found = {id(tensor) for tensor in norm_parameters(capture(model, SHAPE))}
    wanted = {id(tensor) for index in (1, 2, 3, 5) for tensor in model[index].parameters()}
    assert found == wanted


def test_a_compressed_network_has_no_inventory() -> None:
    network = capture(nn.Sequential(nn.Conv2d(4, 6, 3)), SHAPE)
    swap_layer(network, "0", exact_chain(layer_of(network, "0"), "svd"))
    with pytest.raises(ModelError, match="compressed already"):
        take_inventory(network, SHAPE)
