"""Masks and boxes drawn on images: what a network gets right, misses and invents. Free of torch.

The three differ in colour, told apart with any kind of colour blindness (Okabe and Ito), and in how they are
drawn: right ones solid, missed ones hatched or dashed, invented ones dotted or crossed. Where an object is
found but taken for another class, it is missed and invented at once.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SEGMENTATION, DETECTION = "segmentation", "detection"
MARKED_TASKS = (SEGMENTATION, DETECTION)
RIGHT, MISSED, INVENTED = "right", "missed", "invented"
COLOURS = {RIGHT: "#56B4E9", MISSED: "#D55E00", INVENTED: "#F0E442"}
GROUND = 0  # the class of pixels that show no object
UNLABELLED = 255  # in a target: pixels that count for nothing
CONFIDENT = 0.5  # score from which a box is drawn, and counts as found
LEAST_OVERLAP = 0.5  # of a found box with a true one of its class
SIDE_PX = 192
GAP_PX = 4
_STRENGTH = {RIGHT: 0.5, MISSED: 0.8, INVENTED: 0.8}
_PERIOD_PX = 6
_ROOM_PX = 2

Arrays = Mapping[str, NDArray[Any]]
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """How one answer stands to the truth.

    Attributes:
        right, missed, invented: Objects of a detector; of masks shares of the labelled pixels, the ground
            apart.
    """

    right: float
    missed: float
    invented: float

    @property
    def faultless(self) -> bool:
        """Nothing is missed or invented."""
        return not self.missed and not self.invented


def of_image(task: str, arrays: Arrays, place: int) -> Arrays:
    """What predictions or targets say of one image."""
    if task == SEGMENTATION:
        return {"masks": arrays["masks"][place]}
    first = int(arrays["counts"][:place].sum())
    rows = slice(first, first + int(arrays["counts"][place]))
    return {key: values[rows] for key, values in arrays.items() if key != "counts"}


def judge(task: str, answer: Arrays, truth: Arrays) -> Found:
    """How much of one image's objects is right, missed and invented.

    Args:
        task: ``segmentation`` or ``detection``.
        answer, truth: As ``of_image`` gives them.
    """
    if task == SEGMENTATION:
        areas = _areas(answer["masks"], truth["masks"])
        labelled = max(1, int((truth["masks"] != UNLABELLED).sum()))
        return Found(**{name: float(area.sum()) / labelled for name, area in areas.items()})
    kinds = _sorted_boxes(answer, truth)
    return Found(**{name: float(len(boxes)) for name, boxes in kinds.items()})


def mark(pixels: Pixels, task: str, answer: Arrays, truth: Arrays) -> Image.Image:
    """An image with an answer drawn on it, enlarged where it is small.

    Args:
        pixels: ``(H, W, C)``, as the network's preparation cuts it.
        task: ``segmentation`` or ``detection``.
        answer, truth: As ``of_image`` gives them.
    """
    picture = _enlarged(pixels)
    scale = picture.width / pixels.shape[1]
    if task == SEGMENTATION:
        areas = _areas(_fitted(answer["masks"], pixels), _fitted(truth["masks"], pixels))
        return _tint(picture, areas)
    draw = ImageDraw.Draw(picture)
    kinds = _sorted_boxes(answer, truth)
    for name in (RIGHT, INVENTED, MISSED):
        for box in kinds[name]:
            _outline(draw, [scale * side for side in box], name)
    return picture


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures in a row."""
    width = sum(picture.width for picture in pictures) + GAP_PX * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "#FFFFFF")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP_PX
    return row


def picture_address(picture: Image.Image) -> str:
    """A picture as a data address, small lines kept sharp."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _enlarged(pixels: Pixels) -> Image.Image:
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    times = max(1, SIDE_PX // max(picture.size))
    if times > 1:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIDE_PX, SIDE_PX))
    return picture


# Masks


def _fitted(mask: NDArray[Any], pixels: Pixels) -> NDArray[Any]:
    """A mask of the picture's size."""
    height, width = pixels.shape[:2]
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _areas(answer: NDArray[Any], truth: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """The pixels that are right, missed and invented; those of another class are both of the latter."""
    labelled, wrong = truth != UNLABELLED, answer != truth
    return {
        RIGHT: labelled & ~wrong & (truth != GROUND),
        MISSED: labelled & wrong & (truth != GROUND),
        INVENTED: labelled & wrong & (answer != GROUND),
    }


def _tint(picture: Image.Image, areas: Mapping[str, NDArray[np.bool_]]) -> Image.Image:
    canvas = np.asarray(picture).astype(np.float32)
    down, across = np.indices(canvas.shape[:2])
    stripes = {
        RIGHT: np.ones(canvas.shape[:2], bool),
        MISSED: (across + down) % _PERIOD_PX < _PERIOD_PX // 2,
        INVENTED: ((across % _PERIOD_PX) < _PERIOD_PX // 2) & ((down % _PERIOD_PX) < _PERIOD_PX // 2),
    }
    for name in (RIGHT, INVENTED, MISSED):
        shown = Image.fromarray(areas[name]).resize(picture.size, Image.Resampling.NEAREST)
        area = np.asarray(shown)
        colour = np.array(_rgb(COLOURS[name]), np.float32)
        filled = area & stripes[name]
        canvas[filled] += _STRENGTH[name] * (colour - canvas[filled])
        canvas[_edge(area)] = colour
    return Image.fromarray(canvas.round().astype(np.uint8))


def _edge(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of an area that touch another."""
    wide = np.pad(area, 1)
    inner = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    edge: NDArray[np.bool_] = area & ~inner
    return edge


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


# Boxes


def _sorted_boxes(answer: Arrays, truth: Arrays) -> dict[str, list[Box]]:
    """The boxes found, missed and invented.

    As in COCO's evaluation: the surest box first takes the true box of its class it overlaps most.
    """
    open_ones = list(range(len(truth["labels"])))
    kinds: dict[str, list[Box]] = {RIGHT: [], MISSED: [], INVENTED: []}
    for place in np.argsort(-answer["scores"], kind="stable"):
        if answer["scores"][place] < CONFIDENT:
            break
        box = answer["boxes"][place]
        same = [other for other in open_ones if truth["labels"][other] == answer["labels"][place]]
        overlaps = [_overlap(box, truth["boxes"][other]) for other in same]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= LEAST_OVERLAP
        if hit:
            open_ones.remove(same[best])
        kinds[RIGHT if hit else INVENTED].append(_box(box))
    kinds[MISSED] += [_box(truth["boxes"][other]) for other in open_ones]
    return kinds


def _box(sides: NDArray[Any]) -> Box:
    left, top, right, bottom = map(float, sides)
    return left, top, right, bottom


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, float(width)) * max(0.0, float(height))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other)]
    whole = sum(areas) - both
    return both / whole if whole > 0 else 0.0


def _outline(draw: ImageDraw.ImageDraw, sides: Sequence[float], kind: str) -> None:
    """A frame on a dark ground: whole, dashed, or whole with a cross."""
    left, top, right, bottom = (round(side) for side in sides)
    left, top = left - _ROOM_PX, top - _ROOM_PX  # what is framed stays to be seen
    right, bottom = max(right - 1, left) + _ROOM_PX, max(bottom - 1, top) + _ROOM_PX
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="#000000", width=4)
    colour = COLOURS[kind]
    if kind != MISSED:
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    if kind == INVENTED:
        draw.line((left, top, right, bottom), fill=colour)
        draw.line((left, bottom, right, top), fill=colour)
    if kind == MISSED:
        for start in range(left, right + 1, 2 * _PERIOD_PX):
            for row in (top, bottom - 1):
                draw.rectangle((start, row, min(start + _PERIOD_PX, right), row + 1), fill=colour)
        for start in range(top, bottom + 1, 2 * _PERIOD_PX):
            for column in (left, right - 1):
                draw.rectangle((column, start, column + 1, min(start + _PERIOD_PX, bottom)), fill=colour)
