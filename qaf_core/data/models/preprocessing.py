"""How a picture becomes what a model is fed: resized, cut, its pixels scaled and normalised.

Describing it needs no torch, so that a screen can show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import floor, isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

from qaf_core.errors import ModelError
from qaf_core.records import Record
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "nearest"]
ChannelOrder = Literal["rgb", "bgr"]

#: What nearly every published network of ImageNet was trained with, for red, green and blue.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LARGEST_SIDE_PX = 8192
_MARGIN, _MARGIN_FROM_PX = 256 / 224, 128  # the usual margin of ImageNet evaluation
_TIMM_CROP = 0.875  # timm's own default
_IGNORED_STEPS = ("ToTensor", "PILToTensor", "ToImage", "ConvertImageDtype", "ToDtype", "Identity")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one picture is brought to the model's size: scaled, then the middle cut out.

    Attributes:
        size: Width and height after scaling.
        corner: Left and top of the part that is used; negative where black is put around the picture.
        used: Its width and height.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    used: tuple[int, int]

    @property
    def cut(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part used, in the scaled picture."""
        (left, top), (width, height) = self.corner, self.used
        return left, top, left + width, top + height


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Record):
    """What happens to a picture before the model sees it.

    Attributes:
        resize: Length of the shorter side in pixels, or (height, width); None scales as far as the crop
            needs, with ImageNet's usual margin for large crops, and leaves a picture of the crop's size as
            it is.
        crop: (height, width) cut from the middle; black is put around what is smaller.
        interpolation: How resizing blends pixels.
        mean, std: Normalisation of each channel, after dividing by scale, in the model's channel order.
        channel_order: `rgb`, or `bgr` for networks from Caffe or OpenCV; one channel is grey.
        scale: What pixels of 0 to 255 are divided by: 255 for 0 … 1, 1 to leave them.

    Raises:
        ModelError: When a field is out of range.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int]
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: ChannelOrder = "rgb"
    scale: float = 255.0

    def __post_init__(self) -> None:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize or ()
        _require(all(map(_is_side, sides)), "resize", self.resize, say("pixels, (height, width) or nothing"))
        _require(len(sides) <= 2, "resize", self.resize, say("one side, or (height, width)"))
        _require(len(self.crop) == 2 and all(map(_is_side, self.crop)), "crop", self.crop, "(height, width)")
        _require(
            self.interpolation in get_args(Interpolation),
            "interpolation",
            self.interpolation,
            ", ".join(get_args(Interpolation)),
        )
        _require(
            self.channel_order in get_args(ChannelOrder),
            "channel order",
            self.channel_order,
            say("rgb or bgr"),
        )
        channels = len(self.mean)
        _require(channels in (1, 3), "mean", self.mean, say("one number a channel, 1 or 3 channels"))
        _require(all(map(_is_number, self.mean)), "mean", self.mean, say("finite numbers"))
        _require(
            len(self.std) == channels,
            "std",
            self.std,
            say("{count} numbers, as many as mean", count=channels),
        )
        _require(all(_is_number(value) and value > 0 for value in self.std), "std", self.std, say("above 0"))
        _require(_is_number(self.scale) and self.scale > 0, "scale", self.scale, say("above 0, as 255 or 1"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pixels the model gets."""
        return (*self.crop, len(self.mean))

    def fit(self, size: tuple[int, int]) -> Fit:
        """Where the part that is used lies in a picture.

        Sizes and corners are those of torchvision's `Resize` and `CenterCrop`.

        Args:
            size: Width and height of the picture.
        """
        height, width = self.crop
        scaled = self._scaled(size)
        return Fit(
            size=scaled, corner=(_corner(scaled[0], width), _corner(scaled[1], height)), used=(width, height)
        )

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = self.crop
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if self.resize is not None:
            shorter, longer = min(size), max(size)
            length = max(1, int(self.resize * longer / shorter))
            return (self.resize, length) if size[0] <= size[1] else (length, self.resize)
        if size == (width, height):
            return size
        margin = _MARGIN if min(height, width) >= _MARGIN_FROM_PX else 1.0
        factor = margin * max(width / size[0], height / size[1])
        return max(width, round(size[0] * factor)), max(height, round(size[1] * factor))

    def normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Pixels (B, H, W, C) of its size as float32 input (B, C, H, W), channels last in memory."""
        import torch

        ordered = pixels[..., ::-1] if self.channel_order == "bgr" else pixels
        images = torch.from_numpy(ordered.astype("float32"))
        images = images.div_(self.scale).sub_(torch.tensor(self.mean)).div_(torch.tensor(self.std))
        return images.permute(0, 3, 1, 2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` wrote, or a person by hand.

        Raises:
            ModelError: When a field is unknown, missing or out of range.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = [name for name in ("crop", "mean", "std") if name not in values]
        _require(not unknown, "fields", ", ".join(map(str, unknown)), ", ".join(sorted(known)))
        _require(
            not missing,
            "fields",
            say("no {missing}", missing=" and no ".join(missing)),
            say("crop, mean and std at least"),
        )
        try:
            return cls(**{key: _frozen(value) for key, value in values.items()})
        except TypeError as error:
            raise ModelError("preprocessing of the model is malformed", got=error) from error


def from_torchvision(transforms: Any, crop: tuple[int, int] | None = None) -> Preprocessing:
    """The preprocessing that torchvision's transforms carry out.

    Args:
        transforms: What `weights.transforms()` gives, or a `Compose` of Resize, CenterCrop, Normalize and
            conversions to tensors.
        crop: (height, width) of the model's input where the transforms do not say, as in detection.

    Raises:
        ModelError: When there is a step that cannot be described, or the size is not said.
    """
    steps = getattr(transforms, "transforms", None)
    settings = _from_steps(steps) if steps is not None else _from_preset(transforms)
    if "crop" not in settings:
        resize = settings.get("resize")
        if crop is None and not isinstance(resize, tuple):
            raise ModelError("the transforms do not say the size of the model's input", remedy="give it")
        settings["crop"] = crop or resize
    return Preprocessing(**settings)


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that timm's `create_transform` carries out to evaluate.

    Args:
        config: What `timm.data.resolve_data_config` gives.

    Raises:
        ModelError: When pictures are cut in a way that cannot be described.
    """
    height, width = config["input_size"][1:]
    crop_share = config.get("crop_pct") or _TIMM_CROP
    scaled = (floor(height / crop_share), floor(width / crop_share))
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash") or (mode == "center" and scaled[0] != scaled[1]):
        raise ModelError(
            "timm cuts pictures for this network in a way that is not understood",
            got=say("{mode}, {height}×{width} pixels", mode=mode, height=height, width=width),
            expected="center with square images, or squash",
        )
    return Preprocessing(
        resize=scaled[0] if mode == "center" else scaled,
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _from_preset(preset: Any) -> dict[str, Any]:
    """torchvision's presets hold their settings as attributes; that of detection has none."""
    settings: dict[str, Any] = {
        "mean": tuple(getattr(preset, "mean", (0.0, 0.0, 0.0))),
        "std": tuple(getattr(preset, "std", (1.0, 1.0, 1.0))),
    }
    if getattr(preset, "resize_size", None) is not None:
        settings["resize"] = _sides(preset.resize_size)
        settings["interpolation"] = _interpolation(preset)
    if hasattr(preset, "crop_size"):
        settings["crop"] = _both_sides(preset.crop_size)
    return settings


def _from_steps(steps: Sequence[Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize" and "crop" not in settings and getattr(step, "max_size", None) is None:
            settings.update(resize=_sides(step.size), interpolation=_interpolation(step))
        elif kind == "CenterCrop":
            settings["crop"] = _both_sides(step.size)
        elif kind == "Normalize":
            settings.update(mean=tuple(step.mean), std=tuple(step.std))
        elif kind not in _IGNORED_STEPS:
            raise ModelError(
                "the transforms hold a step that is not understood",
                got=kind,
                expected="Resize, CenterCrop, conversion to a tensor, Normalize",
            )
    return settings


def _sides(size: int | Sequence[int]) -> int | tuple[int, int]:
    values = (size,) if isinstance(size, int) else tuple(size)
    return values[0] if len(values) == 1 else (values[0], values[1])


def _both_sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = _sides(size)
    return (sides, sides) if isinstance(sides, int) else sides


def _interpolation(step: Any) -> str:
    mode = getattr(step, "interpolation", "bilinear")
    return str(getattr(mode, "value", mode))


def _corner(length: int, used: int) -> int:
    """torchvision's rounding, of crops and of the black it puts around."""
    return round((length - used) / 2) if length >= used else -((used - length) // 2)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_SIDE_PX


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _require(holds: bool, field: str, got: object, expected: str | Said) -> None:
    if not holds:
        raise ModelError(
            say("{field} of the model's preprocessing is malformed", field=field), got=got, expected=expected
        )
