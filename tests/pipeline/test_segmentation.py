"""Mean intersection over union against scikit-learn and by hand, and its intervals by resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from qaf_core.data.images.targets import UNLABELLED
from qaf_core.data.load import ImageSet, load_images, to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.errors import DataError
from qaf_core.pipeline.tasks import predict
from qaf_core.pipeline.tasks.segmentation import Segmentation

TASK = Segmentation()
CLASSES = ("sound", "scratch", "pit", "stain")


class Puts(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output


def masks(count: int, seed: int, classes: int = 4) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, classes, (count, 9, 7)).astype(np.uint8)


def mixed(true: np.ndarray[Any, Any], seed: int, wrong: float) -> np.ndarray[Any, Any]:
    """The true masks with a share of wrong pixels."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(true.shape) < wrong, generator.integers(0, 4, true.shape), true).astype(
        np.uint8
    )


def measure(found: np.ndarray[Any, Any], true: np.ndarray[Any, Any]) -> Any:
    return TASK.metric({"masks": found}, {"masks": true}, CLASSES)


def test_the_value_is_scikit_learns() -> None:
    true = masks(150, 0)
    found = mixed(true, 1, 0.3)
    evaluation = measure(found, true)
    expected = jaccard_score(true.reshape(-1), found.reshape(-1), average=None)
    assert (evaluation.metric, evaluation.n) == ("miou", 150)
    assert evaluation.value == pytest.approx(expected.mean())
    assert evaluation.per_class == pytest.approx(dict(zip(CLASSES, expected, strict=True)))
    assert evaluation.extra["pixel_accuracy"] == pytest.approx((found == true).mean())
    assert evaluation.ci95[0] < evaluation.value < evaluation.ci95[1]


def test_unlabelled_pixels_do_not_count() -> None:
    true = masks(5, 2)
    found = mixed(true, 3, 0.4)
    hidden = np.random.default_rng(4).random(true.shape) < 0.5
    evaluation = measure(found, np.where(hidden, UNLABELLED, true).astype(np.uint8))
    expected = jaccard_score(true[~hidden], found[~hidden], average=None)
    assert evaluation.value == pytest.approx(expected.mean())
    assert evaluation.extra["pixel_accuracy"] == pytest.approx((found == true)[~hidden].mean())


def test_only_classes_in_the_targets_are_averaged() -> None:
    true = np.array([[[0, 0, 1, 1]]], np.uint8)
    found = np.array([[[0, 3, 1, 1]]], np.uint8)
    evaluation = measure(found, true)
    assert evaluation.per_class == {"sound": 0.5, "scratch": 1.0}
    assert evaluation.value == 0.75


def test_the_drop_is_paired_over_images() -> None:
    true = masks(200, 5)
    original, compressed = mixed(true, 6, 0.2), mixed(true, 6, 0.2)
    compressed[:100] = mixed(compressed[:100], 7, 0.1)
    drop, (low, high) = TASK.compare({"masks": original}, {"masks": compressed}, {"masks": true})
    before, after = measure(original, true), measure(compressed, true)
    assert drop == pytest.approx(before.value - after.value)
    assert 0 < low < drop < high
    assert high - low < before.ci95[1] - before.ci95[0] + after.ci95[1] - after.ci95[0]
    assert TASK.compare({"masks": original}, {"masks": original}, {"masks": true}) == (0.0, (0.0, 0.0))


def test_the_interval_is_that_of_sampling_other_images() -> None:
    true = masks(4000, 8)
    found = mixed(true, 9, 0.3)
    worse = np.random.default_rng(2).random(4000) < 0.3  # some images are worse than others
    found[worse] = mixed(found[worse], 10, 0.6)
    values = [measure(found[rows], true[rows]).value for rows in np.arange(4000).reshape(40, 100)]
    low, high = measure(found[:100], true[:100]).ci95
    assert high - low == pytest.approx(3.92 * np.std(values), rel=0.35)


def test_agreement_is_the_mean_iou_of_both_masks() -> None:
    first, second = np.random.default_rng(0).integers(0, 4, (2, 6, 5, 5)).astype(np.uint8)
    second[second == 3] = 5  # a class that only one of them puts out
    shares = [
        ((first == label) & (second == label)).sum() / ((first == label) | (second == label)).sum()
        for label in (0, 1, 2, 3, 5)
    ]
    assert TASK.agreement({"masks": first}, {"masks": second}) == pytest.approx(np.mean(shares))
    assert TASK.agreement({"masks": first}, {"masks": first}) == 1.0


def test_losing_a_small_class_shows_in_the_agreement() -> None:
    first = np.zeros((1, 10, 10), np.uint8)
    first[0, 0, :2] = 1
    assert TASK.agreement({"masks": first}, {"masks": np.zeros_like(first)}) == pytest.approx(0.49)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_best_class_of_each_pixel_is_read(wrapped: bool) -> None:
    scores = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    output = {"out": scores, "aux": torch.zeros(2, 4, 9, 7)} if wrapped else scores
    found = predict(TASK, Puts(output), [(torch.zeros(2, 3, 9, 7), None)])
    assert found["masks"].dtype == np.uint8
    assert found["masks"].tolist() == scores.argmax(dim=1).tolist()


def test_coarse_scores_are_interpolated_to_the_image() -> None:
    scores = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    found = predict(TASK, Puts(scores), [(torch.zeros(1, 3, 2, 8), None)])
    assert found["masks"].tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]] * 2]


@pytest.mark.parametrize(
    "output", [torch.zeros(1, 4), {"boxes": torch.zeros(1, 4)}, None, torch.zeros(1, 1, 2, 2)]
)
def test_outputs_that_are_no_pixel_scores_are_told(output: Any) -> None:
    with pytest.raises(DataError, match="class scores for every pixel"):
        predict(TASK, Puts(output), [(torch.zeros(1, 3, 2, 2), None)])


def test_scores_that_are_not_finite_are_told() -> None:
    with pytest.raises(DataError, match="not finite.*images 0 to 0"):
        predict(TASK, Puts(torch.full((1, 2, 2, 2), torch.nan)), [(torch.zeros(1, 3, 2, 2), None)])


def test_images_without_masks_are_told() -> None:
    plain = ImageSet(
        name="photos", images=np.zeros((1, 2, 2, 3), np.uint8), labels=np.zeros(1, np.int64), classes=CLASSES
    )
    with pytest.raises(DataError, match="photos comes without masks"):
        TASK.collate(plain)


def test_the_shipped_unet_does_as_well_as_its_card_says() -> None:
    source = find_model("inspection/unet")
    images = load_images("builtin", source, split="evaluation", limit=160)
    found = predict(TASK, build_model(source), to_batches(images, source, 32))
    evaluation = TASK.metric(found, TASK.collate(images), source.classes)
    card = source.card["metric"]
    assert evaluation.metric == card["name"]
    low, high = evaluation.ci95
    assert abs(evaluation.value - card["value"]) < high - low
    assert 0.75 < card["value"] < 0.92, "neither hopeless nor trivial"
