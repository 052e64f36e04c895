"""The networks of torchvision and timm as they are listed, before weights are chosen; neither is imported."""

from __future__ import annotations

from qaf_core.data.models.class_names import published_categories
from qaf_core.data.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE, TIMM_FAMILY, TIMM_MODELS, TimmEntry, has_timm
from qaf_core.data.models.torchvision_names import (
    TORCHVISION_DETECTION,
    TORCHVISION_MODELS,
    TORCHVISION_SEGMENTATION,
)


def list_torchvision() -> tuple[ModelSource, ...]:
    """Every network of torchvision that is named here, with the classes its published weights tell apart."""
    return (
        *(_classifier(name) for name in TORCHVISION_MODELS),
        *(_segmentation(name, side) for name, side in TORCHVISION_SEGMENTATION.items()),
        *(_detection(name, side) for name, side in TORCHVISION_DETECTION.items()),
    )


def list_timm() -> tuple[ModelSource, ...]:
    """Well-known networks of timm, where it is installed."""
    return tuple(sketch_timm(TIMM_FAMILY + name) for name in TIMM_MODELS) if has_timm() else ()


def sketch_timm(model_id: str, entry: TimmEntry | None = None) -> ModelSource:
    """A network of timm as far as it is known without asking timm: how pictures are resized is not.

    Args:
        model_id: `timm/NAME`.
        entry: What is known of it; None looks it up, and takes it for a usual ImageNet classifier.
    """
    name = model_id.removeprefix(TIMM_FAMILY)
    entry = entry or TIMM_MODELS.get(name.partition(".")[0], TimmEntry())
    return ModelSource(
        id=model_id,
        title=f"{name}, timm",
        architecture=TIMM_ARCHITECTURE + name,
        preprocessing=Preprocessing(crop=(entry.side, entry.side), mean=entry.mean, std=entry.std),
        classes=published_categories("imagenet"),
    )


def _classifier(name: str) -> ModelSource:
    side = 299 if name == "inception_v3" else 224
    return ModelSource(
        id=f"torchvision/{name}",
        title=f"{name}, ImageNet",
        architecture=f"torchvision.{name}",
        preprocessing=Preprocessing(crop=(side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        classes=published_categories("imagenet"),
    )


def _segmentation(name: str, side: int) -> ModelSource:
    return ModelSource(
        id=f"torchvision/{name}",
        title=f"{name}, 20 kinds of objects and background, by pixel",
        architecture=f"torchvision.{name}",
        preprocessing=Preprocessing(crop=(side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        classes=published_categories("voc"),
        task="segmentation",
    )


def _detection(name: str, side: int) -> ModelSource:
    """Detectors normalise their images themselves."""
    return ModelSource(
        id=f"torchvision/{name}",
        title=f"{name}, COCO objects",
        architecture=f"torchvision.{name}",
        preprocessing=Preprocessing(crop=(side, side), mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=published_categories("coco"),
        task="detection",
    )
