"""What the inspection camera looks at: random numbers, the part's geometry and the metal's texture.

Coordinates are pixels from the image's centre, x to the right and y down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

CLASSES = ("ok", "scratch", "crack", "pit", "stain", "inclusion", "chipped edge", "missing hole")
IMAGE_SIZE = 64

FloatArray = npt.NDArray[np.floating[Any]]  # float32 throughout

_DRAWS = 128  # uniform numbers reserved for each image's geometry
_COARSE = 8  # grid of the slow unevenness of the surface

_AXIS = np.arange(IMAGE_SIZE, dtype=np.float32) - (IMAGE_SIZE - 1) / 2
PIXEL_X = np.broadcast_to(_AXIS[None, None, :], (1, IMAGE_SIZE, IMAGE_SIZE))
PIXEL_Y = np.broadcast_to(_AXIS[None, :, None], (1, IMAGE_SIZE, IMAGE_SIZE))


class Draws:
    """A table of uniform numbers, one row an image; every call takes the next column."""

    def __init__(self, table: FloatArray, column: int = 0) -> None:
        self.table = table
        self.column = column

    def uniform(self, low: float, high: float, power: float = 1.0) -> FloatArray:
        """Numbers (B, 1, 1) in [low, high); power > 1 leans towards low."""
        values = self.table[:, self.column]
        self.column += 1
        return (low + (high - low) * values**power).astype(np.float32)[:, None, None]

    def chance(self, probability: float) -> FloatArray:
        """1.0 with the given probability, else 0.0, as (B, 1, 1)."""
        return (self.uniform(0.0, 1.0) < probability).astype(np.float32)

    def many(self, count: int, low: float, high: float) -> FloatArray:
        """Numbers (B, count) in [low, high)."""
        values = self.table[:, self.column : self.column + count]
        self.column += count
        return (low + (high - low) * values).astype(np.float32)

    def rows(self, chosen: npt.NDArray[np.intp]) -> Draws:
        """The same columns for some of the images only."""
        return Draws(self.table[chosen], self.column)


class Noise(NamedTuple):
    draws: Draws
    texture: FloatArray  # (B, 64, 64) standard normal
    coarse: FloatArray  # (B, 8, 8) standard normal
    sensor: FloatArray  # (B, 3, 64, 64) triangular, mean 0, variance 1
    labels: npt.NDArray[np.int64]


def draw_noise(numbers: range, seed: int) -> Noise:
    """All random numbers of some images; each image has its own generator."""
    count, plane = len(numbers), IMAGE_SIZE * IMAGE_SIZE
    table = np.empty((count, _DRAWS), np.float32)
    normal = np.empty((count, plane + _COARSE**2), np.float32)
    raw = np.empty((count, 6 * plane), np.uint8)
    labels = np.empty(count, np.int64)
    for row, number in enumerate(numbers):
        generator = np.random.default_rng((seed, number))
        generator.random(out=table[row], dtype=np.float32)
        generator.standard_normal(out=normal[row], dtype=np.float32)
        raw[row] = np.frombuffer(generator.bytes(6 * plane), np.uint8)
        group = np.random.default_rng((seed, number // len(CLASSES), 1))
        labels[row] = group.permutation(len(CLASSES))[number % len(CLASSES)]
    sensor = raw[:, : 3 * plane].astype(np.float32)
    sensor += raw[:, 3 * plane :]
    sensor -= 255.0
    sensor *= 1 / 104.5  # standard deviation of the sum of two bytes
    return Noise(
        Draws(table),
        normal[:, :plane].reshape(count, IMAGE_SIZE, IMAGE_SIZE),
        normal[:, plane:].reshape(count, _COARSE, _COARSE),
        sensor.reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE),
        labels,
    )


class Scene(NamedTuple):
    """Geometry and light of some images; every field is (B, 1, 1) unless said otherwise."""

    normal_x: FloatArray  # outward normal of the part's edge
    normal_y: FloatArray
    edge_offset: FloatArray  # the part ends where normal · position = offset
    hole_x: FloatArray
    hole_y: FloatArray
    hole_radius: FloatArray
    light_x: FloatArray  # unit vector towards the lamp
    light_y: FloatArray
    background: FloatArray  # brightness beyond the part
    cloud: FloatArray  # (B, 64, 64) slow unevenness, about unit size

    def rows(self, chosen: npt.NDArray[np.intp]) -> Scene:
        return Scene(*(field[chosen] for field in self))


def draw_scene(noise: Noise) -> Scene:
    draws = noise.draws
    side = np.floor(draws.uniform(0, 4)) * (np.pi / 2) + draws.uniform(-0.2, 0.2)
    normal_x, normal_y = np.cos(side), np.sin(side)
    along, inward = draws.uniform(-13, 13), draws.uniform(-2, 11)
    lamp = draws.uniform(0, 2 * np.pi)
    blend = _interpolation()
    return Scene(
        normal_x=normal_x,
        normal_y=normal_y,
        edge_offset=draws.uniform(16, 25),
        hole_x=-inward * normal_x - along * normal_y,
        hole_y=-inward * normal_y + along * normal_x,
        hole_radius=draws.uniform(5.0, 8.5),
        light_x=np.cos(lamp),
        light_y=np.sin(lamp),
        background=draws.uniform(0.06, 0.16),
        cloud=(blend @ noise.coarse @ blend.T).astype(np.float32),
    )


def _interpolation() -> FloatArray:
    """Smooth interpolation (64, 8) from the coarse grid to pixels: Gaussian weights that sum to one."""
    centres = np.linspace(_AXIS[0], _AXIS[-1], _COARSE, dtype=np.float32)
    weights = np.exp(-0.5 * ((_AXIS[:, None] - centres[None, :]) / 6.0) ** 2)
    normalised: FloatArray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised


def edge_distance(scene: Scene) -> FloatArray:
    """Distance beyond the part's edge, negative on the metal (B, 64, 64)."""
    distance: FloatArray = scene.normal_x * PIXEL_X + scene.normal_y * PIXEL_Y - scene.edge_offset
    return distance


def coverage(depth: FloatArray, softness: float = 0.8) -> FloatArray:
    """0 … 1 share of a pixel inside a shape, from the depth below its outline in pixels."""
    covered: FloatArray = np.clip(depth / (2 * softness) + 0.5, 0, 1)
    return covered


def draw_texture(noise: Noise) -> FloatArray:
    """Brushing (noise stretched along one direction) and milling rings, (B, 64, 64), about unit size."""
    draws = noise.draws
    angle = draws.uniform(0, np.pi)
    along, across = draws.uniform(5, 16), draws.uniform(0.35, 0.8)
    frequency_y = np.fft.fftfreq(IMAGE_SIZE).astype(np.float32)[None, :, None] * (2 * np.pi)
    frequency_x = np.fft.rfftfreq(IMAGE_SIZE).astype(np.float32)[None, None, :] * (2 * np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    stretched = (frequency_x * cosine + frequency_y * sine) * along
    tight = (frequency_y * cosine - frequency_x * sine) * across
    passed = np.exp(-0.5 * (stretched * stretched + tight * tight))
    brushed = np.fft.irfft2(np.fft.rfft2(noise.texture) * passed, s=(IMAGE_SIZE, IMAGE_SIZE)).astype(
        np.float32
    )
    brushed *= np.sqrt(along * across) * 1.8  # the filter's loss of power
    centre, period = draws.uniform(40, 120), draws.uniform(2.6, 6.0)
    radius = np.hypot(PIXEL_X - centre * sine, PIXEL_Y - centre * cosine)
    rings = np.sin(radius * (2 * np.pi / period) + draws.uniform(0, 6.28))
    rings *= draws.chance(0.4) * draws.uniform(0.2, 0.9)
    texture: FloatArray = brushed * draws.uniform(0.5, 1.0) + rings
    return texture
