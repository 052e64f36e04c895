"""torchvision's data sets from a folder: small ones in the real formats, and what is missing or forged.

Sets whose files torchvision compares with published checksums (CIFAR, SVHN, STL10, Flowers102, SEMEION)
cannot be made small; of those, that foreign files are refused is what is tested here.
"""

from __future__ import annotations

import bz2
import json
import pickle
import socket
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from qaf_core.data.formats.sources import FOLDER_SETS
from qaf_core.data.formats.torchvision import KNOWN_SETS
from qaf_core.data.load import load_images, load_pair
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.torchvision_names import CLASSIFICATION_SETS
from qaf_core.errors import DataError
from tests.model_sources import fed

DIGITS = find_model("digits/cnn")


def model_with(classes: tuple[str, ...]) -> ModelSource:
    return replace(
        fed(find_model("inspection/resnet20"), crop=(8, 8)),
        id="test/small",
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
    assert "12 images calibrate, 6 others evaluate: separate parts of the data" in str(evaluation.split)


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


def save_picture(file: Path, level: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(file)


def test_a_set_of_one_part_is_split(tmp_path: Path) -> None:
    for number in range(16):
        save_picture(
            tmp_path / "eurosat" / "2750" / ("Forest", "River")[number % 2] / f"{number}.png", number
        )
    evaluation, calibration = load_pair(
        f"torchvision:EuroSAT:{tmp_path}", None, model_with(("River", "Forest"))
    )
    levels = [images.read(range(len(images)))[:, 4, 4, 0] for images in (evaluation, calibration)]
    assert sorted(np.concatenate(levels).tolist()) == list(range(16))
    assert len(calibration) == 4
    assert evaluation.labels.tolist() == [int(level % 2 == 0) for level in levels[0].tolist()]
    assert (evaluation.name, calibration.name) == ("EuroSAT, evaluation part", "EuroSAT, calibration part")
    assert str(evaluation.split).startswith("4 images calibrate, 12 others evaluate: split by seed")


@pytest.mark.parametrize(
    ("name", "training", "evaluation", "folders", "classes"),
    [
        ("Country211", "country211/train", "country211/test", ("AD", "AE"), ("AD", "AE")),
        ("RenderedSST2", "rendered-sst2/train", "rendered-sst2/test", ("negative", "positive"), None),
        ("Imagenette", "imagenette2/train", "imagenette2/val", ("n01440764", "n02102040"),
         ("tench", "English springer")),
    ],
)  # fmt: skip
def test_sets_of_sub_folders_are_read(
    tmp_path: Path, name: str, training: str, evaluation: str, folders: tuple[str, str],
    classes: tuple[str, str] | None,
) -> None:  # fmt: skip
    for part, level in ((training, 10), (evaluation, 90)):
        for number, folder in enumerate(folders):
            file = "x.jpeg" if name == "Imagenette" else "x.png"
            save_picture(tmp_path / part / folder / file, level + number)
    (tmp_path / "rendered-sst2" / "valid").mkdir(parents=True)
    found, calibration = load_pair(f"torchvision:{name}:{tmp_path}", None, model_with(classes or folders))
    assert found.labels.tolist() == [0, 1]
    assert found.read([0, 1])[:, 4, 4, 0].tolist() == [90, 91]
    assert calibration.read([0, 1])[:, 4, 4, 0].tolist() == [10, 11]


def test_usps_is_read(tmp_path: Path) -> None:
    for name, count in (("usps.bz2", 12), ("usps.t.bz2", 10)):
        rows = [
            f"{number % 10 + 1} " + " ".join(f"{pixel + 1}:{number / 20:.2f}" for pixel in range(256))
            for number in range(count)
        ]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    evaluation, calibration = load_pair(f"torchvision:USPS:{tmp_path}", None, DIGITS)
    assert evaluation.labels.tolist() == list(range(10))
    assert evaluation.images.shape == (10, 8, 8, 1)
    assert len(calibration) == 2, "ten have the pixels of an evaluation image"


def test_cars_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], object)})
    rows = np.array([("1.png", 2), ("2.png", 1)], [("fname", object), ("class", np.uint8)])
    for file, part in (
        ("devkit/cars_train_annos", "cars_train"),
        ("cars_test_annos_withlabels", "cars_test"),
    ):
        savemat(folder / f"{file}.mat", {"annotations": rows})
        for name in ("1.png", "2.png"):
            save_picture(folder / part / name, 7)
    source = model_with(("Acura", "AM General"))
    images = load_images(f"torchvision:StanfordCars:{tmp_path}", source, split="evaluation")
    assert images.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "classes", "parts"), [("PCAM", 2, ["test"]), ("SEMEION", 10, []), ("SVHN", 10, ["test"])]
)
def test_sets_that_name_no_classes_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int, parts: list[str]
) -> None:
    asked: list[str] = []

    class Fake:
        """What torchvision's class does, without the files it would not take from us."""

        def __init__(self, root: str, download: bool, **arguments: str) -> None:
            assert (root, download) == (str(tmp_path), False)
            asked.extend(arguments.values())

        def __len__(self) -> int:
            return classes

        def __getitem__(self, number: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (9, 9), (number, 0, 0)), number

    monkeypatch.setattr(f"torchvision.datasets.{name}", Fake)
    source = model_with(tuple(f"kind {number}" for number in range(classes)))
    images = load_images(f"torchvision:{name}:{tmp_path}", source, split="evaluation")
    assert images.labels.tolist() == list(range(classes))
    assert asked == parts


def test_every_set_read_is_named() -> None:
    assert sorted({*KNOWN_SETS, *FOLDER_SETS}) == sorted(CLASSIFICATION_SETS)


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
    fetch = f"fetch it once with torchvision.datasets.{name}(ROOT, "
    told = fetch if KNOWN_SETS[name].offered else "ask its authors for it: torchvision no longer fetches it."
    assert f"expected {KNOWN_SETS[name].holds} in this folder; {told}" in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_sets_and_other_classes_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="got CIFAR-10; expected CIFAR10, .*EuroSAT, .*did you mean CIFAR10\\?"
    ):
        load_images(f"torchvision:CIFAR-10:{tmp_path}", DIGITS, split="evaluation")
    with pytest.raises(DataError, match="got UCF101; expected .*USPS; give an image folder instead"):
        load_images(f"torchvision:UCF101:{tmp_path}", DIGITS, split="evaluation")
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="classes of MNIST do not match test/small; got 0 - zero"):
        load_images(f"torchvision:MNIST:{tmp_path}", model_with(("a", "b")), split="evaluation")
