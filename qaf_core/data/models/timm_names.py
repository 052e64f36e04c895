"""Well-known networks of timm, one or two of a family, so that they are known without importing it.

Where timm is installed any other of its networks works by its name, too.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from qaf_core.data.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD

TIMM_FAMILY, TIMM_ARCHITECTURE = "timm/", "timm."

_TAG = re.compile(r"[A-Za-z0-9_]{2,80}")
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class TimmEntry:
    """What is known of a network of timm before timm is asked.

    Attributes:
        side: Of its square images, in pixels.
        mean, std: Normalisation of each channel.
    """

    side: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def _entries(
    names: str, side: int, normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
) -> dict[str, TimmEntry]:
    mean, std = normalisation
    return {name: TimmEntry(side=side, mean=mean, std=std) for name in names.split()}


#: The networks that are listed, classifiers of ImageNet's 1,000 classes.
TIMM_MODELS: dict[str, TimmEntry] = dict(
    sorted(
        {
            **_entries(
                "cait_xxs24_224 coat_lite_tiny convmixer_768_32 convnext_atto convnext_tiny convnextv2_atto "
                "davit_tiny deit3_small_patch16_224 deit_tiny_patch16_224 densenet121 dla34 eca_nfnet_l0 "
                "efficientformer_l1 efficientnet_b0 efficientnet_lite0 efficientvit_b0 fbnetc_100 "
                "focalnet_tiny_srf ghostnet_100 hgnetv2_b0 hrnet_w18_small inception_next_tiny lcnet_050 "
                "levit_128s maxvit_tiny_tf_224 mixnet_s mnasnet_100 mobilenetv2_100 mobilenetv3_large_100 "
                "mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 pit_ti_224 poolformer_s12 "
                "pvt_v2_b0 regnety_002 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d "
                "resnet18 resnet50 resnext50_32x4d rexnet_100 seresnet50 starnet_s1 "
                "swin_tiny_patch4_window7_224 tf_efficientnet_b0 twins_svt_small vgg16_bn visformer_tiny "
                "volo_d1_224 wide_resnet50_2 xcit_nano_12_p16_224",
                224,
            ),
            **_entries("tinynet_a", 192),
            **_entries("crossvit_9_240", 240),
            **_entries("cspresnet50 edgenext_xx_small fastvit_t8 swinv2_tiny_window8_256", 256),
            **_entries(
                "beit_base_patch16_224 coatnet_nano_rw_224 gmlp_s16_224 mixer_b16_224 resnetv2_50 "
                "tf_efficientnet_lite0 tnt_s_patch16_224 vit_base_patch16_224 vit_small_patch16_224 "
                "vit_tiny_patch16_224",
                224,
                _HALVES,
            ),
            **_entries("inception_v3 inception_v4 inception_resnet_v2 xception41", 299, _HALVES),
            **_entries("tf_efficientnetv2_s", 300, _HALVES),
            **_entries("mobilevit_s mobilevitv2_050", 256, _PLAIN),
        }.items()
    )
)


def has_timm() -> bool:
    """Whether timm can be imported; it is not imported to find out."""
    if "timm" in sys.modules:
        return sys.modules["timm"] is not None
    return find_spec("timm") is not None


def looks_like_tag(weights: str) -> bool:
    """Whether a value for `--weights` may be timm's name of published weights: one word, and no file."""
    return _TAG.fullmatch(weights) is not None and not Path(weights).exists()


def timm_version() -> str | None:
    """The version of timm that is installed, or None."""
    try:
        return version("timm") if has_timm() else None
    except PackageNotFoundError:  # a copy of it that was not installed as a package
        return "unknown"
