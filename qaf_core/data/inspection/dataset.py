"""The built-in surface-inspection images: an industrial camera over a machined metal part, drawn from a seed.

Every picture shows a brushed or milled plate with one edge of the part in view and one drilled hole, under
uneven light, through a lens with vignetting and a noisy sensor. Seven of the eight classes carry one defect.
Some classes overlap on purpose (a smooth crack and a dark scratch, a flat pit and a round inclusion, a faint
stain and uneven light), so that even a good network errs sometimes.

Image number i depends only on (seed, i): a subset stays the same however many images are asked for, and
different seeds share no image.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qaf_core.data.inspection.defects import Defect, draw_defects
from qaf_core.data.inspection.scene import (
    CLASSES,
    IMAGE_SIZE,
    PIXEL_X,
    PIXEL_Y,
    FloatArray,
    Noise,
    Scene,
    coverage,
    draw_noise,
    draw_scene,
    draw_texture,
    edge_distance,
)
from qaf_core.errors import DataError
from qaf_core.text.said import say

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "MEAN",
    "STD",
    "SURFACE_CLASSES",
    "RenderedImages",
    "class_masks",
    "defect_boxes",
    "render",
]

#: What a pixel or a box can be: the classes of the images, with the sound surface in place of "ok".
SURFACE_CLASSES = ("sound surface", *CLASSES[1:])

#: Per-channel mean and standard deviation of the pixels (0 to 1) over 4,096 images.
MEAN = (0.446, 0.446, 0.446)
STD = (0.196, 0.196, 0.196)

_CHUNK = 64  # images drawn together: about 1 MB a plane, which stays in a core's cache
_DEFECT_COLUMNS = 64  # random numbers that the defects may take


class RenderedImages(NamedTuple):
    """Pictures with their labels and defect masks."""

    images: npt.NDArray[np.uint8]  # (N, 64, 64, 3)
    labels: npt.NDArray[np.int64]  # (N,), index into CLASSES
    masks: npt.NDArray[np.bool_]  # (N, 64, 64), True where the defect is


def render(count: int, seed: int, *, first: int = 0, workers: int | None = None) -> RenderedImages:
    """Draw the images first … first + count - 1 of a seed.

    Args:
        count: How many images, at least 1.
        seed: Which endless sequence of images, 0 or more.
        first: Number of the first image.
        workers: Threads; by default one for each usable core, at most 8.

    Returns:
        Images (N, 64, 64, 3) uint8, labels (N,) int64 and masks (N, 64, 64) bool. Each run of eight images
        that starts at a multiple of eight holds every class once.

    Raises:
        DataError: When count, seed or first is out of range.
    """
    for field, value, least in (("count", count, 1), ("seed", seed, 0), ("first", first, 0)):
        if value < least:
            raise DataError(
                say("inspection images: {field} is too small", field=field), got=value, expected=f">= {least}"
            )
    starts = range(first, first + count, _CHUNK)
    chunks = [range(start, min(start + _CHUNK, first + count)) for start in starts]
    threads = min(workers or _usable_cores(), len(chunks))
    if threads == 1:
        parts = [_render_chunk(chunk, seed) for chunk in chunks]
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(lambda chunk: _render_chunk(chunk, seed), chunks))
    return RenderedImages(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def class_masks(drawn: RenderedImages) -> npt.NDArray[np.uint8]:
    """Index into SURFACE_CLASSES of every pixel (N, 64, 64); 0 where the surface is sound."""
    return (drawn.masks * drawn.labels[:, None, None]).astype(np.uint8)


def defect_boxes(masks: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """The smallest box around the marked pixels of each image.

    Args:
        masks: (N, H, W), not 0 where the defect is; an image holds one defect at most.

    Returns:
        (N, 4) left, top, right and bottom in pixels from the image's corner, right and bottom just beyond the
        last marked pixel; all 0 where nothing is marked.
    """
    marked = masks != 0
    height, width = marked.shape[1:]
    columns, rows = marked.any(1), marked.any(2)
    boxes = np.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            width - columns[:, ::-1].argmax(1),
            height - rows[:, ::-1].argmax(1),
        ],
        axis=1,
    )
    result: npt.NDArray[np.float32] = (boxes * marked.any((1, 2))[:, None]).astype(np.float32)
    return result


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return min(cores, 8)


def _reflectance(noise: Noise, scene: Scene, defect: Defect) -> FloatArray:
    """Brightness of the scene under even light (B, 64, 64)."""
    draws = noise.draws
    base, grain = draws.uniform(0.42, 0.68), draws.uniform(0.04, 0.11)
    unevenness = draws.uniform(0.0, 0.045)
    metal = base * (1 + grain * draw_texture(noise) + unevenness * scene.cloud) + defect.brightness
    facing = scene.normal_x * scene.light_x + scene.normal_y * scene.light_y
    edge = np.maximum(edge_distance(scene) + draws.uniform(0.0, 0.5) * scene.cloud, defect.edge_cut)
    bevel = np.exp(-0.5 * ((edge + 1.6) / 0.8) ** 2)
    metal += bevel * (0.06 + 0.16 * facing)

    offset_x, offset_y = PIXEL_X - scene.hole_x, PIXEL_Y - scene.hole_y
    distance = np.hypot(offset_x, offset_y)
    towards = (offset_x * scene.light_x + offset_y * scene.light_y) / scene.hole_radius
    countersink = np.exp(-0.5 * ((distance - scene.hole_radius - 0.9) / 0.8) ** 2)
    metal -= 0.17 * countersink * np.clip(towards, -1, 1) * defect.hole_open
    inside = coverage(scene.hole_radius - distance) * defect.hole_open
    wall = scene.background * 0.7 + 0.16 * np.clip(-towards - 0.15, 0, 1)
    metal += (wall - metal) * inside
    beyond = coverage(edge)
    metal += (scene.background * (1 + 0.15 * scene.cloud) - metal) * beyond
    return metal


def _expose(noise: Noise, scene: Scene, defect: Defect) -> npt.NDArray[np.uint8]:
    """Light, lens and sensor: the pictures (B, 64, 64, 3)."""
    draws = noise.draws
    brightness = _reflectance(noise, scene, defect)
    slope = draws.uniform(0.05, 0.32) / IMAGE_SIZE
    lit = 1 + slope * (scene.light_x * PIXEL_X + scene.light_y * PIXEL_Y)
    lit -= draws.uniform(0.05, 0.3) * (PIXEL_X * PIXEL_X + PIXEL_Y * PIXEL_Y) / (2 * 32.0**2)
    lit += draws.uniform(0.0, 0.14) * np.exp(
        -0.5 * ((PIXEL_X * scene.light_y - PIXEL_Y * scene.light_x) / 11.0) ** 2
    )
    brightness = np.clip(brightness * lit, 0, 1.2)
    shot = draws.uniform(0.012, 0.04) * np.sqrt(brightness + 0.05)
    warmth, green = draws.uniform(-0.05, 0.05), draws.uniform(-0.02, 0.02)
    balance = (1 + warmth, 1 + green, 1 - warmth)
    film = (draws.uniform(-0.05, 0.25), draws.uniform(-0.1, 0.05), draws.uniform(-0.45, 0.25))
    picture = np.empty((*brightness.shape, 3), np.uint8)
    for channel in range(3):
        value = brightness * (balance[channel] * (1 + defect.tint * film[channel]))
        value += noise.sensor[:, channel] * shot
        picture[..., channel] = np.clip(value * 255 + 0.5, 0, 255)
    return picture


def _render_chunk(numbers: range, seed: int) -> RenderedImages:
    noise = draw_noise(numbers, seed)
    scene = draw_scene(noise)
    defect = draw_defects(noise.draws, scene, noise.labels)
    noise.draws.column += _DEFECT_COLUMNS
    images = _expose(noise, scene, defect)
    return RenderedImages(images, noise.labels, defect.mask)
