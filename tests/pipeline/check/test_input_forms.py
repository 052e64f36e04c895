"""Forms of input: what they do to pixels, and which of them are worth trying."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from qaf_core.data.load import ImageSet, to_batches
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.pipeline.check.input_forms import InputForm, usual_forms

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


def form_of(**steps: Any) -> InputForm:
    return InputForm(label="a", steps=Preprocessing(crop=(32, 32), **steps))


def other(form: InputForm, **steps: Any) -> InputForm:
    return replace(form, steps=replace(form.steps, **steps))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = form_of(mean=MEAN, std=STD)


def names(configured: InputForm, pixels: np.ndarray = PIXELS) -> set[str]:
    return {form.label for form in usual_forms(configured, pixels)}


def test_a_form_does_what_torchvision_does() -> None:
    expected = functional.normalize(torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255, list(MEAN), list(STD))
    torch.testing.assert_close(IMAGENET.steps.normalise(PIXELS), expected)
    exchanged = other(IMAGENET, channel_order="bgr")
    torch.testing.assert_close(exchanged.steps.normalise(PIXELS[..., ::-1]), expected)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_configured_form_is_what_runs_use(order: str) -> None:
    steps = Preprocessing(
        crop=(32, 32), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), scale=2.0, channel_order=order
    )  # type: ignore[arg-type]
    source = replace(find_model("cifar/resnet20"), preprocessing=steps)
    image_set = ImageSet(name="x", images=PIXELS, labels=np.zeros(6, np.int64), classes=source.classes)
    used = next(iter(to_batches(image_set, source)))[0]
    form = InputForm.configured(source)
    torch.testing.assert_close(form.steps.normalise(PIXELS), used)
    again = Preprocessing.from_dict({"crop": [32, 32], **form.changes()})
    assert again == steps


def test_forms_a_network_cannot_tell_apart_are_tried_once() -> None:
    offered = names(IMAGENET)
    assert "ImageNet's normalisation" not in offered
    near = other(IMAGENET, mean=(0.48, 0.46, 0.41))
    assert near.is_like(IMAGENET)
    assert not near.is_like(other(IMAGENET, channel_order="bgr"))
    assert {
        "red and blue exchanged",
        "0 to 1, not normalised",
        "0 to 255, not normalised",
        "-1 to 1",
    } <= offered
    forms = usual_forms(IMAGENET, PIXELS)
    assert not [(a, b) for a in forms for b in forms if a is not b and a.is_like(b)]


def test_grey_images_have_no_order_of_channels() -> None:
    grey = form_of(mean=(0.3,), std=(0.4,))
    offered = names(grey, PIXELS[..., :1])
    assert not [name for name in offered if "blue" in name or "ImageNet" in name]
    assert "0 to 255, not normalised" in offered


def test_signs_of_a_fault_in_the_numbers_are_followed() -> None:
    wrong_unit = form_of(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    # ImageNet's in the wrong unit: mended, it is one of the usual forms.
    assert "ImageNet's normalisation" in names(wrong_unit)
    own = other(wrong_unit, mean=(90.0, 80.0, 60.0))
    assert "mean and deviation for pixels of 0 to 255" in names(own)
    assert "pixels of 0 to 1 stretched to 0 to 255" in names(IMAGENET, (PIXELS > 128).astype(np.uint8))


def test_faults_are_named_by_what_differs() -> None:
    plain = form_of(mean=(0.0,) * 3, std=(1.0,) * 3)
    assert plain.fault_to(IMAGENET) == "normalisation"
    assert other(plain, scale=1.0).fault_to(IMAGENET) == "scale"
    assert other(plain, scale=255.0**2).fault_to(IMAGENET) == "scale"
    assert IMAGENET.fault_to(other(IMAGENET, channel_order="bgr")) == "bgr"
    assert str(plain.range_said()) == "0 to 1"
    assert other(plain, channel_order="bgr").range_said().text() == "0 to 1, blue first"
