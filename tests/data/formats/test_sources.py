"""What the user's words for images mean."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from qaf_core.data.formats.sources import (
    absolute_data,
    file_place,
    lies_in,
    missing_path,
    same_place,
    torchvision_place,
)
from qaf_core.data.load import load_images, load_pair
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import DataError
from tests.model_sources import fed

SMALL = replace(
    fed(find_model("inspection/resnet20"), crop=(6, 8)),
    id="test/small",
    classes=("left", "right"),
    shipped=False,
    default_data=None,
)


def fill(folder: Path, count: int, first: int = 0) -> Path:
    for number in range(first, first + count):
        file = folder / ("left", "right")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), number).save(file)
    return folder


def levels(images: object) -> set[int]:
    return {int(image[0, 0, 0]) for image in images.images[:]}  # type: ignore[attr-defined]


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    fill(tmp_path / "parts", 40)
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        for file in (tmp_path / "parts").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    cache = tmp_path / "cache"
    evaluation, calibration = load_pair(str(tmp_path / "parts.zip"), None, SMALL, cache=cache)
    assert levels(evaluation) | levels(calibration) == set(range(40))
    assert evaluation.name == "parts.zip, evaluation part"
    assert (
        str(evaluation.split)
        == str(calibration.split)
        == ("10 images calibrate, 30 others evaluate: split by seed 17, no image in both.")
    )
    assert {path.name for path in cache.iterdir()} == {"archives", "decoded"}
    assert list((cache / "decoded").iterdir()) == []
    with pytest.raises(DataError, match="archive parts.zip has no workspace"):
        load_images(str(tmp_path / "parts.zip"), SMALL, split="evaluation")


@pytest.mark.parametrize(("training", "evaluating"), [("train", "val"), ("Training", "test")])
def test_a_folder_may_bring_both_parts(tmp_path: Path, training: str, evaluating: str) -> None:
    fill(tmp_path / training, 10)
    fill(tmp_path / evaluating, 6, first=100)
    evaluation, calibration = load_pair(str(tmp_path), None, SMALL)
    assert levels(evaluation) == set(range(100, 106))
    assert levels(calibration) == set(range(10))
    assert "separate parts of the data" in str(evaluation.split)
    fill(tmp_path / "other", 4)
    assert not file_place(str(tmp_path), None).has_parts


def test_folders_of_torchvision_are_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train", 10)
    fill(tmp_path / "val", 6, first=100)
    evaluation, _ = load_pair(f"torchvision:ImageNet:{tmp_path}", None, SMALL)
    assert levels(evaluation) == set(range(100, 106))
    plain = load_images(f"torchvision:ImageFolder:{tmp_path / 'train'}", SMALL, split="evaluation")
    assert len(plain) == 10


def test_names_of_torchvision_sets_have_three_parts() -> None:
    place = torchvision_place("torchvision:CIFAR10:/data/sets")
    assert place is not None
    assert (place.name, place.root) == ("CIFAR10", Path("/data/sets"))
    assert torchvision_place("/data/torchvision") is None
    for data in ("torchvision:CIFAR10", "torchvision::/data", "torchvision:"):
        with pytest.raises(DataError, match="needs its name and its folder.*torchvision:CIFAR10:/data"):
            torchvision_place(data)


def test_places_keep_their_meaning_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    assert absolute_data("parts") == str(tmp_path / "parts")
    assert absolute_data("torchvision:MNIST:parts") == f"torchvision:MNIST:{tmp_path / 'parts'}"
    assert absolute_data("builtin") == "builtin"
    assert missing_path("parts") is None
    assert missing_path("builtin") is None
    assert missing_path("torchvision:MNIST:absent") == "absent"
    assert missing_path("~no_such_user_here/x") == "~no_such_user_here/x"
    assert missing_path("x" * 5000) == "x" * 5000
    assert same_place("parts", os.path.join("parts", "..", "parts"))
    assert same_place("torchvision:MNIST:parts", f"torchvision:MNIST:{tmp_path}/parts")
    assert not same_place("torchvision:MNIST:parts", "torchvision:KMNIST:parts")
    assert not same_place("parts", "torchvision:MNIST:parts")


def test_what_lies_in_a_folder_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    for data in (folder, folder / "train", tmp_path / "link", tmp_path / "other" / ".." / "set"):
        assert lies_in(str(data), folder)
    assert lies_in(f"torchvision:ImageFolder:{folder / 'train'}", folder)
    for other in ("builtin", "torchvision:CIFAR10", str(tmp_path), str(tmp_path / "set-2"), "~nobody/x"):
        assert not lies_in(other, folder)


def test_what_is_said_of_masks_is_no_part_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set.npz").touch()
    (tmp_path / "odd#255=5x").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_data("set.npz#255=1") == f"{tmp_path}/set.npz#255=1"
    assert missing_path("set.npz#255=none") is None
    assert missing_path("gone.npz#255=none") == "gone.npz"
    assert same_place("set.npz#255=1", "set.npz")
    assert lies_in("set.npz#255=1", tmp_path)
    assert [file_place(f"set.npz{end}", None).white for end in ("", "#255=none", "#255=3")] == [None, 255, 3]
    assert file_place("odd#255=5x", None).name == "odd#255=5x"


def test_folders_that_differ_in_case_are_no_parts(tmp_path: Path) -> None:
    for name in ("train", "Train", "val"):
        (tmp_path / name).mkdir()
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell case apart")
    assert not file_place(str(tmp_path), None).has_parts
