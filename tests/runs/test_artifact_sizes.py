"""A network read from a file computes with the file's tensors for inputs of sizes it meets later, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qaf_core.deploy.packed.read import load_packed
from qaf_core.deploy.packed.write import save_packed
from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory

SHAPE = (3, 8, 8)
CARD = {"model": "tests/net", "input_shape": list(SHAPE)}


class OneByOne(nn.Module):
    """Loops over its images, so that every number of them needs a graph; its factors are written in place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3)
        self.factors = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, images: Tensor) -> Tensor:
        factors = self.factors.clone()
        factors[0] = 2.0
        return torch.stack([self.conv(image[None])[0] * factors for image in images])


class ByCount(OneByOne):
    """Has parameters of its own for five images."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.more = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        made = super().forward(images)
        return self.more(made) if len(images) == 5 else made


def read_back(folder: Path, model: nn.Module, fresh: nn.Module) -> tuple[nn.Module, nn.Module]:
    captured = capture(model, SHAPE)
    path = folder / "model.safetensors"
    save_packed(path, captured, take_inventory(captured, SHAPE), CARD)
    return captured, load_packed(path, fresh)


@torch.no_grad()
def test_computed_tensors_come_from_the_file(tmp_path: Path) -> None:
    captured, loaded = read_back(tmp_path, OneByOne(0), OneByOne(1))
    for count in (2, 4, 5):
        images = torch.rand(count, *SHAPE)
        torch.testing.assert_close(loaded(images), captured(images), rtol=5e-3, atol=5e-3)


@torch.no_grad()
def test_what_the_file_does_not_hold_is_not_made_up(tmp_path: Path) -> None:
    _, loaded = read_back(tmp_path, ByCount(0), ByCount(1))
    loaded(torch.rand(4, *SHAPE))
    with pytest.raises(ModelError, match="which its file does not hold"):
        loaded(torch.rand(5, *SHAPE))
