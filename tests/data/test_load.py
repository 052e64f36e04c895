"""Images for a model: built-in splits, `.npz` files and folders, and every way they can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qaf_core.data.formats.builtin import read_digits
from qaf_core.data.load import ImageSet, load_images, load_pair, to_batches
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError, QafError

SMALL = ModelSource(
    id="test/small",
    title="Small",
    architecture="digits_cnn",
    preprocessing=Preprocessing(crop=(6, 8), mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.2)),
    classes=("left", "right", "far left"),
)


def make_arrays(count: int = 40, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8),
        "y": generator.integers(0, 3, count),
    }


@pytest.fixture
def npz(tmp_path: Path) -> str:
    np.savez(tmp_path / "photos.npz", **make_arrays())
    return str(tmp_path / "photos.npz")


def keys_of(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images[:]}


# --- Built-in


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("digits/cnn", (998, 350, 449)), ("inspection/resnet20", (300, 200, 100))],
)
def test_builtin_splits_are_disjoint_and_repeatable(model: str, sizes: tuple[int, int, int]) -> None:
    source = find_model(model)
    limits = sizes if model.startswith("inspection") else (None, None, None)
    names = ("train", "calibration", "evaluation")
    parts = [
        load_images("builtin", source, split=split, limit=limit)
        for split, limit in zip(names, limits, strict=True)
    ]
    assert tuple(len(part) for part in parts) == sizes
    assert len(set().union(*map(keys_of, parts))) == sum(sizes)
    again = load_images("builtin", source, split="evaluation", limit=limits[2])
    np.testing.assert_array_equal(again.images, parts[2].images)
    assert parts[0].images.shape[1:] == (*source.input_shape[1:], source.input_shape[0])


def test_the_seed_moves_the_calibration_images_but_never_the_evaluation_images() -> None:
    source = find_model("inspection/resnet20")
    first, second = (load_images("builtin", source, split="calibration", limit=32, seed=s) for s in (0, 1))
    assert not keys_of(first) & keys_of(second)
    first, second = (load_images("builtin", source, split="evaluation", limit=32, seed=s) for s in (0, 1))
    assert keys_of(first) == keys_of(second)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, digits = read_digits()
    expected = load_digits()
    assert np.array_equal(images, expected.images)
    assert np.array_equal(digits, expected.target)


def test_digits_use_the_whole_range_of_grey() -> None:
    digits = load_images("builtin", find_model("digits/cnn"), split="evaluation")
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert set(digits.labels) == set(range(10))


def test_a_model_without_builtin_images_says_so() -> None:
    with pytest.raises(DataError, match="no built-in images.*--data"):
        load_images("builtin", find_model("cifar/resnet20"), split="evaluation")


# --- Normalisation


def test_batches_are_normalised_per_channel() -> None:
    images = ImageSet(
        name="one", images=np.full((3, 6, 8, 3), 51, np.uint8), labels=np.arange(3), classes=SMALL.classes
    )
    batches = list(to_batches(images, SMALL, batch_size=2))
    assert [tuple(pixels.shape) for pixels, _ in batches] == [(2, 3, 6, 8), (1, 3, 6, 8)]
    pixels, labels = batches[1]
    assert (pixels.dtype, labels.dtype, labels.tolist()) == (torch.float32, torch.int64, [2])
    steps = SMALL.preprocessing
    for channel, (mean, std) in enumerate(zip(steps.mean, steps.std, strict=True)):
        torch.testing.assert_close(pixels[:, channel], torch.full((1, 6, 8), (0.2 - mean) / std))


def test_batches_put_rows_and_columns_where_they_belong() -> None:
    image = np.zeros((1, 6, 8, 3), np.uint8)
    image[0, 4, 7, 1] = 255
    ((pixels, _),) = to_batches(
        ImageSet(name="dot", images=image, labels=np.zeros(1, np.int64), classes=SMALL.classes), SMALL
    )
    assert pixels[0, 1].argmax().item() == 4 * 8 + 7


# --- Npz files


def test_npz_is_read_whole(npz: str) -> None:
    loaded = load_images(npz, SMALL, split="evaluation")
    np.testing.assert_array_equal(loaded.images, make_arrays()["x"])
    np.testing.assert_array_equal(loaded.labels, make_arrays()["y"])
    assert (loaded.labels.dtype, loaded.classes) == (np.int64, SMALL.classes)


def test_a_limit_takes_a_stable_subset(npz: str) -> None:
    first = load_images(npz, SMALL, split="evaluation", limit=10, seed=1)
    second = load_images(npz, SMALL, split="evaluation", limit=10, seed=2)
    assert keys_of(first) == keys_of(second)
    assert first.name == "photos.npz, subset of 40"
    assert len(load_images(npz, SMALL, split="evaluation", limit=999)) == 40


def test_user_data_for_both_purposes_are_split(npz: str) -> None:
    evaluation, calibration = load_pair(npz, None, SMALL)
    assert (len(evaluation), len(calibration)) == (30, 10)
    assert not keys_of(evaluation) & keys_of(calibration)
    assert "evaluation part" in evaluation.name
    assert "calibration part" in calibration.name
    same_file = load_pair(npz, npz, SMALL)
    assert keys_of(same_file[1]) == keys_of(calibration)


def test_separate_calibration_data_leave_the_evaluation_data_whole(npz: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **make_arrays(seed=1))
    evaluation, calibration = load_pair(npz, str(tmp_path / "other.npz"), SMALL, calibration_limit=16)
    assert (len(evaluation), len(calibration)) == (40, 16)


@pytest.mark.parametrize("names", [["RIGHT", "far_left", "left"], ["Right", "Far left"]])
def test_classes_of_an_npz_are_matched_like_folders(tmp_path: Path, names: list[str]) -> None:
    y = np.arange(3) % len(names)
    np.savez(tmp_path / "photos.npz", **{**make_arrays(3), "y": y, "classes": np.array(names)})
    loaded = load_images(str(tmp_path / "photos.npz"), SMALL, split="calibration", shared=False)
    wanted = [names[label].lower().replace("_", " ") for label in y]
    assert [loaded.classes[label] for label in loaded.labels] == wanted


def test_classes_of_an_npz_that_are_half_known_are_refused(tmp_path: Path) -> None:
    arrays = {**make_arrays(3), "classes": np.array(["right", "far left", "middle"])}
    np.savez(tmp_path / "photos.npz", **arrays)
    with pytest.raises(DataError, match="classes of photos.npz do not match.*got middle"):
        load_images(str(tmp_path / "photos.npz"), SMALL, split="evaluation")


def test_classes_in_another_order_are_numbered_as_the_model_does(tmp_path: Path) -> None:
    arrays = {**make_arrays(3), "y": np.array([0, 1, 2]), "classes": np.array(["right", "far left", "left"])}
    np.savez(tmp_path / "photos.npz", **arrays)
    loaded = load_images(str(tmp_path / "photos.npz"), SMALL, split="evaluation")
    assert [loaded.classes[label] for label in loaded.labels] == ["right", "far left", "left"]
    assert loaded.classes == SMALL.classes


@pytest.mark.parametrize("data", ["x" * 5000, "~no_such_user_here/photos.npz"])
def test_impossible_paths_are_told_in_one_line(data: str) -> None:
    with pytest.raises(DataError, match="data cannot be read"):
        load_images(data, SMALL, split="evaluation")


BAD_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("one image", {"x": np.zeros((6, 8, 3), np.uint8)}, r"wrong shape.*\(6, 8, 3\)"),
    (
        "another size",
        {"x": np.zeros((40, 7, 8, 3), np.uint8)},
        r"do not fit test/small.*\(40, 7, 8, 3\).*\(N, 6, 8, 3\)",
    ),
    ("channels first", {"x": np.zeros((40, 3, 6, 8), np.uint8)}, "channels last"),
    ("floats", {"x": np.zeros((40, 6, 8, 3), np.float32)}, "float32.*uint8"),
    ("empty", {"x": np.zeros((0, 6, 8, 3), np.uint8), "y": np.zeros(0, int)}, "empty"),
    ("label too large", {"y": np.full(40, 3)}, "40 labels.*out of range.*got 3 at image 0.*0 to 2"),
    ("label negative", {"y": np.r_[np.zeros(39, int), -1]}, "got -1 at image 39"),
    ("labels of another length", {"y": np.zeros(39, int)}, r"\(39,\).*\(40,\)"),
    ("labels as floats", {"y": np.zeros(40)}, "float64.*integers"),
    ("labels missing", {"y": None}, "lacks array y"),
    ("pickled objects", {"x": np.array([None, {}])}, "cannot be read"),
    ("other classes", {"classes": np.array(["a", "b"])}, "number of classes.*got 2.*expected 3"),
]


@pytest.mark.parametrize(
    ("changes", "message"), [case[1:] for case in BAD_ARRAYS], ids=[case[0] for case in BAD_ARRAYS]
)
def test_bad_arrays_are_told_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in {**make_arrays(), **changes}.items() if value is not None}
    np.savez(tmp_path / "photos.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_images(str(tmp_path / "photos.npz"), SMALL, split="evaluation")
    assert "photos.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_to_evaluate_on_are_of_two_classes_or_more(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one.npz"), str(tmp_path / "two.npz")
    np.savez(one, x=make_arrays()["x"], y=np.ones(40, int))
    np.savez(two, x=make_arrays()["x"], y=np.r_[np.ones(39, int), 0])
    told = r"{}\.npz.* all of one class.*got right; expected two classes"
    for load in (lambda: load_images(one, SMALL, split="evaluation"), lambda: load_pair(one, None, SMALL)):
        with pytest.raises(DataError, match=told.format("one")):
            load()
    assert len(load_images(two, SMALL, split="evaluation")) == 40
    with pytest.raises(DataError, match=told.format("two") + ".*take more images"):
        load_images(two, SMALL, split="evaluation", limit=2)
    assert len(load_images(one, SMALL, split="calibration")) == 40, "whatever they show, they calibrate"


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_damaged_files_are_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photos.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"photos\.npz cannot be read"):
        load_images(str(tmp_path / "photos.npz"), SMALL, split="evaluation")


def test_a_truncated_npz_is_told_in_one_line(tmp_path: Path, npz: str) -> None:
    whole = Path(npz).read_bytes()
    damaged = bytearray(whole)
    damaged[200:400] = bytes(200)  # inside the pixels: the archive's checksum no longer fits
    (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="cannot be read"):
        load_images(str(tmp_path / "damaged.npz"), SMALL, split="evaluation")


@pytest.mark.parametrize("data", ["nowhere.npz", "no/such/folder", ""])
def test_missing_data_are_named(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"not found|no class sub-folders"):
        load_images(data, SMALL, split="evaluation")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"unknown format; got \.csv"):
        load_images(str(tmp_path / "data.csv"), SMALL, split="evaluation")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(DataError, match="number of images"):
        load_images("builtin", find_model("digits/cnn"), split="evaluation", limit=limit)


# --- Folders


def save_picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_matches_classes_by_name_whatever_their_order(tmp_path: Path) -> None:
    save_picture(tmp_path / "Right" / "1.png", (10, 20, 30))
    save_picture(tmp_path / "far_left" / "1.png", (40, 50, 60))
    (tmp_path / "Right" / "notes.txt").write_text("not a picture")
    loaded = load_images(str(tmp_path), SMALL, split="evaluation")
    assert loaded.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(loaded.read([0])[0, 0, 0], (10, 20, 30))


def test_a_folder_with_other_names_is_taken_in_order(tmp_path: Path) -> None:
    for index, name in enumerate(("n01", "n02", "n03")):
        save_picture(tmp_path / name / "1.png", (index, index, index))
    assert load_images(str(tmp_path), SMALL, split="evaluation").labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [(80, 60), (4, 3), (60, 80), (200, 20)])
def test_pictures_of_any_size_are_scaled_and_cut(tmp_path: Path, size: tuple[int, int]) -> None:
    save_picture(tmp_path / "left" / "1.png", (9, 99, 199), size)
    loaded = load_images(str(tmp_path), SMALL, split="evaluation")
    assert loaded.images.shape == (1, 6, 8, 3)
    assert (loaded.images[:] == (9, 99, 199)).all()


def test_the_middle_of_a_wide_picture_is_kept(tmp_path: Path) -> None:
    picture = np.zeros((6, 24, 3), np.uint8)
    picture[:, 8:16] = 200
    (tmp_path / "left").mkdir()
    Image.fromarray(picture).save(tmp_path / "left" / "1.png")
    assert (load_images(str(tmp_path), SMALL, split="evaluation").images[:] == 200).all()


def test_only_the_chosen_pictures_of_a_folder_are_opened(tmp_path: Path) -> None:
    for index in range(8):
        save_picture(tmp_path / ("left", "right")[index % 2] / f"{index}.png", (index, index, index))
    evaluation, calibration = load_pair(str(tmp_path), None, SMALL)
    assert (len(evaluation), len(calibration)) == (6, 2)
    assert not keys_of(evaluation) & keys_of(calibration)
    for image in calibration.images[:]:
        number = image[0, 0, 0]
        (tmp_path / ("left", "right")[number % 2] / f"{number}.png").write_bytes(b"broken")
    again = load_images(str(tmp_path), SMALL, split="evaluation", limit=3, shared=True)
    assert keys_of(again) <= keys_of(evaluation)


def test_a_single_picture_cannot_serve_two_purposes(tmp_path: Path) -> None:
    save_picture(tmp_path / "left" / "1.png", (1, 2, 3))
    with pytest.raises(DataError, match="too small to be split; got 1 image"):
        load_pair(str(tmp_path), None, SMALL)


def test_grey_models_read_colour_pictures(tmp_path: Path) -> None:
    save_picture(tmp_path / "3" / "1.png", (90, 90, 90), (8, 8))
    loaded = load_images(str(tmp_path), find_model("digits/cnn"), split="evaluation")
    assert loaded.images.shape == (1, 8, 8, 1)
    assert loaded.labels.tolist() == [3]


def test_bad_folders_are_told_in_one_line(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(QafError) as caught:
            load_images(str(tmp_path), SMALL, split="evaluation")
        assert isinstance(caught.value, DataError)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no class sub-folders" in message()
    (tmp_path / "left").mkdir()
    assert "holds no images" in message()
    (tmp_path / "left" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "1 of 1 images" in message()
    assert "left/broken.png (no picture of a known format); expected fewer than 1 %" in message()
    (tmp_path / "up").mkdir()
    assert "got up; expected left, right, far left" in message()
