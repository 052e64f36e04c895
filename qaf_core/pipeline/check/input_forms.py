"""The forms in which images usually reach networks, to find the one a network was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qaf_core.data.models.source import ModelSource, preprocessing_of

#: What is wrong when another form fits better.
InputFault = Literal["normalisation", "scale", "bgr"]

CHANNELS_EXCHANGED = "red and blue exchanged"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_CIFAR_LARGEST_SIDE = 64
# Two forms whose inputs differ by less than this share of their range are the same to any network.
_SAME = 0.08
# Inputs whose ranges differ by this factor differ in scale, and not in normalisation.
_OTHER_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """How pixels (0 to 255) become a network's input: ``(pixel / scale - mean) / std`` for each channel.

    Attributes:
        name: What people call it.
        mean, std: For each channel, in the order the network gets them.
        scale: What pixels are divided by.
        reversed_channels: Blue comes first, not red, as the pixels are given.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    reversed_channels: bool = False

    def apply(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (B, H, W, C) as input (B, C, H, W), float32."""
        chosen = pixels[..., ::-1] if self.reversed_channels else pixels
        images = torch.from_numpy(chosen.astype(np.float32))
        images = images.div_(self.scale).sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std))
        return images.permute(0, 3, 1, 2)

    @property
    def extremes(self) -> NDArray[np.float64]:
        """(2, C): what the pixels 0 and 255 become."""
        ends: NDArray[np.float64] = np.array([[0.0], [255.0]]) / self.scale
        found: NDArray[np.float64] = (ends - np.array(self.mean)) / np.array(self.std)
        return found

    def is_like(self, other: InputForm) -> bool:
        """Whether a network could not tell the one from the other."""
        if self.reversed_channels != other.reversed_channels:
            return False
        first, second = self.extremes, other.extremes
        return bool(np.abs(first - second).max() < _SAME * (first[1] - first[0]).max())

    def fault_to(self, other: InputForm) -> InputFault:
        """What is wrong with this form where the other one is right."""
        own, right = np.ptp(self.extremes), np.ptp(other.extremes)
        if not 1 / _OTHER_SCALE < own / right < _OTHER_SCALE:
            return "scale"
        if self.reversed_channels != other.reversed_channels:
            return "bgr"
        return "normalisation"

    def range_text(self) -> str:
        """The range it makes, for people."""
        order = ", blue first" if self.reversed_channels else ""
        return f"{self.extremes.min():.3g} to {self.extremes.max():.3g}{order}"

    def told(self) -> str:
        """Its name and its range, for people."""
        return f"{self.name} ({self.range_text()})"

    def to_preprocessing(self) -> dict[str, Any]:
        """The fields of `Preprocessing` that say the same, as plain JSON types."""
        order = "bgr" if self.reversed_channels else "rgb"
        mean, std = ([round(value, 6) for value in values] for values in (self.mean, self.std))
        return {"mean": mean, "std": std, "scale": self.scale, "channel_order": order}


def form_of(source: ModelSource) -> InputForm:
    """The form a model's source asks for."""
    steps = preprocessing_of(source)
    return InputForm(
        name="as configured",
        mean=steps.mean,
        std=steps.std,
        scale=steps.scale,
        reversed_channels=steps.channel_order == "bgr",
    )


def usual_forms(configured: InputForm, pixels: NDArray[np.uint8]) -> tuple[InputForm, ...]:
    """The forms worth trying instead of the configured one.

    Args:
        configured: None like it is among them.
        pixels: (N, H, W, C), to take the images' own mean and standard deviation from.
    """
    height, channels = pixels.shape[1], pixels.shape[3]
    colour = channels == 3
    forms: list[InputForm] = []
    if colour:
        forms.append(
            replace(configured, name=CHANNELS_EXCHANGED, reversed_channels=not configured.reversed_channels)
        )
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    forms += [
        InputForm(name="0 to 1, not normalised", mean=zeros, std=ones),
        InputForm(name="0 to 255, not normalised", mean=zeros, std=ones, scale=1.0),
        InputForm(name="-1 to 1", mean=(0.5,) * channels, std=(0.5,) * channels),
    ]
    if colour:
        forms.append(InputForm(name="ImageNet's normalisation", mean=_IMAGENET[0], std=_IMAGENET[1]))
        forms.append(
            InputForm(
                name="0 to 255 less the mean, as in Caffe",
                mean=_CAFFE_MEAN,
                std=ones,
                scale=1.0,
                reversed_channels=True,
            )
        )
    if colour and height <= _CIFAR_LARGEST_SIDE:
        forms.append(InputForm(name="CIFAR-10's normalisation", mean=_CIFAR[0], std=_CIFAR[1]))
    mean, std = _statistics(pixels)
    forms.append(InputForm(name="normalised by the images' own mean and deviation", mean=mean, std=std))
    if configured.scale == 255.0 and max(configured.mean) > 1:
        forms.append(replace(configured, name="mean and deviation for pixels of 0 to 255", scale=1.0))
    if pixels.max(initial=0) <= 1:
        name = "pixels of 0 to 1 stretched to 0 to 255"
        forms.append(replace(configured, name=name, scale=configured.scale / 255))
    return _distinct(configured, forms)


def _statistics(pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels scaled to 0 … 1."""
    scaled = pixels.reshape(-1, pixels.shape[-1]) / 255.0
    deviation = np.maximum(scaled.std(axis=0), 1e-3)
    return tuple(map(float, scaled.mean(axis=0))), tuple(map(float, deviation))


def _distinct(configured: InputForm, forms: Sequence[InputForm]) -> tuple[InputForm, ...]:
    """The first of those that are alike; those like the configured one are left out."""
    kept: list[InputForm] = []
    for form in forms:
        if not any(form.is_like(other) for other in (configured, *kept)):
            kept.append(form)
    return tuple(kept)
