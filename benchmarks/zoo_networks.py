"""The networks of ``benchmarks/zoo.py``: one of each of timm's families, torchvision's, others'.

EfficientNet with TensorFlow's "same" padding, in classes of its own over ``nn.Conv2d``, comes from two
packages that are tried where they are installed: ``pip install efficientnet-pytorch
efficientnet_lite_pytorch``. Their weights are random here, as those of all others.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from qaf_core.data.models.timm_names import TIMM_FAMILY, has_timm
from qaf_core.data.models.torchvision_names import (
    TORCHVISION_DETECTION,
    TORCHVISION_MODELS,
    TORCHVISION_SEGMENTATION,
)

if TYPE_CHECKING:
    from torch import nn

#: One of each family.
TIMM_NETWORKS = (
    *("mobilenetv3_small_100", "efficientnet_lite0", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224", "mobilevit_xxs", "levit_128s", "eca_nfnet_l0", "hrnet_w18_small"),
    *("ghostnet_100", "repvgg_a0", "convnext_atto", "xcit_nano_12_p16_224", "resnest14d", "regnety_002"),
    *("densenet121", "dla46_c", "vgg11_bn", "inception_v3", "legacy_xception", "mixnet_s", "mnasnet_small"),
    *("fbnetc_100", "tinynet_e", "edgenext_xx_small", "efficientformer_l1", "poolformer_s12"),
    *("cait_xxs24_224", "coat_lite_tiny", "crossvit_tiny_240", "pit_ti_224", "tnt_s_patch16_224"),
    *("twins_svt_small", "visformer_tiny", "mixer_s32_224", "gmlp_ti16_224", "resmlp_12_224"),
    *("convmixer_1024_20_ks9_p14", "volo_d1_224", "maxvit_rmlp_pico_rw_256", "fastvit_t8", "repvit_m0_9"),
)
#: Package -> the factory here that builds one of its networks.
OTHERS = {
    "efficientnet_pytorch": "zoo_networks:same_padding_b0",
    "efficientnet_lite_pytorch": "zoo_networks:same_padding_lite0",
}


def every_network() -> tuple[str, ...]:
    """Ids of all that can be built here; what is not installed is left out."""
    timm = tuple(TIMM_FAMILY + name for name in TIMM_NETWORKS) if has_timm() else ()
    others = tuple(factory for package, factory in OTHERS.items() if find_spec(package) is not None)
    named = (*TORCHVISION_MODELS, *TORCHVISION_SEGMENTATION, *TORCHVISION_DETECTION)
    return (*timm, *others, *(f"torchvision/{name}" for name in named))


def same_padding_b0() -> nn.Module:
    """EfficientNet-B0 of ``efficientnet-pytorch``."""
    from efficientnet_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-b0")
    return network


def same_padding_lite0() -> nn.Module:
    """EfficientNet-Lite0 of ``efficientnet_lite_pytorch``."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network
