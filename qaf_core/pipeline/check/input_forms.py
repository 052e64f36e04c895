"""The forms in which images usually reach networks, to find the one a network was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qaf_core.data.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.pipeline.check.plausibility import CHANNELS_EXCHANGED, FindingKind
from qaf_core.text.said import Said, say

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_CIFAR_LARGEST_SIDE = 64
# Two forms whose inputs differ by less than this share of their range are the same to any network.
_SAME = 0.08
# Inputs whose ranges differ by this factor differ in scale, and not in normalisation.
_OTHER_SCALE = 20.0


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """A way from pixels to a network's input, by the name people call it."""

    label: str
    steps: Preprocessing

    @classmethod
    def configured(cls, source: ModelSource) -> InputForm:
        """The form a model's source asks for."""
        return cls(label="as configured", steps=source.preprocessing)

    @property
    def extremes(self) -> NDArray[np.float64]:
        """(2, C): what the pixels 0 and 255 become."""
        ends: NDArray[np.float64] = np.array([[0.0], [255.0]]) / self.steps.scale
        values: NDArray[np.float64] = (ends - np.array(self.steps.mean)) / np.array(self.steps.std)
        return values

    def is_like(self, other: InputForm) -> bool:
        """Whether a network could not tell the one from the other."""
        if self.steps.channel_order != other.steps.channel_order:
            return False
        first, second = self.extremes, other.extremes
        return bool(np.abs(first - second).max() < _SAME * (first[1] - first[0]).max())

    def fault_to(self, other: InputForm) -> FindingKind:
        """What is wrong with this form where the other one is right."""
        own, right = np.ptp(self.extremes), np.ptp(other.extremes)
        if not 1 / _OTHER_SCALE < own / right < _OTHER_SCALE:
            return FindingKind.SCALE
        if self.steps.channel_order != other.steps.channel_order:
            return FindingKind.CHANNEL_ORDER
        return FindingKind.NORMALISATION

    def range_said(self) -> Said:
        """The range it makes, for people."""
        ends = {"low": f"{self.extremes.min():.3g}", "high": f"{self.extremes.max():.3g}"}
        if self.steps.channel_order == "bgr":
            return say("{low} to {high}, blue first", **ends)
        return say("{low} to {high}", **ends)

    def describe(self) -> Said:
        """Its label and its range, for people."""
        return say("{form} ({range})", form=Said(self.label), range=self.range_said())

    def changes(self) -> dict[str, Any]:
        """The fields of `Preprocessing` in which forms differ, as plain JSON types."""
        steps = self.steps
        mean, std = ([round(value, 6) for value in values] for values in (steps.mean, steps.std))
        return {"mean": mean, "std": std, "scale": steps.scale, "channel_order": steps.channel_order}


def usual_forms(configured: InputForm, pixels: NDArray[np.uint8]) -> tuple[InputForm, ...]:
    """The forms worth trying instead of the configured one.

    Args:
        configured: None like it is among them.
        pixels: (N, H, W, C), to take the images' own mean and standard deviation from.
    """
    height, channels = pixels.shape[1], pixels.shape[3]
    preparation, colour = configured.steps, channels == 3
    plain = Preprocessing(crop=preparation.crop, mean=(0.0,) * channels, std=(1.0,) * channels)
    mean, std = _statistics(pixels)
    forms: dict[str, Preprocessing] = {}
    if colour:
        order: Literal["rgb", "bgr"] = "rgb" if preparation.channel_order == "bgr" else "bgr"
        forms[CHANNELS_EXCHANGED] = replace(preparation, channel_order=order)
    forms["0 to 1, not normalised"] = plain
    forms["0 to 255, not normalised"] = replace(plain, scale=1.0)
    forms["-1 to 1"] = replace(plain, mean=(0.5,) * channels, std=(0.5,) * channels)
    if colour:
        forms["ImageNet's normalisation"] = replace(plain, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        caffe = replace(plain, mean=_CAFFE_MEAN, scale=1.0, channel_order="bgr")
        forms["0 to 255 less the mean, as in Caffe"] = caffe
    if colour and height <= _CIFAR_LARGEST_SIDE:
        forms["CIFAR-10's normalisation"] = replace(plain, mean=_CIFAR[0], std=_CIFAR[1])
    forms["normalised by the images' own mean and deviation"] = replace(plain, mean=mean, std=std)
    if preparation.scale == 255.0 and max(preparation.mean) > 1:
        forms["mean and deviation for pixels of 0 to 255"] = replace(preparation, scale=1.0)
    if pixels.max(initial=0) <= 1:
        forms["pixels of 0 to 1 stretched to 0 to 255"] = replace(preparation, scale=preparation.scale / 255)
    return _distinct(configured, [InputForm(label=label, steps=steps) for label, steps in forms.items()])


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
