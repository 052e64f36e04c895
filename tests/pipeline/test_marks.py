"""Right, missed and invented: counted as the evaluations count, drawn so that anybody tells them apart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qaf_core.pipeline.marks import (
    COLOURS,
    CONFIDENT,
    GAP_PX,
    INVENTED,
    MISSED,
    RIGHT,
    beside,
    judge,
    mark,
    of_image,
    picture_address,
)
from qaf_core.pipeline.tasks.matching import match_boxes
from qaf_core.pipeline.tasks.segmentation import class_areas

GREY = np.full((48, 48, 1), 90, np.uint8)


def colours_in(picture: Image.Image) -> set[str]:
    pixels = np.asarray(picture).reshape(-1, 3)
    return {name for name, colour in COLOURS.items() if (pixels == rgb(colour)).all(axis=1).any()}


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def boxes(*rows: tuple[float, float, float, float, int, float]) -> dict[str, Any]:
    return {
        "boxes": np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[4] for row in rows], np.int64),
        "scores": np.array([row[5] for row in rows], np.float32),
    }


TRUTH = boxes((4, 4, 14, 14, 1, 1), (20, 20, 40, 40, 2, 1))
RIGHT_ONE = (5, 4, 14, 14, 1, 0.9)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (boxes(RIGHT_ONE, (20, 21, 40, 40, 2, 0.8)), (2, 0, 0)),
        (boxes(RIGHT_ONE), (1, 1, 0)),
        (boxes(RIGHT_ONE, (3, 3, 15, 15, 1, 0.6)), (1, 1, 1)),  # the second finds nothing of its own
        (boxes((20, 20, 40, 40, 1, 0.9)), (0, 2, 1)),  # taken for another class
        (boxes((5, 4, 14, 14, 1, CONFIDENT - 0.01)), (0, 2, 0)),  # not sure enough
        (boxes(), (0, 2, 0)),
    ],
)
def test_boxes_are_counted(answer: dict[str, Any], expected: tuple[int, int, int]) -> None:
    found = judge("detection", answer, TRUTH)
    assert (found.right, found.missed, found.invented) == expected
    assert found.faultless == (expected[1:] == (0, 0))
    names = (RIGHT, MISSED, INVENTED)
    drawn = colours_in(mark(GREY, "detection", answer, TRUTH))
    assert drawn == {name for name, count in zip(names, expected, strict=True) if count}


def test_boxes_are_matched_as_the_evaluation_matches_them() -> None:
    generator = np.random.default_rng(0)

    def drawn(images: int, most: int) -> dict[str, Any]:
        counts = generator.integers(0, most, images)
        corner = generator.uniform(0, 24, (counts.sum(), 2))
        size = generator.uniform(8, 24, (counts.sum(), 2))
        return {
            "boxes": np.concatenate([corner, corner + size], axis=1).astype(np.float32),
            "labels": generator.integers(0, 2, counts.sum()),
            "scores": generator.uniform(CONFIDENT, 1, counts.sum()).astype(np.float32),
            "counts": counts,
        }

    truth, found = drawn(60, 5), drawn(60, 1)
    rows = np.flatnonzero(generator.uniform(size=len(truth["labels"])) < 0.8)
    image = np.repeat(np.arange(60), truth["counts"])[rows]
    found["boxes"] = truth["boxes"][rows] + generator.normal(0, 1.5, (len(rows), 4)).astype(np.float32)
    found["labels"] = np.where(generator.uniform(size=len(rows)) < 0.8, truth["labels"][rows], 1)
    found["scores"] = generator.uniform(CONFIDENT, 1, len(rows)).astype(np.float32)
    found["counts"] = np.bincount(image, minlength=60)
    matched = match_boxes(found, {key: truth[key] for key in ("boxes", "labels", "counts")})
    told = [
        judge("detection", *(of_image("detection", arrays, place) for arrays in (found, truth)))
        for place in range(60)
    ]
    assert sum(row.right for row in told) == sum(row.hits[0].sum() for row in matched.classes)
    assert sum(row.right + row.missed for row in told) == len(truth["labels"])
    assert sum(row.right + row.invented for row in told) == len(found["labels"])
    assert sum(row.right for row in told) > 20


def test_pixels_are_counted() -> None:
    truth = np.zeros((48, 48), np.uint8)
    truth[:10, :10], truth[20:30, :10], truth[40:, 40:] = 1, 2, 255
    answer = np.zeros((48, 48), np.uint8)
    answer[:10, :5], answer[20:30, :10], answer[35:, 35:] = 1, 1, 3
    found = judge("segmentation", {"masks": answer}, {"masks": truth})
    labelled = 48 * 48 - 64
    assert found.right * labelled == pytest.approx(50)
    assert found.missed * labelled == pytest.approx(50 + 100)  # half of one, and one of another class
    assert found.invented * labelled == pytest.approx(100 + 13 * 13 - 64)
    areas = [area[0, 1:].sum() for area in class_areas(answer[None], truth[None])]
    assert found.right * labelled == pytest.approx(areas[2])
    assert colours_in(mark(GREY, "segmentation", {"masks": answer}, {"masks": truth})) == set(COLOURS)


def test_what_is_faultless_has_no_other_colour() -> None:
    masks = np.zeros((48, 48), np.uint8)
    masks[8:20, 8:20] = 4
    assert colours_in(mark(GREY, "segmentation", {"masks": masks}, {"masks": masks})) == {RIGHT}
    none = np.zeros((48, 48), np.uint8)
    assert colours_in(mark(GREY, "segmentation", {"masks": none}, {"masks": none})) == set()


# Machado, Oliveira and Fernandes 2009, of full strength, on linear light.
BLINDNESS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_told_apart_with_any_kind_of_blindness(kind: str) -> None:
    def seen(colour: str) -> np.ndarray[Any, Any]:
        share = np.array(rgb(colour)) / 255
        light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        mixed = np.clip(np.array(BLINDNESS[kind]) @ light, 0, 1)
        return 255 * np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)

    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(seen(one) - seen(other)) > 60


@pytest.mark.parametrize("shape", [(8, 8, 1), (64, 64, 3), (300, 500, 3)])
def test_pictures_are_of_one_size_and_small(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    truth = boxes((0, 0, shape[1], shape[0], 1, 1))
    one = mark(pixels, "detection", truth, truth)
    assert max(one.size) == 192
    row = beside([one, one])
    assert row.size == (2 * one.width + GAP_PX, one.height)
    assert 18 * len(picture_address(row)) < 4e6  # noise, the worst there is, in every picture of a report


def test_a_mask_of_another_size_is_fitted() -> None:
    mask = np.ones((12, 12), np.uint8)
    assert colours_in(mark(GREY, "segmentation", {"masks": mask}, {"masks": mask})) == {RIGHT}
