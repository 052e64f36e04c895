"""Images and labels as users have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qaf_core.api.images import each_batch, first_images, labelled_batches
from qaf_core.errors import DataError

IMAGES = torch.arange(70.0).reshape(70, 1, 1, 1)
LABELS = torch.arange(70)


@pytest.mark.parametrize(
    "given",
    [
        IMAGES,
        IMAGES.numpy().astype(np.float64),
        list(torch.split(IMAGES, 9)),
        ((batch, batch.flatten()) for batch in torch.split(IMAGES, 9)),
        [[batch.numpy()] for batch in torch.split(IMAGES, 9)],
    ],
    ids=["tensor", "array", "batches", "pairs", "lists of arrays"],
)
def test_images_come_in_many_forms(given: Any) -> None:
    found = first_images(given)
    assert found.dtype == torch.float32
    assert torch.equal(found, IMAGES)


def test_no_more_images_are_read_than_are_used() -> None:
    batches = iter(torch.split(IMAGES, 10))
    assert len(first_images(batches, 25)) == 25
    assert len(list(batches)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "these are no images; got int"),
        ("images", "these are no images; got str"),
        ({"x": IMAGES}, "these are no images; got dict"),
        (["a.png"], "not as a network takes them in; got str"),
        (IMAGES.to(torch.uint8), r"got torch.uint8 \(32, 1, 1, 1\); expected floating-point"),
        ([IMAGES, IMAGES.expand(70, 1, 2, 2)], "differ in size"),
        ([], "no calibration images"),
    ],
)
def test_what_is_no_image_is_told(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        first_images(given)


def test_labels_stand_beside_the_images_or_alone() -> None:
    pairs = [(IMAGES[:40], LABELS[:40]), (IMAGES[40:], LABELS[40:])]
    for given in ((pairs,), (IMAGES, LABELS), (IMAGES, range(70))):
        found = labelled_batches(*given)
        images, labels = zip(*found, strict=True)
        assert torch.equal(torch.cat(images).flatten(), torch.from_numpy(np.concatenate(labels)).float())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are malformed; got none"),
        (LABELS.float(), "labels are malformed; got float32"),
        (LABELS[:, None], r"got int64 \(70, 1\)"),
        (-LABELS, "labels are malformed"),
        (LABELS[:, None, None] + 187, r"malformed; got int64 \(70, 1, 1\); expected.*0 to 255"),
        (
            torch.zeros(70, 4, 2, dtype=torch.int64),
            r"not of the images' size; got \(4, 2\); expected \(1, 1\)",
        ),
        (LABELS[:69], "differ in number; got 70 images, 69 labels"),
        (torch.arange(71), "differ in number; got 70 images, 71 labels"),
    ],
)
def test_labels_that_do_not_go_with_the_images_are_told(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(labelled_batches(IMAGES, labels))
    assert len(list(each_batch(IMAGES))) == 3
