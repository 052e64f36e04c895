"""The check by a task's own metric: silent when all is right, and every wrong form of input is named."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qaf_core.data.load import ImageSet, load_images
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.pipeline import tasks
from qaf_core.pipeline.check.classifier import check_original
from qaf_core.pipeline.check.plausibility import Plausibility
from qaf_core.pipeline.tasks import Arrays, ScoredTask, register_task
from tests.model_sources import fed

SHIPPED = ("inspection/unet", "inspection/detector")
IMAGES = {"inspection/unet": 32, "inspection/detector": 16}
PLAIN = ((0.0,) * 3, (1.0,) * 3)

Case = tuple[nn.Module, ModelSource, ImageSet]


@cache
def case(model_id: str) -> Case:
    source = find_model(model_id)
    images = load_images("builtin", source, split="evaluation", limit=IMAGES[model_id])
    return build_model(source), source, images


@cache
def check(model_id: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] = ()) -> Plausibility:
    model, source, images = case(model_id)
    source = source if mean is None else fed(source, mean=mean, std=std)
    return check_original(model, source, images)


@pytest.mark.parametrize("model_id", SHIPPED)
def test_nothing_is_found_when_all_is_right(model_id: str) -> None:
    found = check(model_id)
    assert found.findings == ()
    assert found.metric == {"inspection/unet": "miou", "inspection/detector": "map50"}[model_id]
    assert found.n == IMAGES[model_id]
    assert found.ci95[0] < found.value < found.ci95[1]
    assert found.value > 0.6
    assert max(trial.gain for trial in found.trials) < 0.05
    assert str(found.summary[-1]) == "The order of classes is checked for classifiers only."
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("model_id", "mean", "std", "kind", "told"),
    [
        ("inspection/unet", *PLAIN, "normalisation", "Normalisation seems to be missing: on 32 images miou"),
        ("inspection/unet", (0.0,) * 3, (1 / 255,) * 3, "scale", "on another scale"),
        ("inspection/detector", (0.5,) * 3, (0.5,) * 3, "normalisation", "Normalisation seems to be wrong"),
    ],
)
def test_every_wrong_form_is_found_and_named(
    model_id: str, mean: tuple[float, ...], std: tuple[float, ...], kind: str, told: str
) -> None:
    found = check(model_id, mean, std)
    assert [(finding.kind, finding.serious) for finding in found.findings] == [(kind, True)]
    assert told in found.findings[0].sentence
    assert found.summary == ()
    assert found.findings[0].evidence["value"] == pytest.approx(check(model_id).value, abs=0.1)


def test_the_best_forms_are_tried_on_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qaf_core.pipeline.check.classifier.SCREENED_IMAGES", 16)
    model, source, images = case("inspection/unet")
    found = check_original(model, fed(source, mean=PLAIN[0], std=PLAIN[1]), images)
    assert [finding.kind for finding in found.findings] == ["normalisation"]
    assert {trial.n for trial in found.trials} == {16, 32}
    whole = next(trial for trial in found.trials if trial.n == 32 and "ImageNet" in trial.form)
    again = check_original(model, source, images)
    assert whole.gain == pytest.approx(whole.value - found.value)
    assert again.value == pytest.approx(check("inspection/unet").value), "in whatever order images are taken"


def test_a_value_far_below_the_stated_one_is_a_note() -> None:
    model, source, images = case("inspection/unet")
    masks = np.roll(images.targets["masks"], 12, axis=1)
    found = check_original(model, source, replace(images, targets={"masks": masks}))
    assert [(finding.kind, finding.serious) for finding in found.findings] == [("below", False)]
    assert found.findings[0].sentence.startswith("The network does worse than stated: on 32 images miou is")


class Redness(ScoredTask):
    """A task of a user's own: which of red and blue is stronger."""

    name, metric_name = "redness", "told"

    def forward(self, model: nn.Module, images: Tensor) -> Arrays:
        values = model(images)
        tasks.base.check_finite(values, "values")
        return {"red": (values > 0).numpy()}

    def collate(self, images: ImageSet) -> Arrays:
        return {"red": images.targets["y"]}

    def scores(self, predictions: Arrays, targets: Arrays) -> NDArray[np.float64]:
        return np.asarray(predictions["red"] == targets["red"], np.float64)


class Difference(nn.Module):
    """Red less blue; not a number on inputs above 2."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.mean(dim=(2, 3))
        return torch.where(level.amax(dim=1) > 2, torch.nan, level[:, 0] - level[:, 2])


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    register_task(Redness())
    source = fed(find_model("inspection/unet"), mean=PLAIN[0], std=PLAIN[1])
    source = replace(source, task="redness", card={}, shipped=False)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 3)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (60, 8, 8, 3)).copy()
    red = pixels[:, 0, 0, 0] > pixels[:, 0, 0, 2]
    labels = np.zeros(60, np.int64)
    images = ImageSet(name="own", images=pixels, labels=labels, classes=source.classes, targets={"y": red})
    return Difference(), source, images


def test_a_task_of_a_users_own_is_checked_too(redness: Case) -> None:
    model, source, images = redness
    found = check_original(model, source, images)
    assert (found.metric, found.value, found.findings) == ("told", 1.0, ())
    assert not found.blind_to_colours
    assert not any("0 to 255" in trial.form for trial in found.trials), "its outputs are not finite"
    exchanged = replace(images, images=images.images[:][..., ::-1].copy())
    found = check_original(model, source, exchanged)
    assert [(finding.kind, finding.serious) for finding in found.findings] == [("bgr", True)]


def test_outputs_that_are_not_finite_as_configured_are_told(redness: Case) -> None:
    model, source, images = redness
    with pytest.raises(DataError, match="values that are not finite"):
        check_original(model, fed(source, mean=PLAIN[0], std=(1 / 255,) * 3), images)


def test_whoever_watches_can_end_the_check(redness: Case) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        check_original(*redness, on_batch=stop)
