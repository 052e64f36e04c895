"""The seven defects of the inspection images: what each changes in the scene, and its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qaf_core.data.inspection.scene import (
    CLASSES,
    IMAGE_SIZE,
    PIXEL_X,
    PIXEL_Y,
    Draws,
    FloatArray,
    Scene,
    coverage,
    edge_distance,
)

_SEGMENTS = 10  # line pieces of a scratch or a crack


class Defect(NamedTuple):
    """What a defect changes, each (b, 64, 64)."""

    brightness: FloatArray  # added to the metal's reflectance
    tint: FloatArray  # share of the defect's own colour
    edge_cut: FloatArray  # distance added to the part's edge (metal missing where it turns positive)
    hole_open: FloatArray  # 1 where a hole is drilled as planned
    mask: npt.NDArray[np.bool_]


def unchanged(scene: Scene) -> Defect:
    shape, real = scene.cloud.shape, np.float32
    no_cut = np.full(shape, -1e3, real)
    return Defect(
        np.zeros(shape, real), np.zeros(shape, real), no_cut, np.ones(shape, real), np.zeros(shape, bool)
    )


def _place(draws: Draws, scene: Scene, margin: FloatArray | float) -> tuple[FloatArray, FloatArray]:
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
        offset_x, offset_y = PIXEL_X - start_x[:, piece, None, None], PIXEL_Y - start_y[:, piece, None, None]
        along = np.clip(offset_x * cosine + offset_y * sine, 0, step)
        gap_x, gap_y = offset_x - along * cosine, offset_y - along * sine
        squared = gap_x * gap_x + gap_y * gap_y
        closer = squared < nearest
        place = np.where(closer, (piece + along / step) / pieces, place)
        nearest = np.where(closer, squared, nearest)
    return np.sqrt(nearest), place


def _scratch(draws: Draws, scene: Scene) -> Defect:
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
    return unchanged(scene)._replace(brightness=contrast * profile, mask=distance < width + 0.6)


def _crack(draws: Draws, scene: Scene) -> Defect:
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
    return unchanged(scene)._replace(brightness=contrast * profile, mask=mask)


def _blob(
    draws: Draws, x: FloatArray, y: FloatArray, radius: FloatArray, roughness: FloatArray
) -> FloatArray:
    """Depth below the outline of a round shape with a wavy rim, in pixels (b, 64, 64)."""
    offset_x, offset_y = PIXEL_X - x, PIXEL_Y - y
    angle = np.arctan2(offset_y, offset_x)
    wave = 0.5 * np.cos(2 * angle + draws.uniform(0, 6.28))
    wave += 0.35 * np.cos(3 * angle + draws.uniform(0, 6.28))
    wave += 0.3 * np.cos(5 * angle + draws.uniform(0, 6.28))
    depth: FloatArray = radius * (1 + roughness * wave) - np.hypot(offset_x, offset_y)
    return depth


def _pit(draws: Draws, scene: Scene) -> Defect:
    """A small round hollow: its lamp side in shadow, the far side lit."""
    radius = draws.uniform(2.0, 4.8)
    x, y = _place(draws, scene, radius + 2)
    depth = _blob(draws, x, y, radius, draws.uniform(0.0, 0.2))
    slope = ((PIXEL_X - x) * scene.light_x + (PIXEL_Y - y) * scene.light_y) / radius
    contrast, relief = draws.uniform(0.17, 0.5, 1.2), draws.uniform(0.55, 1.3)
    inside = coverage(depth)
    rim = np.exp(-0.5 * (depth / 0.9) ** 2) * np.clip(-slope, 0, 1)
    brightness = contrast * (0.9 * relief * rim - inside * (0.55 + 0.45 * relief * np.clip(slope, -1, 1)))
    return unchanged(scene)._replace(brightness=brightness, mask=depth > -0.4)


def _inclusion(draws: Draws, scene: Scene) -> Defect:
    """A small flat speck of foreign matter with an irregular rim, mostly dark, sometimes tinted."""
    radius = draws.uniform(2.0, 4.8)
    x, y = _place(draws, scene, radius + 2)
    depth = _blob(draws, x, y, radius, draws.uniform(0.25, 0.8))
    inside = coverage(depth)
    contrast = draws.uniform(0.16, 0.46, 1.2) * (1 - 2 * draws.chance(0.82))
    tint = inside * draws.uniform(0.0, 0.5, 1.3)
    return unchanged(scene)._replace(brightness=contrast * inside, tint=tint, mask=depth > -0.4)


def _stain(draws: Draws, scene: Scene) -> Defect:
    """A large faint film with a soft outline, a darker rim and a slight colour."""
    radius = draws.uniform(6, 14)
    x, y = _place(draws, scene, 5.0)
    depth = _blob(draws, x, y, radius, draws.uniform(0.1, 0.4)) + 1.5 * scene.cloud
    inside = coverage(depth, 2.0)
    rim = np.exp(-0.5 * (depth / 1.3) ** 2) * draws.uniform(0.0, 0.5)
    contrast = -draws.uniform(0.075, 0.25, 1.2) * (1 - 1.7 * draws.chance(0.2))
    film = inside * (1 + 0.35 * scene.cloud) + rim
    tint = inside * draws.uniform(0.05, 0.4, 1.3)
    return unchanged(scene)._replace(brightness=contrast * film, tint=tint, mask=depth > 0)


def _chip(draws: Draws, scene: Scene) -> Defect:
    """Metal broken out of the part's edge, with a bright broken face."""
    along, radius = draws.uniform(-20, 20), draws.uniform(2.4, 7.0, 1.2)
    reach = scene.edge_offset + draws.uniform(-0.35, 0.3) * radius
    x, y = scene.normal_x * reach - scene.normal_y * along, scene.normal_y * reach + scene.normal_x * along
    depth = _blob(draws, x, y, radius, draws.uniform(0.2, 0.6))
    face = np.exp(-0.5 * ((depth + 0.6) / 0.9) ** 2) * draws.uniform(-0.1, 0.3)
    return unchanged(scene)._replace(brightness=face, edge_cut=depth, mask=depth > 0)


def _missing_hole(draws: Draws, scene: Scene) -> Defect:
    """No hole where one belongs: bare metal, a centre punch, or a shallow start of the drill."""
    distance = np.hypot(PIXEL_X - scene.hole_x, PIXEL_Y - scene.hole_y)
    punch = np.exp(-0.5 * (distance / draws.uniform(0.8, 1.6)) ** 2) * draws.chance(0.5)
    started = draws.chance(0.25)
    ring = np.exp(-0.5 * ((distance - scene.hole_radius) / 0.8) ** 2) * started * draws.uniform(0.0, 1.0)
    brightness = -draws.uniform(0.08, 0.3) * (punch + 0.5 * ring)
    closed = np.zeros_like(distance) + started * draws.uniform(0.0, 0.3)
    return unchanged(scene)._replace(
        brightness=brightness.astype(np.float32), hole_open=closed, mask=distance < scene.hole_radius
    )


DEFECTS: dict[str, Callable[[Draws, Scene], Defect]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "stain": _stain,
    "inclusion": _inclusion,
    "chipped edge": _chip,
    "missing hole": _missing_hole,
}


def draw_defects(draws: Draws, scene: Scene, labels: npt.NDArray[np.int64]) -> Defect:
    """Each image's defect, drawn class by class."""
    defect = unchanged(scene)
    for label, name in enumerate(CLASSES):
        chosen = np.flatnonzero(labels == label)
        if name in DEFECTS and len(chosen):
            part = DEFECTS[name](draws.rows(chosen), scene.rows(chosen))
            for target, values in zip(defect, part, strict=True):
                target[chosen] = values
    hole = np.hypot(PIXEL_X - scene.hole_x, PIXEL_Y - scene.hole_y) < scene.hole_radius
    drilled = (labels != CLASSES.index("missing hole"))[:, None, None]
    return defect._replace(mask=defect.mask & (edge_distance(scene) < 0) & ~(hole & drilled))
