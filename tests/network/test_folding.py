"""BatchNorm folded: the same outputs, the original untouched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qaf_core.network.folding import fold_batchnorm
from qaf_core.network.inventory import take_inventory


def trained(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Normalisations with statistics, factors and shifts of their own."""
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(3):
        model(torch.randn(32, *shape, generator=generator) * 2 + 1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 2.0, generator=generator)
            nn.init.uniform_(norm.bias, -1.0, 1.0, generator=generator)
    return model.eval()


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), nn.Linear(6, 2),
    )  # fmt: skip


def test_folding_changes_no_output() -> None:
    torch.manual_seed(0)
    model = trained(convolutions(), (3, 12, 12))
    inventory = take_inventory(model, (3, 12, 12))
    images: Tensor = torch.randn(8, 3, 12, 12)
    with torch.inference_mode():
        wanted = model(images)
        folded = fold_batchnorm(model, inventory)
        torch.testing.assert_close(folded(images), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(images), wanted)
    gone = {info.name for info in inventory if info.folded_into is not None}
    assert gone == {"1", "4", "7"}
    for name in gone:
        assert isinstance(folded.get_submodule(name), nn.Identity)
        assert not isinstance(model.get_submodule(name), nn.Identity)


def test_what_does_not_follow_its_layer_at_once_stays() -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), (3, 8, 8))
    folded = fold_batchnorm(model, take_inventory(model, (3, 8, 8)))
    assert isinstance(folded.get_submodule("2"), nn.BatchNorm2d)
