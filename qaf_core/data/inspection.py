"""The built-in surface-inspection images: an industrial camera over a machined metal part, drawn from a seed.

Every picture shows a brushed or milled plate with one edge of the part in view and one drilled hole, under
uneven light, through a lens with vignetting and a noisy sensor. Seven of the eight classes carry one defect.
Some classes overlap on purpose (a smooth crack and a dark scratch, a flat pit and a round inclusion, a faint
stain and uneven light), so that even a good network errs sometimes.

Image number i depends only on (seed, i): a subset stays the same however many images are asked for, and
different seeds share no image. Coordinates are pixels from the image's centre, x to the right and y down.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qaf_core.errors import DataError

CLASSES = ("ok", "scratch", "crack", "pit", "stain", "inclusion", "chipped edge", "missing hole")
IMAGE_SIZE = 64
#: Per-channel mean and standard deviation of the pixels (0 to 1) over 4,096 images.
MEAN = (0.446, 0.446, 0.446)
STD = (0.196, 0.196, 0.196)

_CHUNK = 64  # images drawn together: about 1 MB a plane, which stays in a core's cache
_DRAWS = 128  # uniform numbers reserved for each image's geometry
_COARSE = 8  # grid of the slow unevenness of the surface
_SEGMENTS = 10  # line pieces of a scratch or a crack

FloatArray = npt.NDArray[np.floating[Any]]  # float32 throughout

_AXIS = np.arange(IMAGE_SIZE, dtype=np.float32) - (IMAGE_SIZE - 1) / 2
_X = np.broadcast_to(_AXIS[None, None, :], (1, IMAGE_SIZE, IMAGE_SIZE))
_Y = np.broadcast_to(_AXIS[None, :, None], (1, IMAGE_SIZE, IMAGE_SIZE))


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
            raise DataError(f"inspection images: {field} is too small", got=value, expected=f">= {least}")
    starts = range(first, first + count, _CHUNK)
    chunks = [range(start, min(start + _CHUNK, first + count)) for start in starts]
    threads = min(workers or _usable_cores(), len(chunks))
    if threads == 1:
        parts = [_render_chunk(chunk, seed) for chunk in chunks]
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(lambda chunk: _render_chunk(chunk, seed), chunks))
    return RenderedImages(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    return min(cores, 8)


# --- random numbers


class _Draws:
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

    def rows(self, chosen: npt.NDArray[np.intp]) -> _Draws:
        """The same columns for some of the images only."""
        return _Draws(self.table[chosen], self.column)


class _Noise(NamedTuple):
    draws: _Draws
    texture: FloatArray  # (B, 64, 64) standard normal
    coarse: FloatArray  # (B, 8, 8) standard normal
    sensor: FloatArray  # (B, 3, 64, 64) triangular, mean 0, variance 1
    labels: npt.NDArray[np.int64]


def _draw_noise(numbers: range, seed: int) -> _Noise:
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
    return _Noise(
        _Draws(table),
        normal[:, :plane].reshape(count, IMAGE_SIZE, IMAGE_SIZE),
        normal[:, plane:].reshape(count, _COARSE, _COARSE),
        sensor.reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE),
        labels,
    )


# --- scene


class _Scene(NamedTuple):
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

    def rows(self, chosen: npt.NDArray[np.intp]) -> _Scene:
        return _Scene(*(field[chosen] for field in self))


def _draw_scene(noise: _Noise) -> _Scene:
    draws = noise.draws
    side = np.floor(draws.uniform(0, 4)) * (np.pi / 2) + draws.uniform(-0.2, 0.2)
    normal_x, normal_y = np.cos(side), np.sin(side)
    along, inward = draws.uniform(-13, 13), draws.uniform(-2, 11)
    lamp = draws.uniform(0, 2 * np.pi)
    blend = _interpolation()
    return _Scene(
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


def _edge_distance(scene: _Scene) -> FloatArray:
    """Distance beyond the part's edge, negative on the metal (B, 64, 64)."""
    distance: FloatArray = scene.normal_x * _X + scene.normal_y * _Y - scene.edge_offset
    return distance


def _coverage(depth: FloatArray, softness: float = 0.8) -> FloatArray:
    """0 … 1 share of a pixel inside a shape, from the depth below its outline in pixels."""
    covered: FloatArray = np.clip(depth / (2 * softness) + 0.5, 0, 1)
    return covered


def _texture(noise: _Noise) -> FloatArray:
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
    radius = np.hypot(_X - centre * sine, _Y - centre * cosine)
    rings = np.sin(radius * (2 * np.pi / period) + draws.uniform(0, 6.28))
    rings *= draws.chance(0.4) * draws.uniform(0.2, 0.9)
    texture: FloatArray = brushed * draws.uniform(0.5, 1.0) + rings
    return texture


# --- defects


class _Defect(NamedTuple):
    """What a defect changes, each (b, 64, 64)."""

    brightness: FloatArray  # added to the metal's reflectance
    tint: FloatArray  # share of the defect's own colour
    edge_cut: FloatArray  # distance added to the part's edge (metal missing where it turns positive)
    hole_open: FloatArray  # 1 where a hole is drilled as planned
    mask: npt.NDArray[np.bool_]


def _unchanged(scene: _Scene) -> _Defect:
    shape, real = scene.cloud.shape, np.float32
    no_cut = np.full(shape, -1e3, real)
    return _Defect(
        np.zeros(shape, real), np.zeros(shape, real), no_cut, np.ones(shape, real), np.zeros(shape, bool)
    )


def _place(draws: _Draws, scene: _Scene, margin: FloatArray | float) -> tuple[FloatArray, FloatArray]:
    """A point of bare metal (x and y, each (b, 1, 1)): the first of eight tries clear of hole and edge."""
    tries = draws.many(16, -27, 27)
    x, y = tries[:, :8, None], tries[:, 8:, None]
    hole = np.hypot(x - scene.hole_x, y - scene.hole_y) - scene.hole_radius
    edge = scene.edge_offset - scene.normal_x * x - scene.normal_y * y
    room = np.minimum(hole, edge) - margin
    first = np.where((room > 0).any(1), (room > 0).argmax(1), room.argmax(1))[:, :, None]
    return np.take_along_axis(x, first, 1), np.take_along_axis(y, first, 1)


def _stroke(
    x: FloatArray, y: FloatArray, heading: FloatArray, step: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Distance to a chain of line pieces and the place along it (0 … 1), each (b, 64, 64).

    Args:
        x, y: The chain's middle (b, 1, 1).
        heading: Direction of each piece (b, pieces).
        step: Length of a piece (b, 1, 1).
    """
    pieces = heading.shape[1]
    step_x, step_y = np.cos(heading) * step[:, 0], np.sin(heading) * step[:, 0]
    start_x = x[:, 0] + np.cumsum(step_x, 1) - step_x - step_x.sum(1, keepdims=True) / 2
    start_y = y[:, 0] + np.cumsum(step_y, 1) - step_y - step_y.sum(1, keepdims=True) / 2
    nearest = np.full((len(x), IMAGE_SIZE, IMAGE_SIZE), 1e6, np.float32)
    place = np.zeros_like(nearest)
    for piece in range(pieces):
        cosine, sine = np.cos(heading[:, piece, None, None]), np.sin(heading[:, piece, None, None])
        offset_x, offset_y = _X - start_x[:, piece, None, None], _Y - start_y[:, piece, None, None]
        along = np.clip(offset_x * cosine + offset_y * sine, 0, step)
        gap_x, gap_y = offset_x - along * cosine, offset_y - along * sine
        squared = gap_x * gap_x + gap_y * gap_y
        closer = squared < nearest
        place = np.where(closer, (piece + along / step) / pieces, place)
        nearest = np.where(closer, squared, nearest)
    return np.sqrt(nearest), place


def _scratch(draws: _Draws, scene: _Scene) -> _Defect:
    """A long smooth groove, bright or dark, fading at both ends."""
    x, y = _place(draws, scene, 4.0)
    length, start = draws.uniform(16, 44), draws.uniform(0, 2 * np.pi)
    bend, wobble = draws.uniform(-0.5, 0.5), draws.uniform(0.0, 0.16, 2)
    turns = np.linspace(-0.5, 0.5, _SEGMENTS, dtype=np.float32)[None]
    heading = start[:, 0] + bend[:, 0] * turns + wobble[:, 0] * draws.many(_SEGMENTS, -1, 1)
    distance, place = _stroke(x, y, heading, length / _SEGMENTS)
    width = draws.uniform(0.7, 1.3)
    contrast = draws.uniform(0.15, 0.45, 1.2) * (1 - 2 * draws.chance(0.35))
    fade = np.clip(4 * np.minimum(place, 1 - place) + 0.35, 0, 1)
    profile = np.exp(-0.5 * (distance / width) ** 2) * fade
    return _unchanged(scene)._replace(brightness=contrast * profile, mask=distance < width + 0.6)


def _crack(draws: _Draws, scene: _Scene) -> _Defect:
    """A dark jagged line, widest in the middle, with a branch in half of the cases."""
    x, y = _place(draws, scene, 4.0)
    length, start = draws.uniform(15, 38), draws.uniform(0, 2 * np.pi)
    jag = draws.uniform(0.4, 1.0)
    heading = start[:, 0] + jag[:, 0] * draws.many(_SEGMENTS, -1, 1) + draws.many(1, -0.3, 0.3)
    distance, place = _stroke(x, y, heading, length / _SEGMENTS)
    branch_heading = start[:, 0] + np.sign(draws.many(1, -1, 1)) * 0.8 + 0.5 * draws.many(3, -1, 1)
    reach = draws.uniform(2.0, 3.6) * draws.chance(0.5) + 0.05
    branch_x = x + np.cos(branch_heading).sum(1)[:, None, None] * reach / 2
    branch_y = y + np.sin(branch_heading).sum(1)[:, None, None] * reach / 2
    branch, _ = _stroke(branch_x, branch_y, branch_heading, reach)
    width = draws.uniform(0.65, 1.25)
    local = width * (0.45 + 0.85 * np.sqrt(np.clip(4 * place * (1 - place), 0, 1)))
    profile = np.maximum(
        np.exp(-0.5 * (distance / local) ** 2), 0.8 * np.exp(-0.5 * (branch / (0.7 * width)) ** 2)
    )
    contrast = -draws.uniform(0.15, 0.48, 1.2)
    mask = (distance < local + 0.6) | (branch < 0.7 * width + 0.6)
    return _unchanged(scene)._replace(brightness=contrast * profile, mask=mask)


def _blob(
    draws: _Draws, x: FloatArray, y: FloatArray, radius: FloatArray, roughness: FloatArray
) -> FloatArray:
    """Depth below the outline of a round shape with a wavy rim, in pixels (b, 64, 64)."""
    offset_x, offset_y = _X - x, _Y - y
    angle = np.arctan2(offset_y, offset_x)
    wave = 0.5 * np.cos(2 * angle + draws.uniform(0, 6.28))
    wave += 0.35 * np.cos(3 * angle + draws.uniform(0, 6.28))
    wave += 0.3 * np.cos(5 * angle + draws.uniform(0, 6.28))
    depth: FloatArray = radius * (1 + roughness * wave) - np.hypot(offset_x, offset_y)
    return depth


def _pit(draws: _Draws, scene: _Scene) -> _Defect:
    """A small round hollow: its lamp side in shadow, the far side lit."""
    radius = draws.uniform(2.0, 4.8)
    x, y = _place(draws, scene, radius + 2)
    depth = _blob(draws, x, y, radius, draws.uniform(0.0, 0.2))
    slope = ((_X - x) * scene.light_x + (_Y - y) * scene.light_y) / radius
    contrast, relief = draws.uniform(0.17, 0.5, 1.2), draws.uniform(0.55, 1.3)
    inside = _coverage(depth)
    rim = np.exp(-0.5 * (depth / 0.9) ** 2) * np.clip(-slope, 0, 1)
    brightness = contrast * (0.9 * relief * rim - inside * (0.55 + 0.45 * relief * np.clip(slope, -1, 1)))
    return _unchanged(scene)._replace(brightness=brightness, mask=depth > -0.4)


def _inclusion(draws: _Draws, scene: _Scene) -> _Defect:
    """A small flat speck of foreign matter with an irregular rim, mostly dark, sometimes tinted."""
    radius = draws.uniform(2.0, 4.8)
    x, y = _place(draws, scene, radius + 2)
    depth = _blob(draws, x, y, radius, draws.uniform(0.25, 0.8))
    inside = _coverage(depth)
    contrast = draws.uniform(0.16, 0.46, 1.2) * (1 - 2 * draws.chance(0.82))
    tint = inside * draws.uniform(0.0, 0.5, 1.3)
    return _unchanged(scene)._replace(brightness=contrast * inside, tint=tint, mask=depth > -0.4)


def _stain(draws: _Draws, scene: _Scene) -> _Defect:
    """A large faint film with a soft outline, a darker rim and a slight colour."""
    radius = draws.uniform(6, 14)
    x, y = _place(draws, scene, 5.0)
    depth = _blob(draws, x, y, radius, draws.uniform(0.1, 0.4)) + 1.5 * scene.cloud
    inside = _coverage(depth, 2.0)
    rim = np.exp(-0.5 * (depth / 1.3) ** 2) * draws.uniform(0.0, 0.5)
    contrast = -draws.uniform(0.075, 0.25, 1.2) * (1 - 1.7 * draws.chance(0.2))
    film = inside * (1 + 0.35 * scene.cloud) + rim
    tint = inside * draws.uniform(0.05, 0.4, 1.3)
    return _unchanged(scene)._replace(brightness=contrast * film, tint=tint, mask=depth > 0)


def _chip(draws: _Draws, scene: _Scene) -> _Defect:
    """Metal broken out of the part's edge, with a bright broken face."""
    along, radius = draws.uniform(-20, 20), draws.uniform(2.4, 7.0, 1.2)
    reach = scene.edge_offset + draws.uniform(-0.35, 0.3) * radius
    x, y = scene.normal_x * reach - scene.normal_y * along, scene.normal_y * reach + scene.normal_x * along
    depth = _blob(draws, x, y, radius, draws.uniform(0.2, 0.6))
    face = np.exp(-0.5 * ((depth + 0.6) / 0.9) ** 2) * draws.uniform(-0.1, 0.3)
    return _unchanged(scene)._replace(brightness=face, edge_cut=depth, mask=depth > 0)


def _missing_hole(draws: _Draws, scene: _Scene) -> _Defect:
    """No hole where one belongs: bare metal, a centre punch, or a shallow start of the drill."""
    distance = np.hypot(_X - scene.hole_x, _Y - scene.hole_y)
    punch = np.exp(-0.5 * (distance / draws.uniform(0.8, 1.6)) ** 2) * draws.chance(0.5)
    started = draws.chance(0.25)
    ring = np.exp(-0.5 * ((distance - scene.hole_radius) / 0.8) ** 2) * started * draws.uniform(0.0, 1.0)
    brightness = -draws.uniform(0.08, 0.3) * (punch + 0.5 * ring)
    closed = np.zeros_like(distance) + started * draws.uniform(0.0, 0.3)
    return _unchanged(scene)._replace(
        brightness=brightness.astype(np.float32), hole_open=closed, mask=distance < scene.hole_radius
    )


_DEFECTS: dict[str, Callable[[_Draws, _Scene], _Defect]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "stain": _stain,
    "inclusion": _inclusion,
    "chipped edge": _chip,
    "missing hole": _missing_hole,
}


def _draw_defects(draws: _Draws, scene: _Scene, labels: npt.NDArray[np.int64]) -> _Defect:
    """Each image's defect, drawn class by class."""
    whole = _unchanged(scene)
    for label, name in enumerate(CLASSES):
        chosen = np.flatnonzero(labels == label)
        if name in _DEFECTS and len(chosen):
            part = _DEFECTS[name](draws.rows(chosen), scene.rows(chosen))
            for target, values in zip(whole, part, strict=True):
                target[chosen] = values
    hole = np.hypot(_X - scene.hole_x, _Y - scene.hole_y) < scene.hole_radius
    drilled = (labels != CLASSES.index("missing hole"))[:, None, None]
    return whole._replace(mask=whole.mask & (_edge_distance(scene) < 0) & ~(hole & drilled))


# --- camera


def _reflectance(noise: _Noise, scene: _Scene, defect: _Defect) -> FloatArray:
    """Brightness of the scene under even light (B, 64, 64)."""
    draws = noise.draws
    base, grain = draws.uniform(0.42, 0.68), draws.uniform(0.04, 0.11)
    unevenness = draws.uniform(0.0, 0.045)
    metal = base * (1 + grain * _texture(noise) + unevenness * scene.cloud) + defect.brightness
    facing = scene.normal_x * scene.light_x + scene.normal_y * scene.light_y
    edge = np.maximum(_edge_distance(scene) + draws.uniform(0.0, 0.5) * scene.cloud, defect.edge_cut)
    bevel = np.exp(-0.5 * ((edge + 1.6) / 0.8) ** 2)
    metal += bevel * (0.06 + 0.16 * facing)

    offset_x, offset_y = _X - scene.hole_x, _Y - scene.hole_y
    distance = np.hypot(offset_x, offset_y)
    towards = (offset_x * scene.light_x + offset_y * scene.light_y) / scene.hole_radius
    countersink = np.exp(-0.5 * ((distance - scene.hole_radius - 0.9) / 0.8) ** 2)
    metal -= 0.17 * countersink * np.clip(towards, -1, 1) * defect.hole_open
    inside = _coverage(scene.hole_radius - distance) * defect.hole_open
    wall = scene.background * 0.7 + 0.16 * np.clip(-towards - 0.15, 0, 1)
    metal += (wall - metal) * inside
    beyond = _coverage(edge)
    metal += (scene.background * (1 + 0.15 * scene.cloud) - metal) * beyond
    return metal


def _expose(noise: _Noise, scene: _Scene, defect: _Defect) -> npt.NDArray[np.uint8]:
    """Light, lens and sensor: the pictures (B, 64, 64, 3)."""
    draws = noise.draws
    brightness = _reflectance(noise, scene, defect)
    slope = draws.uniform(0.05, 0.32) / IMAGE_SIZE
    lit = 1 + slope * (scene.light_x * _X + scene.light_y * _Y)
    lit -= draws.uniform(0.05, 0.3) * (_X * _X + _Y * _Y) / (2 * 32.0**2)
    lit += draws.uniform(0.0, 0.14) * np.exp(-0.5 * ((_X * scene.light_y - _Y * scene.light_x) / 11.0) ** 2)
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
    noise = _draw_noise(numbers, seed)
    scene = _draw_scene(noise)
    defect = _draw_defects(noise.draws, scene, noise.labels)
    noise.draws.column += 64  # the columns the defects took
    images = _expose(noise, scene, defect)
    return RenderedImages(images, noise.labels, defect.mask)
