"""Images as they might have been taken too: mirrored, moved, mixed with each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_SHIFT = 1 / 8  # of the image's side
LEAST_ZOOM = 0.8  # of the image's side that is seen
LARGEST_TURN = math.radians(10.0)
LARGEST_STRETCH = 0.1  # logarithm
LARGEST_LIGHT = 0.2  # of contrast, and of brightness in standard deviations of the images


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


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each nearer, turned, stretched and lit a little differently, edges repeated.

    What a network knows by heart is new to it then, so that its answers tell more than the label.
    """
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator)).to(images)

    seen, turn = draw(LEAST_ZOOM, 1.0), draw(-LARGEST_TURN, LARGEST_TURN)
    stretch = draw(-LARGEST_STRETCH, LARGEST_STRETCH).exp()
    rows, columns = ((1.0 - seen) * draw(-1.0, 1.0) for _ in range(2))
    across = torch.stack([seen * stretch * turn.cos(), -seen * turn.sin(), columns], dim=1)
    down = torch.stack([seen * turn.sin(), seen / stretch * turn.cos(), rows], dim=1)
    places = functional.affine_grid(torch.stack([across, down], dim=1), list(images.shape), False)
    seen_images = functional.grid_sample(images, places, padding_mode="border", align_corners=False)
    middle = seen_images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = draw(1 - LARGEST_LIGHT, 1 + LARGEST_LIGHT)[:, None, None, None]
    brightness = draw(-LARGEST_LIGHT, LARGEST_LIGHT)[:, None, None, None] * images.std()
    return (seen_images - middle) * contrast + middle + brightness


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mixed with another of the batch, by a share drawn evenly for each."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    return torch.lerp(images[other], images, share)
