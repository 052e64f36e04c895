"""Random networks through capture, compression, packed file and INT8 ONNX; see ``benchmarks/fuzz.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import fuzz

SEEDS = (1000, 1001, 1004)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What is said of each network."""
    folder = tmp_path_factory.mktemp("fuzz")
    return {seed: fuzz.try_network(seed, folder, export=True) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_comes_out_right_or_is_refused_in_words(seed: int, told: dict[int, str]) -> None:
    assert told[seed] == "right" or told[seed].startswith("refused: ")


def test_most_random_networks_come_out_right(told: dict[int, str]) -> None:
    assert sum(words == "right" for words in told.values()) > len(SEEDS) / 2


def test_a_wrong_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LARGEST_ERROR", 0.0)  # 8 bits always lose something
    assert fuzz.try_network(1000, tmp_path, export=False).startswith("WRONG: scores are off by")


def test_a_file_holds_scalars_and_leaves_out_what_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.gain, self.head = nn.Parameter(torch.randn(())), nn.Linear(4, 10)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.head((self.first(images) * self.gain).mean((2, 3)))
            return scores

    def build(_seed: int, weights: int) -> nn.Module:
        torch.manual_seed(weights)
        return Scaled().eval()

    monkeypatch.setattr(fuzz, "build", build)
    assert fuzz.try_network(0, tmp_path, export=True) == "right"
