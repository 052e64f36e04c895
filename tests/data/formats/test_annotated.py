"""Folders with masks or COCO boxes, scaled with their pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.images.targets import UNLABELLED
from qaf_core.data.inspection import dataset
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import DataError
from tests.model_sources import fed

SEGMENTER = replace(
    fed(find_model("inspection/resnet20"), crop=(20, 30)),
    id="test/small",
    task="segmentation",
    classes=dataset.SURFACE_CLASSES,
    shipped=False,
    default_data=None,
)
DETECTOR = replace(SEGMENTER, task="detection")


def picture(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Black with a white box."""
    values = np.zeros((height, width, 3), np.uint8)
    values[top:bottom, left:right] = 255
    return Image.fromarray(values)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Three pictures at once, twice and three times the size, each with a marked box."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for scale in (1, 2, 3):
        image = picture(30 * scale, 20 * scale, *(scale * side for side in (6, 4, 16, 12)))
        image.save(tmp_path / "images" / f"part{scale}.png")
        mask = Image.fromarray((np.asarray(image)[..., 0] // 255 * 5).astype(np.uint8))
        mask.save(tmp_path / "masks" / f"part{scale}.png")
    return tmp_path


def coco(folder: Path, **changes: Any) -> Path:
    """Two pictures, of the model's size and twice as large; the first with two boxes, one of a crowd."""
    (folder / "images").mkdir()
    picture(30, 20, 6, 4, 16, 12).save(folder / "images" / "a.png")
    picture(60, 40, 12, 8, 32, 24).save(folder / "images" / "b.jpg")
    content: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.png"}],
        "categories": [{"id": 40, "name": "Pit"}, {"id": 41, "name": "scratch"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 40, "bbox": [12, 8, 20, 16]},
            {"id": 2, "image_id": 3, "category_id": 41, "bbox": [6, 4, 10, 8], "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 41, "bbox": [0, 0, 30, 20], "iscrowd": 1},
        ],
    }
    content.update(changes)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_masks_are_scaled_with_their_pictures(masked: Path) -> None:
    images = load_images(str(masked), SEGMENTER, split="evaluation")
    assert images.images.shape == (3, 20, 30, 3)
    masks = images.targets["masks"]
    assert set(np.unique(masks)) == {0, 5}
    expected = np.zeros((20, 30), bool)
    expected[4:12, 6:16] = True
    for mask, pixels in zip(masks, images.images[:], strict=True):
        assert ((mask == 5) == expected).all()
        assert ((pixels[..., 0] > 127) == expected).all()


def test_what_255_is_in_a_folder_is_asked_for(masked: Path) -> None:
    for file in (masked / "masks").iterdir():
        with Image.open(file) as opened:
            mask = np.asarray(opened).copy()
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(file)
    padded = fed(SEGMENTER, resize=(10, 20))
    with pytest.raises(DataError, match="two ways; got no value but 0 and 255"):
        load_images(str(masked), padded, split="evaluation")
    masks = load_images(f"{masked}#255=5", padded, split="evaluation").targets["masks"]
    assert set(np.unique(masks)) == {0, 5, UNLABELLED}
    assert (masks[:, :5] == UNLABELLED).all(), "beyond the picture there is no class"
    with pytest.raises(DataError, match="masks of .* are all of one class"):
        load_images(f"{masked}#255=none", padded, split="evaluation")


def test_padding_alone_is_no_reason_to_ask(masked: Path) -> None:
    for file in (masked / "masks").iterdir():
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(file)
    padded = fed(SEGMENTER, resize=(10, 20))
    with pytest.raises(DataError, match="all of one class"):
        load_images(str(masked), padded, split="evaluation")


def test_what_lies_beyond_a_picture_has_no_label(masked: Path) -> None:
    padded = fed(SEGMENTER, resize=(10, 20))
    images = load_images(str(masked), padded, split="evaluation")
    assert images.images.shape == (3, 20, 30, 3)
    for mask, pixels in zip(images.targets["masks"], images.images[:], strict=True):
        inside = np.zeros((20, 30), bool)
        inside[5:15, 5:25] = True
        assert (mask[~inside] == UNLABELLED).all()
        assert not (mask[inside] == UNLABELLED).any()
        assert not pixels[~inside].any()
        assert (pixels[mask == 5] > 127).mean() > 0.8


def test_images_that_only_calibrate_need_no_masks_or_boxes(masked: Path, tmp_path: Path) -> None:
    kept = load_images(str(masked), SEGMENTER, split="calibration")
    assert len(kept) == 3, "masks are no images"
    for source in (SEGMENTER, DETECTOR):
        plain = load_images(str(masked / "images"), source, split="calibration")
        assert (plain.images[:] == kept.images[:]).all()
    np.savez(tmp_path / "bare.npz", x=kept.images[:])
    bare = load_images(str(tmp_path / "bare.npz"), DETECTOR, split="calibration")
    assert (bare.images[:] == kept.images[:]).all()
    with pytest.raises(DataError, match="lacks array boxes"):
        load_images(str(tmp_path / "bare.npz"), DETECTOR, split="evaluation")


def test_palette_masks_give_their_numbers(masked: Path) -> None:
    for file in (masked / "masks").iterdir():
        with Image.open(file) as opened:
            numbers = opened.copy()
        numbers.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
        assert numbers.mode == "P"
        numbers.save(file)
    images = load_images(str(masked), SEGMENTER, split="evaluation")
    assert set(np.unique(images.targets["masks"])) == {0, 5}


def test_coco_boxes_are_scaled_and_named(tmp_path: Path) -> None:
    images = load_images(str(coco(tmp_path)), DETECTOR, split="evaluation")
    targets = images.targets
    assert targets["counts"].tolist() == [1, 1]
    assert targets["labels"].tolist() == [1, 3]  # a.png: scratch; b.jpg: pit
    assert targets["boxes"].tolist() == [[6, 4, 16, 12], [6, 4, 16, 12]]


def test_boxes_outside_the_part_used_are_left_out(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    picture(90, 20, 0, 0, 10, 10).save(folder / "images" / "a.png")  # only the middle 30 columns are used
    boxes = [[2, 2, 20, 10], [25, 5, 10, 10]]
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [
        {"id": row, "image_id": 3, "category_id": 40, "bbox": box} for row, box in enumerate(boxes)
    ]
    (folder / "annotations.json").write_text(json.dumps(content))
    targets = load_images(str(folder), DETECTOR, split="evaluation").targets
    assert targets["counts"].tolist() == [1, 0]
    assert targets["boxes"].tolist() == [[0, 5, 5, 15]]


def test_category_ids_serve_where_names_do_not(tmp_path: Path) -> None:
    named = coco(
        tmp_path,
        categories=[{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}],
        annotations=[{"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 1, 5, 5]}],
    )
    assert load_images(str(named), DETECTOR, split="evaluation").targets["labels"].tolist() == [5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 99, "name": "dog"}]}, "categories do not match.*dog"),
        # One name is a class of the model, and not the one of its id: neither names nor ids serve.
        (
            {"categories": [{"id": 2, "name": "pit"}, {"id": 5, "name": "cat"}]},
            "categories do not match.*cat",
        ),
        (
            {"categories": [{"id": 2, "name": "Pit"}, {"id": 5, "name": "pit"}]},
            "two categories are one class",
        ),
        ({"annotations": [{"image_id": 3, "category_id": 40}]}, "not in COCO's form.*bbox"),
        ({"annotations": [{"image_id": 5, "category_id": 40, "bbox": [0, 0, 1, 1]}]}, "not in COCO's form"),
        ({"images": [{"id": 3, "file_name": "gone.png"}], "annotations": []}, "1 images.*gone.png"),
        ({"annotations": []}, "holds no boxes"),
    ],
)
def test_wrong_annotations_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(str(coco(tmp_path, **changes)), DETECTOR, split="evaluation")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no annotations.json"), ("{", "cannot be read"), ("[]", "COCO's form")]
)
def test_an_unreadable_annotation_file_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_images(str(tmp_path), DETECTOR, split="evaluation")


def test_wrong_mask_folders_are_told(masked: Path) -> None:
    def load() -> None:
        load_images(str(masked), SEGMENTER, split="evaluation")

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            load()

    mask = masked / "masks" / "part2.png"
    Image.new("RGB", (60, 40)).save(mask)
    refused("coloured picture")
    Image.fromarray(np.full((40, 60), 9, np.uint8)).save(mask)
    refused("out of range.*9 in image 1")
    Image.fromarray(np.full((40, 60), 900, np.uint16)).save(mask)
    refused("large numbers")
    mask.write_bytes(b"no picture")
    refused("part2.png cannot be read")
    mask.unlink()
    refused("no mask.*part2.png")
    for file in (masked / "masks").iterdir():
        file.unlink()
    refused("masks holds no images")
    (masked / "masks").rmdir()
    refused("no folder masks")


def test_folders_are_not_read_for_other_tasks(masked: Path) -> None:
    with pytest.raises(DataError, match="not read for the task brightness"):
        load_images(str(masked), replace(SEGMENTER, task="brightness"), split="evaluation")
