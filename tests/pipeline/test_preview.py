"""The preview: a few images, small, with labels and predictions, as plain JSON."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.load import ImageSet, load_images
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.pipeline.preview import preview_predictions
from qaf_core.pipeline.thumbnails import image_address


def test_nine_images_of_as_many_classes_as_possible() -> None:
    source = find_model("digits/cnn")
    images = load_images("builtin", source, split="calibration", limit=100)
    rows = preview_predictions(build_model(source), source, images)
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 9
    assert len({row["label"] for row in rows}) == 9
    assert sum(row["right"] for row in rows) >= 8
    for row in rows:
        assert row["top"][0] == [row["predicted"], row["confidence"]]
        assert row["right"] == (row["label"] == row["predicted"])
        assert 0 < row["confidence"] <= 1
        picture = Image.open(io.BytesIO(base64.b64decode(row["image"].partition(",")[2])))
        assert picture.size == (8, 8)
    second = preview_predictions(build_model(source), source, images, count=3, turn=1)
    assert len(second) == 3
    assert second[0]["image"] != rows[0]["image"]


@pytest.mark.parametrize(
    ("model", "task"), [("inspection/unet", "segmentation"), ("inspection/detector", "detection")]
)
def test_masks_and_boxes_are_drawn_and_counted(model: str, task: str) -> None:
    source = find_model(model)
    images = load_images("builtin", source, split="calibration", limit=24)
    rows = preview_predictions(build_model(source), source, images)
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 9
    assert len({row["label"] for row in rows}) == 8  # the sound surface has none
    for row in rows:
        assert row["task"] == task
        assert row["right"] == (not row["found"]["missed"] and not row["found"]["invented"])
        picture = Image.open(io.BytesIO(base64.b64decode(row["image"].partition(",")[2])))
        assert picture.size == (192, 192)
    assert sum(row["found"]["right"] > 0 for row in rows) >= 6


def test_a_task_of_the_users_own_has_no_preview() -> None:
    source = replace(find_model("digits/cnn"), task="of the user's own")
    images = load_images("builtin", find_model("digits/cnn"), split="calibration", limit=9)
    assert preview_predictions(build_model(find_model("digits/cnn")), source, images) == []


def test_pictures_are_small_and_names_are_shown_escaped() -> None:
    large = np.random.default_rng(0).integers(0, 256, (500, 900, 3)).astype(np.uint8)
    address = image_address(large)
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert picture.size == (160, 89)
    assert len(address) < 40_000
    source = find_model("digits/cnn")
    hostile = type(source)(**{**vars(source), "classes": ("\x1b[2J<b>", *"123456789")})
    images = ImageSet(
        name="x",
        images=np.zeros((1, 8, 8, 1), np.uint8),
        labels=np.zeros(1, np.int64),
        classes=hostile.classes,
    )
    row = preview_predictions(build_model(source), hostile, images)[0]
    assert row["label"] == r"\x1b[2J<b>"
    assert preview_predictions(build_model(source), source, images.take(np.zeros(0, np.intp), "none")) == []
