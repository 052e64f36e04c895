"""Changed images are made of the given ones, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qaf_core.pipeline.finetune.augment import flipped, mixed, shifted


@pytest.mark.parametrize("change", [flipped, shifted, mixed])
def test_changed_images_are_made_of_the_given_ones(change: Callable[..., Tensor]) -> None:
    given = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (change(given, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == given.shape
    assert not torch.equal(first, given)
    assert float(first.max()) <= float(given.max())
    assert float(first.min()) >= float(given.min())


def test_images_are_moved_or_mirrored_only() -> None:
    """Columns of an image that holds its own column number tell how far it went."""
    given, generator = torch.arange(16.0).expand(64, 1, 16, 16), torch.Generator().manual_seed(0)
    for image in shifted(flipped(given, generator), generator):
        row = image[0, 0]
        steps = row.diff()
        assert set(steps.tolist()) <= {0.0, 1.0} or set(steps.tolist()) <= {0.0, -1.0}
        assert int((steps == 0).sum()) <= 2
        assert torch.equal(image[0], row.expand(16, 16))
