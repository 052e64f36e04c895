"""Small networks of the kinds torchvision has: captured in a second, and each kind of block is there."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import ConvNeXt, DenseNet, MobileNetV3, VisionTransformer
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2

from qaf_core.network.graph.capture import capture

SIDE = 32


def body(width: int = 12) -> nn.Sequential:
    """A backbone of three stages, with names a feature pyramid can pick."""

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    return nn.Sequential(
        OrderedDict(stem=stage(3, width), layer1=stage(width, width), layer2=stage(width, width))
    )


def mobilenet() -> nn.Module:
    """Depthwise layers, squeeze-and-excitation, hard activations and a residual."""
    rows = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
        InvertedResidualConfig(16, 3, 40, 24, True, "HS", 2, 1, 1),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1),
    ]
    return MobileNetV3(rows, last_channel=32, num_classes=5)


def densenet() -> nn.Module:
    """BatchNorm and activation before their layers, and all earlier outputs joined."""
    return DenseNet(8, (2, 2), 12, bn_size=2, num_classes=5)


def convnext() -> nn.Module:
    """Layer norms over channels, wide depthwise kernels and a scale per channel."""
    rows = [CNBlockConfig(12, 24, 1), CNBlockConfig(24, None, 1)]
    return ConvNeXt(rows, layer_scale=0.5, num_classes=5)


def vision_transformer() -> nn.Module:
    """Packed attention."""
    model = VisionTransformer(
        image_size=SIDE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)
    return model


def swin() -> nn.Module:
    """Attention in windows, shifted or not."""
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 1], num_heads=[2, 2], window_size=[3, 3], num_classes=5
    )


def second_swin() -> nn.Module:
    """The second version of the same: layers that compute biases from positions."""
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2], num_heads=[2], window_size=[3, 3], num_classes=5,
        block=SwinTransformerBlockV2,
    )  # fmt: skip


def segmentation() -> nn.Module:
    """Two heads, whose outputs come in a dict."""
    features = IntermediateLayerGetter(body(), {"layer1": "aux", "layer2": "out"})
    return FCN(features, FCNHead(12, 4), FCNHead(12, 4))


def detector() -> nn.Module:
    """One head on several scales, and boxes chosen by score."""
    pyramid = BackboneWithFPN(body(), {"layer1": "0", "layer2": "1"}, [12, 12], 8)
    return FasterRCNN(
        pyramid,
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        rpn_post_nms_top_n_test=20,
        box_head=TwoMLPHead(8 * 7 * 7, 24),
        box_predictor=FastRCNNPredictor(24, 3),
        box_score_thresh=0.0,
    )


@functools.cache
def _pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    fresh = build().eval()
    return fresh, capture(copy.deepcopy(fresh), (3, SIDE, SIDE))


def built_and_captured(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A network with seeded weights and its capture, made once for all tests; both are copies."""
    fresh, captured = _pair(build)
    return copy.deepcopy(fresh), copy.deepcopy(captured)
