"""Pascal VOC and COCO as they unpack, made small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.load import load_images, load_pair
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from tests.model_sources import fed

FCN = fed(find_model("torchvision/fcn_resnet50"), crop=(16, 16))
FINDER = fed(find_model("torchvision/ssdlite320_mobilenet_v3_large"), crop=(32, 32))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two pictures to train with, two to evaluate on; in each a block of class 15 and a border without."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[2:8, 2:8], mask[:, 15] = 15, 255
    for number, part in enumerate(("train", "train", "val", "val")):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / "JPEGImages" / f"{number}.jpg")
        picture = Image.fromarray(mask, "P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(folder / "SegmentationClass" / f"{number}.png")
        with (folder / "ImageSets" / "Segmentation" / f"{part}.txt").open("a") as file:
            file.write(f"{number}\n")
    return tmp_path


def test_voc_is_read(voc: Path) -> None:
    evaluation, calibration = load_pair(f"torchvision:VOCSegmentation:{voc}", None, FCN)
    masks = evaluation.targets["masks"]
    assert (masks[0, 3, 3], masks[0, 0, 0], masks[0, 3, 15]) == (15, 0, 255)
    assert (len(evaluation), len(calibration)) == (2, 2)
    assert evaluation.name == "VOCSegmentation, evaluation part"
    assert "separate parts of the data" in str(evaluation.split)


def test_classes_of_voc_are_found_by_name(voc: Path) -> None:
    others = (
        "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
        "pottedplant sheep sofa train tvmonitor"
    )
    names = ("person", "background", *others.split())
    images = load_images(
        f"torchvision:VOCSegmentation:{voc}", replace(FCN, classes=names), split="evaluation"
    )
    assert sorted(np.unique(images.targets["masks"]).tolist()) == [0, 1, 255]
    with pytest.raises(DataError, match="classes of VOCSegmentation do not match"):
        load_images(
            f"torchvision:VOCSegmentation:{voc}", replace(FCN, classes=("a", "b")), split="evaluation"
        )


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for part, count in (("train2017", 3), ("val2017", 2)):
        (tmp_path / part).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 32), (50 * number, len(part), 0)).save(tmp_path / part / f"{number}.jpg")
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(2)],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [{"image_id": 1, "category_id": 90, "bbox": [16, 4, 32, 20]}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_is_read_and_its_training_pictures_calibrate_without_boxes(coco: Path) -> None:
    evaluation, calibration = load_pair(f"torchvision:CocoDetection:{coco}", None, FINDER)
    assert evaluation.targets["counts"].tolist() == [0, 1]
    assert evaluation.targets["labels"].tolist() == [90]
    assert (evaluation.targets["boxes"] >= 0).all()
    assert (len(evaluation), len(calibration)) == (2, 3)


@pytest.mark.parametrize(
    ("name", "source", "missing"),
    [
        ("VOCSegmentation", FCN, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
        ("CocoDetection", FINDER, "val2017"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, name: str, source: ModelSource, missing: str) -> None:
    with pytest.raises(DataError, match=f"torchvision's {name} is not, or not whole, in .*/{missing} \\(No "):
        load_images(f"torchvision:{name}:{tmp_path}", source, split="evaluation")


def test_coco_without_its_boxes_is_not_whole(coco: Path) -> None:
    (coco / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"not whole.*instances_val2017\.json \(No such file"):
        load_images(f"torchvision:CocoDetection:{coco}", FINDER, split="evaluation")


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("MNIST", FCN, "not read for segmentation; got MNIST; expected VOCSegmentation"),
        ("VOCSegmentation", FINDER, "not read for detection; got VOCSegmentation; expected CocoDetection"),
        ("CocoDetection", find_model("digits/cnn"), "not read for classification; got CocoDetection"),
        ("MNIST", replace(FCN, task="depth"), "not read for depth; got MNIST; expected an .npz"),
    ],
)
def test_a_set_for_another_task_is_told(tmp_path: Path, name: str, source: ModelSource, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_images(f"torchvision:{name}:{tmp_path}", source, split="evaluation")
