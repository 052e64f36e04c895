"""What a model is fed: torchvision's own transforms are the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet50_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights
from torchvision.transforms import InterpolationMode

from qaf_core.data.images.decode import fit_picture
from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.load import to_batches
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.preprocessing import Preprocessing, from_torchvision
from qaf_core.errors import ModelError

PLAIN = Preprocessing(crop=(20, 30), mean=(0.0,) * 3, std=(1.0,) * 3)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that a wrong corner or size shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def batch_of(pixels: np.ndarray[Any, Any], steps: Preprocessing) -> torch.Tensor:
    """What the model gets."""
    source = replace(find_model("inspection/resnet20"), preprocessing=steps)
    images = ImageSet(name="one", images=pixels[None], labels=np.zeros(1, np.int64), classes=source.classes)
    ((batch, _),) = to_batches(images, source)
    return batch[0]


@settings(max_examples=25)
@given(
    st.integers(10, 90),
    st.integers(10, 90),
    st.integers(12, 60),
    st.integers(8, 60),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_resizing_and_cutting_are_torchvisions(
    width: int, height: int, resize: int, crop: int, interpolation: str
) -> None:
    weights = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=InterpolationMode(interpolation)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        ]
    )
    steps = from_torchvision(weights)
    image = picture(width, height)
    torch.testing.assert_close(batch_of(fit_picture(image, steps), steps), weights(image))


def test_torchvisions_presets_are_understood() -> None:
    first, second = (from_torchvision(weights.transforms()) for weights in ResNet50_Weights)
    assert (first.resize, first.crop, first.interpolation) == (256, (224, 224), "bilinear")
    assert (second.resize, second.crop) == (232, (224, 224))
    assert first.mean == (0.485, 0.456, 0.406)
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    image = picture(311, 250)
    torch.testing.assert_close(batch_of(fit_picture(image, second), second), preset(image))
    segmentation = from_torchvision(DeepLabV3_ResNet50_Weights.DEFAULT.transforms(), crop=(520, 520))
    assert (segmentation.resize, segmentation.crop) == (520, (520, 520))
    detection = from_torchvision(SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.transforms(), crop=(320, 320))
    assert (detection.resize, detection.mean, detection.std) == (None, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([transforms.Resize(256)], "do not say the size"),
        ([transforms.RandomHorizontalFlip(), transforms.CenterCrop(8)], "not understood; got RandomHorizont"),
        ([transforms.CenterCrop(8), transforms.Resize(16)], "not understood; got Resize"),
    ],
)
def test_transforms_that_cannot_be_described_are_refused(steps: list[Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_torchvision(transforms.Compose(steps))


@pytest.mark.parametrize(
    ("size", "crop", "cut"),
    [
        ((30, 20), (20, 30), (0, 0, 30, 20)),
        ((60, 40), (20, 30), (0, 0, 30, 20)),
        ((80, 40), (20, 30), (5, 0, 35, 20)),
        ((256, 256), (224, 224), (16, 16, 240, 240)),
        ((224, 224), (224, 224), (0, 0, 224, 224)),
    ],
)
def test_without_a_size_the_crop_decides(
    size: tuple[int, int], crop: tuple[int, int], cut: tuple[int, ...]
) -> None:
    assert replace(PLAIN, crop=crop).fit(size).cut == cut


def test_a_height_and_width_may_distort() -> None:
    fit = replace(PLAIN, resize=(20, 30)).fit((500, 10))
    assert (fit.size, fit.cut) == ((30, 20), (0, 0, 30, 20))


def test_channel_order_and_scale_reach_the_model() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[...] = (10, 20, 30)
    steps = replace(PLAIN, channel_order="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    batch = batch_of(pixels, steps)
    assert batch[:, 0, 0].tolist() == [29.0, 9.0, 1.75]


def test_it_survives_json_and_names_what_is_wrong() -> None:
    steps = Preprocessing(resize=(40, 50), crop=(40, 50), mean=(0.5,), std=(0.25,), interpolation="bicubic")
    assert Preprocessing.from_dict(steps.to_dict()) == steps
    assert Preprocessing.from_dict(PLAIN.to_dict()) == PLAIN
    with pytest.raises(ModelError, match="got no mean and no std; expected crop, mean and std"):
        Preprocessing.from_dict({"crop": [8, 8]})
    with pytest.raises(ModelError, match="got colour; expected channel_order, crop"):
        Preprocessing.from_dict({**PLAIN.to_dict(), "colour": 1})
    with pytest.raises(ModelError, match="malformed"):
        Preprocessing.from_dict({"crop": 8, "mean": [0.5], "std": [0.5]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 0}, "resize of the model's preprocessing is malformed; got 0"),
        ({"resize": True}, "resize"),
        ({"resize": (1, 2, 3)}, "one side, or"),
        ({"crop": (10, 100_000)}, "crop"),
        ({"crop": (10,)}, "crop"),
        ({"mean": (0.0, 0.0)}, "1 or 3 channels"),
        ({"mean": (0.0, 0.0, float("nan"))}, "finite"),
        ({"std": (1.0, 1.0)}, "std.*3 numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std.*above 0"),
        ({"scale": 0}, "scale"),
        ({"interpolation": "lanczos"}, "bilinear, bicubic, nearest"),
        ({"channel_order": "gbr"}, "rgb or bgr"),
    ],
)
def test_fields_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(PLAIN, **changes)


def test_the_preprocessing_says_what_a_model_takes_in() -> None:
    source = replace(find_model("inspection/resnet20"), preprocessing=PLAIN)
    assert source.input_shape == (3, 20, 30)
