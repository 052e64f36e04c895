"""Masks and boxes that go with images: drawn, read from `.npz`, chosen, and every way they can be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qaf_core.data.images.targets import UNLABELLED, checked_targets, drawn_targets, take_targets
from qaf_core.data.inspection import dataset
from qaf_core.data.load import load_images, load_pair
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError, QafError
from tests.model_sources import fed


def source_for(task: str) -> ModelSource:
    plain = find_model("inspection/resnet20")
    return replace(plain, task=task, classes=dataset.SURFACE_CLASSES, shipped=False)


SMALL = replace(fed(source_for("segmentation"), crop=(6, 8)), id="test/small", default_data=None)
DETECTOR = replace(SMALL, task="detection")
CUSTOM = replace(SMALL, task="brightness")


def pixels(count: int = 12) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)


def masks(count: int = 12) -> Any:
    return np.random.default_rng(1).integers(0, 8, (count, 6, 8), dtype=np.uint8)


def boxes(count: int = 12) -> dict[str, Any]:
    counts = np.arange(count) % 3
    total = int(counts.sum())
    corner = np.random.default_rng(2).uniform(0, 3, (total, 2))
    return {
        "boxes": np.concatenate([corner, corner + 1 + np.arange(total)[:, None] % 2], axis=1),
        "labels": np.arange(total) % 7 + 1,
        "counts": counts,
    }


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "set.npz", **arrays)
    return str(folder / "set.npz")


# --- built-in


def test_drawn_masks_and_boxes_are_of_the_same_defects() -> None:
    drawn = dataset.render(64, seed=5)
    found = drawn_targets(drawn, "segmentation")["masks"]
    assert ((found > 0) == drawn.masks).all()
    assert (found.max(axis=(1, 2)) == drawn.labels).all()
    around = drawn_targets(drawn, "detection")
    assert around["counts"].tolist() == (drawn.labels > 0).astype(int).tolist()
    assert around["labels"].tolist() == drawn.labels[drawn.labels > 0].tolist()
    for box, mask in zip(around["boxes"].astype(int), found[drawn.labels > 0], strict=True):
        left, top, right, bottom = box
        assert np.count_nonzero(mask[top:bottom, left:right]) == np.count_nonzero(mask)
        inside = mask[top:bottom, left:right] > 0
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert drawn_targets(drawn, "classification") == {}


def test_an_image_without_marked_pixels_has_an_empty_box() -> None:
    marks = np.zeros((2, 5, 7), np.uint8)
    marks[1, 2, 3:5] = 4
    assert dataset.defect_boxes(marks).tolist() == [[0, 0, 0, 0], [3, 2, 5, 3]]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_builtin_set_carries_the_targets_of_the_task(task: str) -> None:
    source = source_for(task)
    images = load_images("builtin", source, split="evaluation", limit=16)
    plain = load_images("builtin", find_model("inspection/resnet20"), split="evaluation", limit=16)
    assert images.classes == dataset.SURFACE_CLASSES
    assert (images.images == plain.images).all()
    assert (images.labels == plain.labels).all()
    assert set(images.targets) == ({"masks"} if task == "segmentation" else {"boxes", "labels", "counts"})
    assert not plain.targets


# --- choosing


def test_boxes_follow_their_images() -> None:
    everything = boxes()
    first = np.cumsum(everything["counts"]) - everything["counts"]
    chosen = np.array([5, 0, 2, 11])
    taken = take_targets(everything, chosen)
    assert taken["counts"].tolist() == [2, 0, 2, 2]
    expected = [row for image in (5, 2, 11) for row in (first[image], first[image] + 1)]
    assert (taken["boxes"] == everything["boxes"][expected]).all()
    assert (taken["labels"] == everything["labels"][expected]).all()
    assert take_targets(everything, np.array([0, 3]))["boxes"].shape == (0, 4)


def test_user_masks_are_split_with_their_images(tmp_path: Path) -> None:
    x, y = pixels(), masks()
    y[:, 0, 0] = UNLABELLED
    file = saved(tmp_path, x=x, y=y)
    evaluation, calibration = load_pair(file, None, SMALL)
    assert len(evaluation) + len(calibration) == 12
    of_image = {image.tobytes(): mask for image, mask in zip(x, y, strict=True)}
    for part in (evaluation, calibration):
        for image, mask in zip(part.images, part.targets["masks"], strict=True):
            assert (of_image[image.tobytes()] == mask).all()


def test_user_boxes_are_read(tmp_path: Path) -> None:
    arrays = boxes()
    images = load_images(saved(tmp_path, x=pixels(), **arrays), DETECTOR, split="evaluation")
    for key, values in arrays.items():
        np.testing.assert_allclose(images.targets[key], values, rtol=1e-6)
    assert (images.labels == 0).all()


def test_a_task_of_the_users_own_gets_its_array(tmp_path: Path) -> None:
    wanted = np.linspace(0, 1, 12)
    images = load_images(saved(tmp_path, x=pixels(), y=wanted), CUSTOM, split="evaluation", limit=4)
    assert len(images.targets["y"]) == 4
    assert set(images.targets["y"]) <= set(wanted)


# --- what 255 in masks is

TWO = replace(SMALL, classes=("background", "crack"))


def white(*values: int) -> Any:
    """Masks with these values and no others."""
    drawn = np.random.default_rng(3).integers(0, len(values), (12, 6, 8))
    return np.array(values, np.uint8)[drawn]


@pytest.mark.parametrize("source", [TWO, SMALL], ids=["two", "eight"])
@pytest.mark.parametrize("values", [(0, 255), (255,)])
def test_masks_that_can_be_read_in_two_ways_are_asked_for(
    tmp_path: Path, source: ModelSource, values: tuple[int, ...]
) -> None:
    file = saved(tmp_path, x=pixels(), y=white(*values))
    with pytest.raises(
        DataError, match=r"two ways.*#255=1 for class 1 \((crack|scratch)\).*#255=none for"
    ) as told:
        load_images(file, source, split="evaluation")
    assert "\n" not in str(told.value)


def test_the_path_says_what_255_is(tmp_path: Path) -> None:
    y = white(0, 255)
    file = saved(tmp_path, x=pixels(), y=y)
    found = load_images(file + "#255=1", TWO, split="evaluation")
    assert (found.targets["masks"] == (y == 255)).all()
    assert found.name == "set.npz"
    seventh = load_images(file + "#255=7", SMALL, split="evaluation")
    assert set(np.unique(seventh.targets["masks"])) == {0, 7}
    with pytest.raises(DataError, match="all of one class.*got background"):
        load_images(file + "#255=none", TWO, split="evaluation")
    file = saved(tmp_path, x=pixels(), y=white(0, 1, 255))
    assert set(np.unique(load_images(file + "#255=1", TWO, split="evaluation").targets["masks"])) == {0, 1}
    evaluation, calibration = load_pair(file + "#255=none", file, TWO)
    assert len(evaluation) + len(calibration) == 12, "one file, split in two"


@pytest.mark.parametrize("values", [(0, 1), (0, 1, 255), (1, 255), (0, 2, 255)])
def test_masks_with_other_classes_leave_255_without_label(values: tuple[int, ...]) -> None:
    y = white(*values)
    found = checked_targets("set", {"y": y}, 12, SMALL if 2 in values else TWO)
    assert (found["masks"] == y).all()


def test_masks_may_be_true_or_false(tmp_path: Path) -> None:
    y = white(0, 1)
    found = load_images(saved(tmp_path, x=pixels(), y=y > 0), TWO, split="evaluation")
    assert (found.targets["masks"] == y).all()


@pytest.mark.parametrize(
    ("ending", "source", "message"),
    [
        ("#255=2", TWO, "names no class of test/small; expected 0 to 1, or none"),
        ("#255=300", SMALL, "names no class"),
        ("#255=none", DETECTOR, "is for masks; got task detection"),
        ("#255=", TWO, "data not found"),
        ("#1=255", TWO, "data not found"),
        ("#255=none", TWO, "label no pixel"),
    ],
)
def test_what_is_wrongly_said_of_255_is_told(
    tmp_path: Path, ending: str, source: ModelSource, message: str
) -> None:
    file = saved(tmp_path, x=pixels(), y=white(255), **boxes())
    with pytest.raises(DataError, match=message):
        load_images(file + ending, source, split="evaluation")


# --- what can be wrong


def wrong_masks(kind: str) -> Any:
    y: Any = masks()
    if kind == "shape":
        return y[:, :5]
    if kind == "type":
        return y.astype(np.float32)
    if kind == "class":
        y = y.copy()
        y[3, 2, 1] = 9
        return y
    return np.full_like(y, UNLABELLED)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"wrong shape.*\(12, 5, 8\)"),
        ("type", "wrong type.*float32"),
        ("class", "out of range.*9 in image 3"),
        ("empty", "two ways; got no value but 255"),
    ],
)
def test_wrong_masks_are_told(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(saved(tmp_path, x=pixels(), y=wrong_masks(kind)), SMALL, split="evaluation")


def wrong_boxes(kind: str) -> dict[str, Any]:
    arrays = boxes()
    if kind == "counts":
        arrays["counts"] = arrays["counts"].astype(float)
    elif kind == "total":
        arrays["counts"] = arrays["counts"] + 1
    elif kind == "none":
        arrays = {
            "boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "counts": np.zeros(12, int)
        }  # fmt: skip
    elif kind == "sides":
        arrays["boxes"] = arrays["boxes"][:, [2, 3, 0, 1]]
    elif kind == "nan":
        arrays["boxes"] = arrays["boxes"] * np.nan
    else:
        arrays["labels"] = arrays["labels"] + 3
    return arrays


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("counts", "counts.*malformed"),
        ("total", "do not go with its counts"),
        ("none", "holds no boxes"),
        ("sides", "malformed.*width and height must be added"),
        ("nan", "malformed"),
        ("labels", "out of range.*0 to 7"),
    ],
)
def test_wrong_boxes_are_told(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(saved(tmp_path, x=pixels(), **wrong_boxes(kind)), DETECTOR, split="evaluation")


@pytest.mark.parametrize(
    ("source", "lacking"), [(SMALL, "y"), (DETECTOR, "labels and counts"), (CUSTOM, "y")]
)
def test_missing_arrays_are_named(tmp_path: Path, source: ModelSource, lacking: str) -> None:
    file = saved(tmp_path, x=pixels(), boxes=np.zeros((0, 4)))
    with pytest.raises(QafError, match=f"lacks array {lacking}"):
        load_images(file, source, split="evaluation")


def test_a_custom_array_of_another_length_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="y of set.npz has the wrong shape"):
        load_images(saved(tmp_path, x=pixels(), y=np.zeros(5)), CUSTOM, split="evaluation")
