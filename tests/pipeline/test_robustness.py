"""Disturbances grow with their severity, and both networks are measured on the same disturbed images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import DataError, RunCancelled
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.robustness import STRENGTHS, Pair, check_robustness, disturb, odd_images
from qaf_core.pipeline.tasks import find_task

SOURCE = find_model("inspection/resnet20")


class Brightest(nn.Module):
    """Answers class 0 for dark images and class 1 for bright ones; ``spoilt`` puts out NaN for black ones."""

    def __init__(self, threshold: float, spoilt: bool = False) -> None:
        super().__init__()
        self.threshold, self.spoilt = threshold, spoilt

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        scores = torch.stack([-level + self.threshold, level - self.threshold, *[level * 0 - 9] * 6], dim=1)
        return scores * float("nan") if self.spoilt and bool((images == images.min()).all()) else scores


def image_set(n: int = 40) -> ImageSet:
    generator = np.random.default_rng(0)
    labels = np.arange(n) % 2
    pixels = generator.integers(60, 110, (n, 64, 64, 3)) + 60 * labels[:, None, None, None]
    return ImageSet(
        name="made up", images=pixels.astype(np.uint8), labels=labels.astype(np.int64), classes=SOURCE.classes
    )


def pair(original: nn.Module, compressed: nn.Module) -> Pair:
    return Pair(task=find_task("classification"), source=SOURCE, original=original, compressed=compressed)


@pytest.mark.parametrize("kind", list(STRENGTHS))
def test_a_disturbance_grows_with_its_severity(kind: str) -> None:
    pixels = image_set(6).read(range(6))
    rows, columns = np.indices((64, 64))
    pixels[:, (rows // 8 + columns // 8) % 2 == 0] //= 2
    moved = [
        np.abs(disturb(pixels, kind, severity, np.random.default_rng(1)).astype(int) - pixels).mean()
        for severity in range(1, 6)
    ]
    assert moved == sorted(moved)
    assert 0 < moved[0] < moved[4]
    grey = disturb(pixels[..., :1], kind, 3, np.random.default_rng(1))
    assert (grey.shape, grey.dtype) == ((6, 64, 64, 1), np.uint8)


def test_the_same_network_loses_nothing_more() -> None:
    events: list[RunEvent] = []
    found = check_robustness(
        pair(Brightest(0.0), Brightest(0.0)), image_set(), progress=Progress(events.append)
    )
    assert found["worst"] is None
    assert all(sum(row["n"]) == 40 for row in found["disturbances"].values())
    assert all(row["original"] == row["compressed"] for row in found["disturbances"].values())
    assert [row["agreement"] for row in found["odd"]] == [1.0] * 5
    assert found["saliency"]["agreement"] == pytest.approx(1.0)
    assert {event.data["stage"] for event in events} == {"robustness"}


def test_a_network_that_minds_light_is_found() -> None:
    middle = float(SOURCE.preprocessing.normalise(np.full((1, 64, 64, 3), 115, np.uint8)).mean())
    edge = float(SOURCE.preprocessing.normalise(np.full((1, 64, 64, 3), 136, np.uint8)).mean())
    found = check_robustness(pair(Brightest(middle), Brightest(edge)), image_set(200))
    assert found["clean"]["drop"] == 0
    assert found["worst"]["disturbance"] == "brightness"
    assert found["worst"]["extra_drop"] > 0.1


def test_what_is_lost_undisturbed_too_is_not_put_down_to_a_disturbance() -> None:
    middle = float(SOURCE.preprocessing.normalise(np.full((1, 64, 64, 3), 115, np.uint8)).mean())
    found = check_robustness(pair(Brightest(middle), Brightest(1e3)), image_set(200))  # always the same class
    assert found["clean"]["drop"] == 0.5
    told = found["disturbances"]["noise"]
    assert max(told["extra_drop"]) > 0  # by the chance of which images were seen
    assert min(low for low, _ in told["drop_ci95"]) > 0
    assert found["worst"] is None


def test_odd_inputs_without_an_answer_are_told() -> None:
    found = check_robustness(pair(Brightest(0.0), Brightest(0.0, spoilt=True)), image_set())
    told = {row["input"]: row["finite"] for row in found["odd"]}
    assert told == {"black": False, "white": False, "broken": True, "random": True, "foreign": True}
    assert set(odd_images(image_set())) == set(told)


def test_it_stops_and_refuses_too_few() -> None:
    both = pair(Brightest(0.0), Brightest(0.0))
    with pytest.raises(RunCancelled):
        check_robustness(both, image_set(), progress=Progress(should_stop=lambda: True))
    with pytest.raises(DataError, match="too few images"):
        check_robustness(both, image_set(3))
