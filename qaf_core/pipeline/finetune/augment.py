"""Images as they might have been taken too: mirrored, moved, mixed with each other."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_SHIFT = 1 / 8  # of the image's side


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images ``(B, C, H, W)`` mirrored."""
    flips = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flips.to(images.device)[:, None, None, None], images.flip(3), images)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each moved by up to an eighth of its side, edges repeated."""
    count, _, height, width = images.shape
    limit = [int(side * LARGEST_SHIFT) for side in (height, width)]
    rows, columns = (
        torch.randint(-most, most + 1, (count, 1), generator=generator) + torch.arange(side)
        for most, side in zip(limit, (height, width), strict=True)
    )
    rows, columns = (
        where.clamp(0, side - 1).to(images.device) for where, side in ((rows, height), (columns, width))
    )
    number = torch.arange(count, device=images.device)
    return images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mixed with another of the batch, by a share drawn evenly for each."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    return torch.lerp(images[other], images, share)
