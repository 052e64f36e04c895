"""The check of the original: each common fault is found and named, and nothing when all is right."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qaf_core.data.load import ImageSet, load_images, to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.classifier import check_original, sample_sizes
from qaf_core.pipeline.check.plausibility import Plausibility
from tests.model_sources import fed

REAL_DATA = os.environ.get("QAF_REAL_DATA")
SHIPPED = ("digits/cnn", "inspection/resnet20", "inspection/vgg")
REAL = "cifar/resnet20"
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="QAF_REAL_DATA names no folder with real checkpoints and images"
)
EVERY = (*SHIPPED, pytest.param(REAL, marks=needs_real_data))
# Where a fault looks different: grey images, colours, and a network of another's training.
FAULTY = ("digits/cnn", "inspection/resnet20", pytest.param(REAL, marks=needs_real_data))
FAULTS = ("classes", "missing normalisation", "0 to 255")

Case = tuple[nn.Module, ModelSource, ImageSet]


@cache
def case(model_id: str) -> Case:
    """A trained network, how it is fed, and images it was not trained on."""
    if model_id == REAL:
        folder = Path(REAL_DATA or "")
        source = find_model(REAL, folder / "cifar10_resnet20.safetensors")
        data = str(folder / "cifar10_eval_2000.npz")
    else:
        source, data = find_model(model_id), "builtin"
    count = 32 if model_id.startswith("inspection") else 384
    images = load_images(data, source, split="evaluation", limit=count)
    return build_model(source), source, images


@cache
def check(model_id: str, *, fault: str = "", images: int = 384) -> Plausibility:
    model, source, image_set = case(model_id)
    count, channels = len(source.classes), source.input_shape[0]
    if fault == "classes":
        order = np.roll(np.arange(count), 3)
        image_set = replace(image_set, labels=order[image_set.labels])
    if fault == "missing normalisation":
        source = fed(source, mean=(0.0,) * channels, std=(1.0,) * channels)
    if fault == "0 to 255":
        source = fed(source, mean=(0.0,) * channels, std=(1 / 255,) * channels)
    if fault == "bgr":
        image_set = replace(image_set, images=image_set.images[:][..., ::-1].copy())
    return check_original(model, source, image_set, images=images)


@pytest.mark.parametrize("model_id", EVERY)
def test_nothing_is_found_when_all_is_right(model_id: str) -> None:
    found = check(model_id)
    assert found.findings == ()
    assert found.n == min(384, len(case(model_id)[2]))
    assert found.ci95[0] < found.value < found.ci95[1] or found.value == 1.0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("model_id", FAULTY)
def test_every_fault_is_found_and_named(model_id: str, fault: str) -> None:
    found = check(model_id, fault=fault)
    kinds = {"classes": "classes", "missing normalisation": "normalisation", "0 to 255": "scale"}
    assert [finding.kind for finding in found.findings] == [kinds[fault]]
    finding = found.findings[0]
    assert finding.serious
    assert found.serious == finding
    right = check(model_id).value
    assert finding.evidence["value"] == pytest.approx(right, abs=0.05)
    if fault == "classes":
        classes = case(model_id)[1].classes
        assert finding.evidence["order"] == [*classes[-3:], *classes[:-3]]
    else:
        assert finding.sentence.startswith(("Normalisation seems to be missing", "Pixels seem to reach"))
    json.dumps(found.to_dict())


@pytest.mark.parametrize("model_id", ["digits/cnn", pytest.param(REAL, marks=needs_real_data)])
def test_nothing_is_found_on_few_images_either(model_id: str) -> None:
    model, source, image_set = case(model_id)
    for seed in range(8 if model_id == "digits/cnn" else 2):
        found = check_original(model, source, image_set, images=64, seed=seed)
        assert found.findings == ()
        assert found.n == 64


@needs_real_data
def test_blue_before_red_is_found_where_it_matters() -> None:
    found = check(REAL, fault="bgr")
    assert [(finding.kind, finding.serious) for finding in found.findings] == [("bgr", True)]
    assert '{"channel_order": "bgr"}' in found.findings[0].remedy
    assert not found.blind_to_colours


def test_where_the_order_of_colours_makes_no_difference_that_is_said() -> None:
    for fault in ("", "bgr"):
        found = check("inspection/vgg", fault=fault)
        assert found.blind_to_colours
        assert found.findings == ()
        swapped = next(trial for trial in found.trials if trial.form.startswith("red and blue"))
        assert abs(swapped.gain) < 0.07
        assert swapped.agreement > 0.9
        told = found.to_dict()
        assert told["cannot_tell"].startswith(
            "Cannot tell whether red and blue are exchanged: this network answers the same with red and blue "
        )
        assert "Only whether red and blue are exchanged is not known" in told["summary"]
    assert check("inspection/vgg", fault="missing normalisation").cannot_tell is None, "first things first"
    grey = check("digits/cnn")
    assert not grey.blind_to_colours
    assert grey.cannot_tell is None
    assert grey.to_dict()["summary"] == (
        "Nothing is wrong with class order and preparation of images, as far as these images tell."
    )
    assert check("digits/cnn", fault="classes").summary == ()


def test_two_faults_at_once_are_both_found() -> None:
    model, source, image_set = case("digits/cnn")
    channels = source.input_shape[0]
    shuffled = replace(image_set, labels=np.roll(np.arange(len(source.classes)), 3)[image_set.labels])
    plain = fed(source, mean=(0.0,) * channels, std=(1.0,) * channels)
    found = check_original(model, plain, shuffled)
    assert {finding.kind for finding in found.findings} == {"classes", "normalisation"}


def test_mean_and_deviation_in_the_wrong_unit_are_found() -> None:
    model, source, image_set = case("digits/cnn")
    right = source.preprocessing
    wrong = fed(source, mean=(255 * right.mean[0],), std=(255 * right.std[0],))
    found = check_original(model, wrong, image_set)
    assert [finding.kind for finding in found.findings] == ["scale"]
    assert found.findings[0].evidence["value"] > 0.95


def test_a_weak_network_that_is_right_is_left_alone() -> None:
    """Networks after a few steps of training, from 20 to 90 % right."""
    _, source, image_set = case("digits/cnn")
    source = replace(source, card={})
    images, labels = next(iter(to_batches(load_images("builtin", source, split="train"), source, 4000)))
    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        weak = build_model(source, with_weights=False)
        optimizer = torch.optim.SGD(weak.parameters(), lr=0.01, momentum=0.9)
        for step in range(1, 25):
            weak.train()
            some = torch.randint(0, len(images), (32,))
            optimizer.zero_grad()
            functional.cross_entropy(weak(images[some]), labels[some]).backward()
            optimizer.step()
            if step % 6 == 0:
                for count in (64, 384):
                    found = check_original(weak, source, image_set, images=count)
                    assert not [finding for finding in found.findings if finding.kind != "guessing"]
                values.append(found.value)
    assert min(values) < 0.4
    assert sum(0.3 < value < 0.9 for value in values) >= 4


def test_a_network_that_guesses_is_told() -> None:
    _, source, image_set = case("digits/cnn")
    torch.manual_seed(0)
    untrained = build_model(source, with_weights=False)
    found = check_original(untrained, source, image_set)
    assert [(finding.kind, finding.serious) for finding in found.findings] == [("guessing", True)]
    few = check_original(untrained, source, image_set, images=64)
    assert not few.serious


def test_an_accuracy_far_below_the_stated_one_is_a_note() -> None:
    model, source, image_set = case("digits/cnn")
    generator = np.random.default_rng(0)
    mislabelled = generator.random(len(image_set)) < 0.3
    labels = np.where(mislabelled, generator.integers(0, 10, len(image_set)), image_set.labels)
    found = check_original(model, source, replace(image_set, labels=labels))
    assert [(finding.kind, finding.serious) for finding in found.findings] == [("below", False)]


def test_the_same_images_give_the_same_result() -> None:
    assert check("digits/cnn") == check("digits/cnn")


def test_large_networks_are_looked_at_with_fewer_images() -> None:
    assert sample_sizes(2000, 0, 384) == (384, 64)
    assert sample_sizes(50, 0, 384) == (50, 50)
    n, screened = sample_sizes(2000, int(1.8e9), 384)  # ResNet-18 at 224
    assert 100 < n < 384
    assert 16 <= screened < 64
    assert sample_sizes(2000, int(5e11), 384) == (32, 16)


def test_whoever_watches_can_end_the_check() -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    model, source, image_set = case("digits/cnn")
    with pytest.raises(Stopped):
        check_original(model, source, image_set, on_batch=stop)
