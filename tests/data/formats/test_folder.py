"""Image folders: which files count, which are passed over, links, hostile names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qaf_core.data.formats.folder import list_folder, match_classes
from qaf_core.data.load import load_images, load_pair
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import DataError
from tests.model_sources import fed

SMALL = replace(
    fed(find_model("inspection/resnet20"), crop=(6, 8)),
    id="test/small",
    classes=("left", "right", "far left"),
    shipped=False,
    default_data=None,
)


def save_picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level, level, level)).save(path, "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for number, name in enumerate(("left/1.png", "left/night/shift/2.png", "right/3.png", "right/.4.png")):
        save_picture(root / name, number)
    save_picture(root / ".trash" / "5.png", 5)
    save_picture(root / "right" / ".thumbs" / "6.png", 6)
    (root / "right" / "notes.txt").write_text("not a picture")
    return root


def test_pictures_may_lie_deeper_and_hidden_ones_are_passed_over(folder: Path) -> None:
    listed = list_folder(folder, SMALL)
    assert [listed.name_of(number) for number in range(3)] == [
        "left/1.png",
        "left/night/shift/2.png",
        "right/3.png",
    ]
    assert listed.labels.tolist() == [0, 0, 1]


def test_calibration_images_need_no_classes(tmp_path: Path, folder: Path) -> None:
    loose = tmp_path / "loose"
    for number in range(4):
        save_picture(loose / f"{number}.png", 100 + number)
    images = load_images(str(loose), SMALL, split="calibration")
    assert images.read(range(4))[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    evaluation, calibration = load_pair(str(folder), str(loose), SMALL)
    assert (len(evaluation), len(calibration)) == (3, 4)
    with pytest.raises(DataError, match="no class sub-folders"):
        load_images(str(loose), SMALL, split="evaluation")


def test_links_are_followed_inside_the_folder_only(tmp_path: Path, folder: Path) -> None:
    save_picture(tmp_path / "outside" / "secret.png", 200)
    save_picture(tmp_path / "outside" / "deep" / "other.png", 201)
    (folder / "right" / "inside.png").symlink_to(folder / "left" / "1.png")
    listed = list_folder(folder, SMALL)
    assert len(load_images(str(folder), SMALL, split="evaluation")) == len(listed.files) == 4
    (folder / "right" / "gallery").symlink_to(tmp_path / "outside")
    (folder / "far left").symlink_to(tmp_path / "outside")
    assert list_folder(folder, SMALL).files == listed.files
    link = folder / "right" / "out.png"
    link.symlink_to(tmp_path / "outside" / "secret.png")
    with pytest.raises(DataError, match="right/out.png \\(a link that leads out of the folder\\)"):
        load_images(str(folder), SMALL, split="evaluation")
    link.unlink()
    link.symlink_to(folder / "right" / "absent.png")
    with pytest.raises(DataError, match="a link that leads nowhere"):
        load_images(str(folder), SMALL, split="evaluation")


def test_a_folder_reached_through_a_link_is_read(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert len(load_images(str(tmp_path / "link"), SMALL, split="evaluation")) == 3


def test_one_class_says_nothing_about_accuracy(tmp_path: Path) -> None:
    for number in range(3):
        save_picture(tmp_path / "parts" / "left" / f"{number}.png", number)
    with pytest.raises(
        DataError, match="images of parts are all of one class.*got left; expected two classes"
    ):
        load_images(str(tmp_path / "parts"), SMALL, split="evaluation")
    assert len(load_images(str(tmp_path / "parts"), SMALL, split="calibration")) == 3


def test_hostile_names_are_read_and_shown_escaped(tmp_path: Path) -> None:
    root = tmp_path / "p\x1b[2Jarts"
    for number in range(150):
        save_picture(root / ("left", "right")[number % 2] / f"\u202e部品 {number}.png", number)
    (root / "left" / "a\n<b>\x1b[31m.png").write_bytes(b"broken")
    images = load_images(str(root), SMALL, split="evaluation")
    assert len(images) == 150
    (skipped,) = images.skipped
    assert skipped.name == "left/a\\n<b>\\x1b[31m.png"
    assert images.name == "p\\x1b[2Jarts, 1 unreadable left out"
    (root / "up\x07").mkdir()
    with pytest.raises(DataError) as caught:
        load_images(str(root), SMALL, split="evaluation")
    assert "got up\\x07; expected left, right, far left" in str(caught.value)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    """A file system may hold names that are not UTF-8."""
    for number, name in enumerate((b"left", b"right")):
        save_picture(tmp_path / name.decode() / "1.png", number)
        target = tmp_path / name.decode() / "caf\udce9.png"
        try:
            save_picture(target, 9)
        except (OSError, UnicodeEncodeError):
            pytest.skip("this file system takes UTF-8 names only")
    images = load_images(str(tmp_path), SMALL, split="evaluation")
    assert len(images) == 4


def test_classes_are_matched_by_name_then_by_order() -> None:
    assert match_classes(["RIGHT", "far_left"], SMALL, "folders") == [1, 2]
    assert match_classes(["n01", "n02", "n03"], SMALL, "folders") == [0, 1, 2]
    with pytest.raises(DataError, match="folders do not match test/small; got n01, n02; expected left"):
        match_classes(["n01", "n02"], SMALL, "folders")
    with pytest.raises(DataError, match="got up; expected"):
        match_classes(["left", "right", "up"], SMALL, "folders")


def test_labels_of_calibration_images_follow_names_where_they_can(folder: Path) -> None:
    assert list_folder(folder, SMALL, labelled=False).labels.tolist() == [0, 0, 1]
    save_picture(folder / "a.png", 7)
    assert list_folder(folder, SMALL, labelled=False).labels.tolist() == [0, 0, 0, 1]
    assert np.unique(list_folder(folder, SMALL).labels).tolist() == [0, 1]


def test_folders_that_differ_in_case_stay_two_classes(tmp_path: Path) -> None:
    letters = replace(SMALL, classes=("a", "A", "b"))
    for number, name in enumerate(("A", "a", "b")):
        (tmp_path / name).mkdir()
        save_picture(tmp_path / name / "x.png", 20 * number)
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell case apart")
    assert list_folder(tmp_path, letters).labels.tolist() == [1, 0, 2]
    with pytest.raises(DataError, match="two class folders are one class; got A and a; expected one for a"):
        list_folder(tmp_path, replace(SMALL, classes=("a", "b", "c")))
    assert (
        list_folder(tmp_path, replace(SMALL, classes=("a", "b")), labelled=False).labels.tolist() == [0] * 3
    )
