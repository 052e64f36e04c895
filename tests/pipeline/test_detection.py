"""Mean average precision: by hand, against pycocotools, and its curves again for drawn images."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qaf_core.data.load import ImageSet, load_images, to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.errors import DataError
from qaf_core.pipeline.tasks import predict
from qaf_core.pipeline.tasks.detection import Detection
from qaf_core.pipeline.tasks.matching import match_boxes

TASK = Detection()
CLASSES = ("background", "scratch", "pit", "stain")


class Puts(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output


def arrays(images: list[list[tuple[Any, ...]]]) -> dict[str, Any]:
    """From one list of (box, label, score) or (box, label) an image."""
    rows = [row for image in images for row in image]
    found = {
        "boxes": np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[1] for row in rows], np.int32),
        "counts": np.array([len(image) for image in images]),
    }
    if rows and len(rows[0]) > 2:
        found["scores"] = np.array([row[2] for row in rows], np.float32)
    elif not rows:
        found["scores"] = np.zeros(0, np.float32)
    return found


def random_scene(count: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """True boxes, and found ones: some moved, some missed, some of another class, some made up."""
    generator = np.random.default_rng(seed)
    true: list[list[tuple[Any, ...]]] = []
    found: list[list[tuple[Any, ...]]] = []
    for _ in range(count):
        corner = generator.uniform(0, 40, (generator.integers(0, 4), 2))
        boxes = np.concatenate([corner, corner + generator.uniform(12, 20, corner.shape)], axis=1)
        labels = generator.integers(1, 4, len(boxes))
        true.append([(box, int(label)) for box, label in zip(boxes, labels, strict=True)])
        seen: list[tuple[Any, ...]] = []
        for box, label in true[-1]:
            if generator.random() < 0.8:
                moved = box + generator.normal(0, 1.5, 4)
                other = label if generator.random() < 0.85 else 1 + label % 3
                seen.append((moved, other, generator.random()))
        for _ in range(generator.integers(0, 3)):
            left, top = generator.uniform(0, 50, 2)
            seen.append(
                ((left, top, left + 9, top + 7), int(generator.integers(1, 4)), 0.6 * generator.random())
            )
        found.append(seen)
    return arrays(found), arrays(true)


def repeated(boxes: dict[str, Any], times: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Every image as often as said."""
    ends = np.cumsum(boxes["counts"])
    rows = [
        np.arange(ends[image] - boxes["counts"][image], ends[image])
        for image in np.repeat(np.arange(len(times)), times)
    ]
    chosen = np.concatenate([*rows, np.zeros(0)]).astype(int)
    found = {key: boxes[key][chosen] for key in boxes if key != "counts"}
    return {**found, "counts": np.repeat(boxes["counts"], times)}


def summarised(found: dict[str, Any], true: dict[str, Any]) -> Any:
    """The twelve numbers of pycocotools' own summary, reached through its own file form."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def image_of(boxes: dict[str, Any]) -> Any:
        return np.repeat(np.arange(len(boxes["counts"])), boxes["counts"])

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(len(true["counts"]))],
            "categories": [{"id": label} for label in (1, 2, 3)],
            "annotations": [
                {
                    "id": row + 1, "image_id": int(image), "category_id": int(label), "iscrowd": 0,
                    "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                    "area": float((box[2] - box[0]) * (box[3] - box[1])),
                }
                for row, (image, label, box) in enumerate(
                    zip(image_of(true), true["labels"], true["boxes"].astype(float), strict=True)
                )
            ],
        }  # fmt: skip
        truth.createIndex()
        boxes = found["boxes"].astype(float)
        table = np.column_stack(
            [image_of(found), boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found["scores"], found["labels"]]
        )
        evaluator = COCOeval(truth, truth.loadRes(table), iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.fixture(scope="module")
def scene() -> tuple[dict[str, Any], dict[str, Any]]:
    return random_scene(60, seed=0)


def test_the_values_are_pycocotools_summary(scene: tuple[dict[str, Any], dict[str, Any]]) -> None:
    evaluation = TASK.metric(*scene, CLASSES)
    stats = summarised(*scene)
    assert (evaluation.metric, evaluation.n) == ("map50", 60)
    assert evaluation.value == pytest.approx(stats[1])
    assert evaluation.extra["map"] == pytest.approx(stats[0])
    assert set(evaluation.per_class) == {"scratch", "pit", "stain"}
    assert np.mean(list(evaluation.per_class.values())) == pytest.approx(evaluation.value)
    assert 0 < evaluation.ci95[0] < evaluation.value < evaluation.ci95[1] < 1


def test_drawn_images_count_as_often_as_drawn(scene: tuple[dict[str, Any], dict[str, Any]]) -> None:
    matches = match_boxes(*scene)
    every = matches.resampled(np.ones((1, 60)))
    assert every[0] == pytest.approx(matches.average_precision[:, 0].mean())
    drawn = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=4)
    for times, value in zip(drawn, matches.resampled(drawn.astype(float)), strict=True):
        expected = summarised(*(repeated(part, times) for part in scene))[1]
        assert value == pytest.approx(expected, abs=1e-9)


def test_average_precision_by_hand() -> None:
    true = arrays([[((0, 0, 10, 10), 1)], [((0, 0, 10, 10), 1)], []])
    found = arrays(
        [
            [((0, 0, 10, 10), 1, 0.9)],
            [((50, 50, 60, 60), 1, 0.8), ((0, 0, 10, 6), 1, 0.3)],  # IoU 0.6
            [((0, 0, 5, 5), 2, 0.99)],  # a class without true boxes does not count
        ]
    )
    evaluation = TASK.metric(found, true, CLASSES)
    # Precision 1 up to recall 0.5 (51 of 101 points), then 2 of 3.
    assert evaluation.value == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert evaluation.per_class == {"scratch": pytest.approx(evaluation.value)}
    strict = 51 / 101  # from 0.65 on the second box does not count
    assert evaluation.extra["map"] == pytest.approx((3 * evaluation.value + 7 * strict) / 10)


def test_a_network_that_finds_nothing_has_no_precision() -> None:
    true = arrays([[((0, 0, 10, 10), 1)], []])
    evaluation = TASK.metric(arrays([[], []]), true, CLASSES)
    assert (evaluation.value, evaluation.ci95, evaluation.extra) == (0.0, (0.0, 0.0), {"map": 0.0})


def test_the_drop_is_paired_over_images(scene: tuple[dict[str, Any], dict[str, Any]]) -> None:
    original, true = scene
    worse = {**original, "scores": original["scores"].copy()}
    worse["scores"][: len(worse["scores"]) // 3] *= 0.1  # a third of the boxes far less sure
    drop, (low, high) = TASK.compare(original, worse, true)
    before, after = TASK.metric(original, true, CLASSES), TASK.metric(worse, true, CLASSES)
    assert drop == pytest.approx(before.value - after.value)
    assert low <= drop <= high
    assert high - low < before.ci95[1] - before.ci95[0] + after.ci95[1] - after.ci95[0]
    assert TASK.compare(original, original, true) == (0.0, (0.0, 0.0))


def test_agreement_counts_confident_boxes_with_a_partner() -> None:
    first = arrays([[((0, 0, 10, 10), 1, 0.9), ((20, 20, 30, 30), 2, 0.7)], [((0, 0, 9, 9), 1, 0.4)]])
    second = arrays([[((0, 1, 10, 10), 1, 0.8), ((20, 20, 30, 30), 1, 0.7)], []])
    assert TASK.agreement(first, second) == pytest.approx(2 * 1 / 4)
    assert TASK.agreement(first, first) == 1.0
    assert TASK.agreement(arrays([[], []]), arrays([[], []])) == 1.0


def detections(count: int) -> dict[str, Tensor]:
    return {
        "boxes": torch.arange(4.0 * count).reshape(count, 4),
        "labels": torch.full((count,), 2),
        "scores": torch.linspace(0.9, 0.1, count),
    }


def test_the_outputs_of_torchvisions_detectors_are_read() -> None:
    network = Puts([detections(2), detections(0), detections(3)])
    found = predict(TASK, network, [(torch.zeros(3, 3, 8, 8), None), (torch.zeros(3, 3, 8, 8), None)])
    assert found["counts"].tolist() == [2, 0, 3] * 2
    assert found["boxes"].shape == (10, 4)
    assert found["scores"].dtype == np.float32
    assert found["labels"].tolist() == [2] * 10


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(1, 4), "list of boxes per image; got Tensor"),
        ([], "list of boxes per image"),
        ([{"boxes": torch.zeros(0, 4)}], "boxes, labels and scores; got boxes"),
        ([torch.zeros(4)], "boxes, labels and scores; got Tensor"),
        ([{**detections(2), "scores": torch.zeros(3)}], "do not go together"),
        ([{**detections(2), "scores": torch.full((2,), torch.nan)}], "scores that are not finite"),
        ([{**detections(2), "boxes": torch.full((2, 4), torch.inf)}], "boxes that are not finite"),
    ],
)
def test_outputs_that_are_no_boxes_are_told(output: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predict(TASK, Puts(output), [(torch.zeros(1, 3, 8, 8), None)])


def test_images_without_boxes_are_told() -> None:
    plain = ImageSet(
        name="photos", images=np.zeros((1, 2, 2, 3), np.uint8), labels=np.zeros(1, np.int64), classes=CLASSES
    )
    with pytest.raises(DataError, match="photos comes without boxes"):
        TASK.collate(plain)


def test_the_shipped_detector_does_as_well_as_its_card_says() -> None:
    source = find_model("inspection/detector")
    images = load_images("builtin", source, split="evaluation", limit=160)
    found = predict(TASK, build_model(source), to_batches(images, source, 32))
    evaluation = TASK.metric(found, TASK.collate(images), source.classes)
    card = source.card["metric"]
    assert evaluation.metric == card["name"]
    low, high = evaluation.ci95
    assert abs(evaluation.value - card["value"]) < high - low
    assert 0.85 < card["value"] < 0.97, "neither hopeless nor trivial"
