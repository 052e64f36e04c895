"""What a fine-tuning learns from: images with or without labels, never those it is measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.errors import DataError
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.events import Progress
from qaf_core.runs.jobs.inputs import Subject, load_subject
from qaf_core.runs.jobs.training_images import TrainingImages, load_training_images
from qaf_core.runs.store.request import RunRequest

SOURCE = find_model("digits/cnn")


@pytest.fixture(scope="module")
def request_and_subject(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRequest, Subject]:
    """A run on built-in digits, its evaluation images read."""
    plan = plan_for_ratio(load_inventory(SOURCE), model=SOURCE.id, ratio=3.0, bits=4)
    request = RunRequest(model=SOURCE.id, plan=plan.to_dict(), images=40)
    subject = load_subject(request, tmp_path_factory.mktemp("workspace"), Progress())
    images = load_images("builtin", SOURCE, split="evaluation", limit=40)
    return request, replace(subject, images=images)


@pytest.fixture
def load(request_and_subject: tuple[RunRequest, Subject], tmp_path: Path) -> Any:
    """Load training images as a request's ``finetune`` says."""
    request, subject = request_and_subject

    def loaded(**asked: Any) -> TrainingImages:
        told = replace(request, finetune={"run": "x", **asked})
        return load_training_images(told, subject, tmp_path / "workspace", Progress())

    return loaded


def saved(path: Path, count: int = 20, **others: Any) -> str:
    digits = load_images("builtin", SOURCE, split="train", limit=count)
    np.savez(path, x=digits.read(range(count)), **others)
    return str(path)


def test_built_in_images_with_labels_are_the_default(load: Any) -> None:
    found = load()
    assert len(found) == 998
    assert found.labels is not None
    batch = found[torch.tensor([3, 1])]
    assert batch.shape == (2, *SOURCE.input_shape)
    torch.testing.assert_close(batch[0], found[torch.arange(4)][3])
    assert load(labels=False).labels is None


def test_labels_are_learnt_from_where_there_are_any(load: Any, tmp_path: Path) -> None:
    bare, whole = saved(tmp_path / "bare.npz"), saved(tmp_path / "whole.npz", y=np.arange(20) % 10)
    assert load(data=bare).labels is None
    assert load(data=whole).labels.tolist() == [*range(10), *range(10)]
    assert load(data=whole, labels=False).labels is None
    with pytest.raises(DataError, match="lacks array y"):
        load(data=bare, labels=True)


def test_wrong_classes_no_images_and_no_folder_are_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="out of range"):
        load(data=saved(tmp_path / "wrong.npz", y=np.arange(20)))
    (tmp_path / "folder" / "eleven").mkdir(parents=True)
    with pytest.raises(DataError, match="class folders do not match"):
        load(data=str(tmp_path / "folder"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(data=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="data not found"):
        load(data=str(tmp_path / "missing"))


def test_evaluation_images_are_never_learnt_from(
    load: Any, request_and_subject: tuple[RunRequest, Subject], tmp_path: Path
) -> None:
    images = request_and_subject[1].images
    assert images is not None
    own, others = images.read(range(40)), load_images("builtin", SOURCE, split="train", limit=5)
    np.savez(tmp_path / "some.npz", x=np.concatenate([own[:3], others.read(range(5))]))
    found = load(data=str(tmp_path / "some.npz"))
    assert len(found) == 5
    assert tuple(map(str, found.notes)) == (
        "3 of the images to learn from are evaluation images and were left out.",
    )
    np.savez(tmp_path / "all.npz", x=own)
    with pytest.raises(DataError, match="every training image is also an evaluation image"):
        load(data=str(tmp_path / "all.npz"))


def test_a_run_on_other_images_learns_from_those_that_calibrated_it(
    request_and_subject: tuple[RunRequest, Subject], tmp_path: Path
) -> None:
    request, subject = request_and_subject
    asked = replace(request, data="elsewhere", finetune={"run": "x"})
    found = load_training_images(asked, subject, tmp_path, Progress())
    assert found.pictures is subject.calibration_set
    assert found.labels is None
    with pytest.raises(DataError, match="learnt from without labels"):
        load_training_images(
            replace(asked, finetune={"run": "x", "labels": True}), subject, tmp_path, Progress()
        )
