"""The networks built here: CIFAR-form ResNets, a narrow VGG and a small CNN for 8×8 digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.data.torchvision_names import TORCHVISION_DETECTION, TORCHVISION_SEGMENTATION

#: Depths of the CIFAR-form ResNets: 6 n + 2.
CIFAR_DEPTHS = (20, 32, 44, 56, 110)


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


_OWN: dict[str, Callable[[int], nn.Module]] = {
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in CIFAR_DEPTHS},
    "narrow_vgg": NarrowVgg,
    "digits_cnn": DigitsCnn,
}


def build_architecture(name: str, num_classes: int) -> nn.Module:
    """Build a network with freshly drawn weights.

    Args:
        name: `cifar_resnet20` …, `narrow_vgg`, `digits_cnn`, or `torchvision.NAME` (torchvision's own code).
        num_classes: Outputs of the classifier.

    Raises:
        KeyError: When there is no such architecture.
    """
    if name.startswith("torchvision."):
        from torchvision import models

        short = name.removeprefix("torchvision.")
        special: dict[str, Any] = {}
        if short in ("googlenet", "inception_v3"):
            # As torchvision sets them for its public weights. Drawing their own start takes half a minute.
            special = {"init_weights": False, "transform_input": True}
        elif short in TORCHVISION_SEGMENTATION:
            special = {"weights_backbone": None, "aux_loss": True}  # the public weights hold the second head
        elif short in TORCHVISION_DETECTION:
            special = {"weights_backbone": None}
        network: nn.Module = models.get_model(short, weights=None, num_classes=num_classes, **special)
        return network
    return _OWN[name](num_classes)
