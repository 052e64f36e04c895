"""Reading a network's outputs by task, classification, and adding a task of one's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qaf_core.data.load import ImageSet
from qaf_core.errors import DataError, ModelError
from qaf_core.pipeline.intervals import wilson_interval
from qaf_core.pipeline.tasks import ScoredTask, find_task, predict, register_task
from qaf_core.pipeline.tasks.base import Arrays, needed

CLASSIFICATION = find_task("classification")


class Rows(nn.Module):
    """Puts out its input, or whatever it is given."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        return images if self.output is None else self.output


def image_set(count: int, **targets: Any) -> ImageSet:
    return ImageSet(
        name="photos",
        images=np.zeros((count, 2, 2, 3), np.uint8),
        labels=np.arange(count) % 2,
        classes=("a", "b"),
        targets=targets,
    )


# --- predicting


def test_predictions_are_the_largest_scores_in_order() -> None:
    scores = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    found = predict(CLASSIFICATION, Rows(), [(scores[:7], None), (scores[7:], "unread")], done.append)
    assert found["ranked"].tolist() == scores.argsort(dim=1, descending=True)[:, :5].tolist()
    assert done == [7, 10]


def test_of_equal_scores_the_first_class_is_best() -> None:
    found = predict(CLASSIFICATION, Rows(), [(torch.zeros(2, 9), None)])
    assert found["ranked"][:, 0].tolist() == [0, 0]
    assert all(len(set(row)) == 5 for row in found["ranked"].tolist())


def test_networks_are_evaluated_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Dropout(0.99)).train()
    found = predict(CLASSIFICATION, network, [(torch.eye(5), None)])
    assert found["ranked"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert not network.training


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 4, 4), torch.zeros(2), {"scores": 1}, None])
def test_outputs_that_are_no_class_scores_are_told(output: object) -> None:
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(DataError, match="one row of class scores per image"):
        predict(CLASSIFICATION, Rows(output), [(images, None)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_told(value: float) -> None:
    scores = torch.zeros(4, 3)
    scores[2, 1] = value
    with pytest.raises(DataError, match="class scores that are not finite.*images 5 to 8"):
        predict(CLASSIFICATION, Rows(), [(torch.zeros(5, 3), None), (scores, None)])


def test_no_images_are_told() -> None:
    with pytest.raises(DataError, match="no images"):
        predict(CLASSIFICATION, Rows(), [])


# --- classification


def test_accuracy_by_class_and_agreement() -> None:
    labels = np.array([0, 0, 0, 2, 2, 5])
    ranked = np.array([[0, 1], [0, 1], [1, 0], [2, 0], [1, 2], [5, 0]])
    original = np.array([[0], [1], [1], [2], [2], [5]])
    found = CLASSIFICATION.metric({"ranked": ranked}, {"labels": labels}, ("ok", "crack", "pit"))
    assert (found.metric, found.n, found.agreement) == ("top1", 6, None)
    assert found.value == pytest.approx(4 / 6)
    assert found.ci95 == wilson_interval(4, 6)
    assert found.per_class == pytest.approx({"ok": 2 / 3, "pit": 0.5, "5": 1.0})
    assert CLASSIFICATION.agreement({"ranked": original}, {"ranked": ranked}) == pytest.approx(4 / 6)


def test_top_five_counts_the_label_among_the_five_best() -> None:
    scores = torch.randn(300, 12, generator=torch.Generator().manual_seed(1))
    labels = np.arange(300) % 12
    found = CLASSIFICATION.metric(
        predict(CLASSIFICATION, Rows(), [(scores, None)]), {"labels": labels}, tuple("abcdefghijkl")
    )
    best = scores.topk(5, dim=1).indices.numpy()
    assert found.extra == {
        "top5": float(np.mean([label in row for label, row in zip(labels, best, strict=True)]))
    }
    few = CLASSIFICATION.metric({"ranked": np.array([[0, 1]])}, {"labels": np.array([1])}, ("a", "b"))
    assert few.extra == {}


def test_labels_are_the_targets_of_classification() -> None:
    assert CLASSIFICATION.collate(image_set(4))["labels"].tolist() == [0, 1, 0, 1]


# --- a task of one's own


class Brightness(ScoredTask):
    """Toy: how near the network's one output is to a wanted number."""

    name, metric_name = "test brightness", "closeness"

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        return {"value": model(images).reshape(len(images)).numpy()}

    def collate(self, images: ImageSet) -> Arrays:
        return {"value": needed(images, "y", "a wanted brightness")}

    def scores(self, predictions: Arrays, targets: Arrays) -> Any:
        return 1 - np.abs(predictions["value"] - targets["value"])


def test_an_own_task_gets_value_interval_drop_and_agreement() -> None:
    register_task(Brightness())
    task = find_task("test brightness")
    wanted = np.array([0.0, 0.5, 1.0, 0.5])
    found = predict(
        task, Rows(), [(torch.tensor([[0.0], [0.5]]), None), (torch.tensor([[0.8], [0.1]]), None)]
    )
    targets = task.collate(image_set(4, y=wanted))
    evaluation = task.metric(found, targets, ())
    scores = np.array([1.0, 1.0, 0.8, 0.6])
    half = 1.959964 * scores.std(ddof=1) / 2
    assert evaluation.metric == "closeness"
    assert evaluation.value == pytest.approx(scores.mean())
    assert evaluation.ci95 == pytest.approx((scores.mean() - half, scores.mean() + half))
    exact = {"value": wanted}
    drop, (low, high) = task.compare(exact, found, targets)
    assert drop == pytest.approx(0.15)
    assert (low, high) == pytest.approx((0.15 - half, 0.15 + half))
    assert task.agreement(exact, {"value": np.array([0.0, 0.5, 0.9, 0.5])}) == 0.75
    with pytest.raises(DataError, match="photos comes without a wanted brightness"):
        task.collate(image_set(4))


def test_an_unknown_task_is_told() -> None:
    with pytest.raises(
        ModelError, match="unknown task; got colouring; expected classification, segmentation"
    ):
        find_task("colouring")
