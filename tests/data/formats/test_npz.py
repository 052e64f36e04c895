"""Arrays of images too large to be unpacked; what else can be wrong with them is in test_datasets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qaf_core.data.formats import npz
from qaf_core.data.formats.npz import load_npz
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import DataError
from tests.model_sources import fed

SMALL = replace(fed(find_model("inspection/resnet20"), crop=(6, 8)), classes=("left", "right"))


@pytest.fixture
def zeros(tmp_path: Path) -> Path:
    """576 kB that pack to less than a hundredth."""
    np.savez_compressed(tmp_path / "a\x1b.npz", x=np.zeros((4000, 6, 8, 3), np.uint8), y=np.zeros(4000, int))
    return tmp_path / "a\x1b.npz"


def test_what_packs_well_is_read_while_it_is_small(zeros: Path) -> None:
    assert len(load_npz(zeros, SMALL)) == 4000


@pytest.mark.parametrize(("limit", "value"), [("RATIO_FROM_BYTES", 1000), ("LARGEST_BYTES", 500_000)])
def test_bombs_are_refused_before_they_are_unpacked(
    zeros: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(npz, limit, value)
    monkeypatch.setattr(npz, "LARGEST_RATIO", 10)
    with pytest.raises(DataError, match=r"a\\x1b.npz unpacks to too much; got .* bytes that unpack to 608,"):
        load_npz(zeros, SMALL)


def test_images_that_only_calibrate_need_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=np.zeros((4, 6, 8, 3), np.uint8))
    assert load_npz(tmp_path / "bare.npz", SMALL, labelled=False).labels.tolist() == [0] * 4
    with pytest.raises(DataError, match="lacks array y"):
        load_npz(tmp_path / "bare.npz", SMALL)
