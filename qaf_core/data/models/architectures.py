"""The networks built here: CIFAR-form ResNets, a narrow VGG, a small CNN, a U-Net and a small detector."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.data.inspection import dataset
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE
from qaf_core.data.models.torchvision_names import TORCHVISION_DETECTION, TORCHVISION_SEGMENTATION
from qaf_core.network.graph.constants import LEAST_EPSILON

#: Depths of the CIFAR-form ResNets: 6 n + 2.
CIFAR_DEPTHS = (20, 32, 44, 56, 110)

# Their public weights hold a second head, or were trained with BatchNorm frozen and no epsilon.
_TWO_HEADS = ("deeplabv3_resnet50", "fcn_resnet50")
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


class CifarBlock(nn.Module):
    """Two 3×3 convolutions around a parameter-free shortcut (He et al. 2016, §4.2, option A).

    Where the width grows, the shortcut takes every second pixel and pads the new channels with zeros, half of
    them before and half after the old ones.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features
        if self.stride > 1 or self.new_channels:
            before = self.new_channels // 2
            shortcut = features[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for small images: three stages of 16, 32 and 64 channels, then the mean over the image.

    Args:
        depth: 6 n + 2 layers, n blocks a stage.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(CifarBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def _conv_unit(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class NarrowVgg(nn.Module):
    """VGG with narrow convolutions and large linear layers (most of its 2.1 M parameters), for 64×64."""

    widths = (32, 64, 96, 128)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in self.widths:
            layers += [*_conv_unit(channels, width), *_conv_unit(width, width), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 4 * 4, 640),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(640, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


class DigitsCnn(nn.Module):
    """Three convolutions and two linear layers for 8×8 grey images, 90 k parameters."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_unit(1, 32), *_conv_unit(32, 64), nn.MaxPool2d(2), *_conv_unit(64, 64), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 2 * 2, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


class Unet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with padded convolutions and BatchNorm, 0.5 M parameters.

    Four scales; on the way up the nearest pixel is repeated, and the features of the same scale on the way
    down are put beside it.
    """

    widths = (16, 32, 64, 128)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        before = (3, *self.widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(*_conv_unit(inputs, width), *_conv_unit(width, width))
            for inputs, width in zip(before, self.widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(*_conv_unit(below + width, width), *_conv_unit(width, width))
            for below, width in zip(self.widths[:0:-1], self.widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(self.widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        features = images
        for stage in self.down:
            features = stage(functional.max_pool2d(features, 2) if kept else features)
            kept.append(features)
        for stage, beside in zip(self.up, kept[-2::-1], strict=True):
            features = functional.interpolate(features, size=beside.shape[-2:], mode="nearest")
            features = stage(torch.cat([features, beside], dim=1))
        scores: Tensor = self.head(features)
        return scores


class DetectorBackbone(nn.Module):
    """Residual stages down to a sixteenth of the image, summed back up to a quarter: one map of 96 channels.

    One map is enough for objects of 4 to 44 pixels, and the detector's heads then run once an image.
    """

    widths = (48, 96, 128, 192)
    out_channels = 96

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_unit(3, 32))
        before = (32, *self.widths[:-1])
        self.stages = nn.ModuleList(
            _stage(inputs, width, 2, stride=2) for inputs, width in zip(before, self.widths, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, self.out_channels, 1) for width in self.widths[1:])
        self.smooth = nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.stem(images)
        levels: list[Tensor] = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        summed = self.lateral[-1](levels[-1])
        for lateral, level in zip(self.lateral[-2::-1], levels[-2:0:-1], strict=True):
            summed = lateral(level) + functional.interpolate(summed, size=level.shape[-2:], mode="nearest")
        return OrderedDict(finest=self.smooth(summed))


def _small_fcos(num_classes: int) -> nn.Module:
    """torchvision's FCOS (Tian et al. 2019) on a small backbone, for 64×64 pixels scaled to 0 … 1.

    Like torchvision's own detectors it normalises its images itself, and class 0 is the background.
    """
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOSHead

    backbone = DetectorBackbone()
    detector: nn.Module = FCOS(
        backbone,
        num_classes,
        min_size=dataset.IMAGE_SIZE,
        max_size=dataset.IMAGE_SIZE,
        image_mean=list(dataset.MEAN),
        image_std=list(dataset.STD),
        anchor_generator=AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),)),
        head=FCOSHead(backbone.out_channels, 1, num_classes, num_convs=2),
        score_thresh=0.05,
        detections_per_img=20,
    )
    return detector


_OWN: dict[str, Callable[[int], nn.Module]] = {
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in CIFAR_DEPTHS},
    "narrow_vgg": NarrowVgg,
    "digits_cnn": DigitsCnn,
    "unet": Unet,
    "small_fcos": _small_fcos,
}


def build_architecture(name: str, num_classes: int) -> nn.Module:
    """Build a network with freshly drawn weights.

    Args:
        name: `cifar_resnet20` …, `narrow_vgg`, `digits_cnn`, `unet`, `small_fcos`, or `torchvision.NAME`
            (torchvision's own code) or `timm.NAME` (timm's).
        num_classes: Outputs of the classifier.

    Raises:
        KeyError: When there is no such architecture.
        ModelError: When timm is not installed, or has no such network.
    """
    if name.startswith(TIMM_ARCHITECTURE):
        from qaf_core.data.models.timm_networks import build_timm

        return build_timm(name.removeprefix(TIMM_ARCHITECTURE), num_classes)
    if name.startswith("torchvision."):
        from torchvision import models

        short = name.removeprefix("torchvision.")
        special: dict[str, Any] = {}
        if short in ("googlenet", "inception_v3"):
            # As torchvision sets them for its public weights. Drawing their own start takes half a minute.
            special = {"init_weights": False, "transform_input": True}
        elif short in TORCHVISION_SEGMENTATION or short in TORCHVISION_DETECTION:
            special = {"weights_backbone": None}
            if short in _TWO_HEADS:
                special["aux_loss"] = True
        network: nn.Module = models.get_model(short, weights=None, num_classes=num_classes, **special)
        if short in _WITHOUT_EPSILON:
            for norm in network.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eps = LEAST_EPSILON
        return network
    return _OWN[name](num_classes)
