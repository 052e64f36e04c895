"""torchvision's data sets from a folder: small ones in the real formats, and what is missing or forged.

Sets whose files torchvision compares with published checksums (CIFAR, SVHN, STL10, Flowers102) cannot be made
small; of those, that foreign files are refused is what is tested here.
"""

from __future__ import annotations

import json
import pickle
import socket
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.datasets import load_images, load_pair
from qaf_core.data.models import ModelSource, find_model
from qaf_core.data.torchvision_sets import KNOWN_SETS
from qaf_core.errors import DataError

DIGITS = find_model("digits/cnn")


def model_with(classes: tuple[str, ...]) -> ModelSource:
    return replace(
        find_model("inspection/resnet20"),
        id="test/small",
        input_shape=(3, 8, 8),
        classes=classes,
        shipped=False,
        default_data=None,
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, whatever is missing."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_mnist(root: Path, name: str = "MNIST", counts: tuple[int, int] = (12, 6)) -> None:
    """Train and test part in MNIST's own format; the level of a picture tells its part and number."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count, first in (("train", counts[0], 0), ("t10k", counts[1], 100)):
        pixels = np.repeat(np.arange(first, first + count, dtype=np.uint8), 28 * 28)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(number % 10 for number in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_the_training_part_calibrates_and_the_test_part_evaluates(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path, name)
    evaluation, calibration = load_pair(f"torchvision:{name}:{tmp_path}", None, DIGITS)
    assert evaluation.read(range(6))[:, 0, 0, 0].tolist() == list(range(100, 106))
    assert evaluation.labels.tolist() == list(range(6))
    assert calibration.read(range(12))[:, 7, 7, 0].tolist() == list(range(12))
    assert calibration.labels.tolist() == [*range(10), 0, 1]
    assert (evaluation.name, evaluation.images.shape) == (f"{name}, evaluation part", (6, 8, 8, 1))
    assert "12 images calibrate, 6 others evaluate: separate parts of the data" in evaluation.split


def test_a_limit_takes_a_part(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images = load_images(f"torchvision:MNIST:{tmp_path}", DIGITS, split="evaluation", limit=3)
    assert len(images) == 3
    assert (images.read(range(3))[:, 0, 0, 0] - 100 == images.labels).all()


def test_gtsrb_is_read(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for number in range(43):
        folder = base / "GTSRB" / "Training" / f"{number:05d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (10, 9), (number, 0, 0)).save(folder / "00000_00000.ppm")
    final = base / "GTSRB" / "Final_Test" / "Images"
    final.mkdir(parents=True)
    Image.new("RGB", (10, 9), (77, 0, 0)).save(final / "00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;10;42\n")
    source = model_with(tuple(f"class {number}" for number in range(43)))
    evaluation, calibration = load_pair(f"torchvision:GTSRB:{tmp_path}", None, source)
    assert (evaluation.labels.tolist(), len(calibration)) == ([42], 43)
    assert calibration.read([7])[0, 0, 0].tolist() == [7, 0, 0]


def test_pets_and_food_are_read(tmp_path: Path) -> None:
    pets, food = tmp_path / "oxford-iiit-pet", tmp_path / "food-101"
    for folder in (pets / "images", pets / "annotations", food / "images" / "apple_pie", food / "meta"):
        folder.mkdir(parents=True)
    for number, name in enumerate(("Abyssinian_1", "beagle_2")):
        Image.new("RGB", (20, 16), (0, number * 90, 0)).save(pets / "images" / f"{name}.jpg")
    for part in ("trainval", "test"):
        (pets / "annotations" / f"{part}.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    source = model_with(("beagle", "abyssinian"))
    images = load_images(f"torchvision:OxfordIIITPet:{tmp_path}", source, split="evaluation")
    assert images.labels.tolist() == [1, 0]
    (food / "images" / "waffles").mkdir()
    for name in ("apple_pie/1", "waffles/2"):
        Image.new("RGB", (20, 16)).save(food / "images" / f"{name}.jpg")
    for part in ("train", "test"):
        content = json.dumps({"waffles": ["waffles/2"], "apple_pie": ["apple_pie/1"]})
        (food / "meta" / f"{part}.json").write_text(content)
    source = model_with(("apple pie", "waffles", "pizza"))
    images = load_images(f"torchvision:Food101:{tmp_path}", source, split="evaluation")
    assert sorted(images.labels.tolist()) == [0, 1]


def test_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    test_pets_and_food_are_read(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "beagle_2.jpg").write_bytes(b"broken")
    source = model_with(("beagle", "abyssinian"))
    with pytest.raises(DataError, match="1 of 2 images of OxfordIIITPet.*image 1 \\(cannot identify"):
        load_images(f"torchvision:OxfordIIITPet:{tmp_path}", source, split="evaluation")


class Harm:
    """Unpickling this writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize(
    ("name", "folder"), [("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python")]
)
def test_forged_cifar_files_are_refused_before_they_are_unpickled(
    tmp_path: Path, name: str, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    content = pickle.dumps(Harm(tmp_path / "harm"))
    pickle.loads(content).close()  # what a forged file would do
    (tmp_path / "harm").unlink()
    names = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    for file in (*names, "batches.meta", "train", "test", "meta"):
        (tmp_path / folder / file).write_bytes(content)
    source = model_with(tuple(f"class {number}" for number in range(10)))
    with pytest.raises(DataError, match="not found or corrupted"):
        load_images(f"torchvision:{name}:{tmp_path}", source, split="evaluation")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_what_is_missing_is_told_with_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_images(f"torchvision:{name}:{tmp_path}", DIGITS, split="evaluation")
    line = str(caught.value)
    assert line.startswith(f"torchvision's {name} is not, or not whole, in {tmp_path}; got ")
    assert (
        f"expected {KNOWN_SETS[name].holds} in this folder; fetch it once with torchvision.datasets.{name}("
        in line
    )
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_sets_and_other_classes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got CIFAR-10; expected CIFAR10, .*did you mean CIFAR10\\?"):
        load_images(f"torchvision:CIFAR-10:{tmp_path}", DIGITS, split="evaluation")
    with pytest.raises(DataError, match="got UCF101; expected"):
        load_images(f"torchvision:UCF101:{tmp_path}", DIGITS, split="evaluation")
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="classes of MNIST do not match test/small; got 0 - zero"):
        load_images(f"torchvision:MNIST:{tmp_path}", model_with(("a", "b")), split="evaluation")
    segmenter = replace(DIGITS, task="segmentation")
    with pytest.raises(DataError, match="for classification, not for segmentation"):
        load_images(f"torchvision:MNIST:{tmp_path}", segmenter, split="evaluation")
