"""Networks of torchvision: every layer is listed, and those that can be factorized are exchanged exactly.

The chains hold factors that are constructed, not fitted, so the exchanged network must put out what the
original did: this proves geometry, order, groups, shared layers and heads of every kind of network there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qaf_core.factorization.exact import exact_factors
from qaf_core.network.cost import original_cost, plan_cost
from qaf_core.network.inventory import FACTORIZED, LayerInfo, take_inventory
from qaf_core.network.layers import build_chain, swap_layer
from qaf_core.network.opening import open_network
from qaf_core.network.plan import plan_for_ratio, validate_plan

TOLERANCE = 1e-4
SIDE = 64
NO_BACKBONE = {"weights_backbone": None}
# name -> what it is built with here
ZOO: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "wide_resnet50_2": {},
    "vgg16_bn": {"init_weights": False},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "densenet121": {},
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
    "shufflenet_v2_x1_0": {},
    "squeezenet1_1": {},
    "mnasnet1_0": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "vit_b_16": {"image_size": SIDE},
    "swin_t": {},
    "swin_v2_t": {},
    "deeplabv3_resnet50": {**NO_BACKBONE, "aux_loss": True},
    "fcn_resnet50": {**NO_BACKBONE, "aux_loss": True},
    "ssdlite320_mobilenet_v3_large": NO_BACKBONE,
    "fasterrcnn_resnet50_fpn": {**NO_BACKBONE, "min_size": SIDE, "max_size": SIDE},
}
SIDES = {"inception_v3": 96}  # of the least image a network takes, where that is more


def random_network(name: str, images: Tensor) -> nn.Module:
    """The network with random weights, none of them constant, and activations of about unit size.

    BatchNorm only scales: with the mean of two images taken away too, little but noise would be left.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **ZOO[name]).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or float(parameter.abs().max()) < 1e-3:  # begins as zeros, or as good as
                parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        model(images)
        for norm in norms:
            norm.running_var.fill_(float((norm.running_var + norm.running_mean.square()).mean()))
            norm.running_mean.zero_()
    return model.eval()


@torch.inference_mode()
def raw_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors a network puts out; of a detector those of its heads, before boxes are chosen by score."""
    heads = [module for key, module in model.named_modules() if key in ("head", "rpn.head")]
    if not isinstance(model, torchvision.models.detection.generalized_rcnn.GeneralizedRCNN) and not hasattr(
        model, "anchor_generator"
    ):
        return tree_leaves(model(images))
    found: list[Tensor] = []
    handles = [
        head.register_forward_hook(lambda _m, _i, out: found.extend(tree_leaves(out))) for head in heads
    ]
    model(images)
    for handle in handles:
        handle.remove()
    if hasattr(model, "roi_heads"):
        generator = torch.Generator().manual_seed(1)
        pooled = model.roi_heads.box_head(torch.randn(4, 256, 7, 7, generator=generator))
        found += tree_leaves(model.roi_heads.box_predictor(pooled))
    return found


def swap_exactly(model: nn.Module, inventory: Sequence[LayerInfo]) -> int:
    """Put a chain with exact factors in place of every layer that can be factorized; how many there are."""
    eligible = [info for info in inventory if info.eligible]
    for index, info in enumerate(eligible):
        layer = model.get_submodule(info.name)
        forms = [structure for structure in info.structures if structure in FACTORIZED]
        factors = exact_factors(layer.get_parameter("weight"), forms[index % len(forms)])
        swap_layer(model, info.name, build_chain(layer, factors))
    return len(eligible)


@pytest.mark.parametrize("name", ZOO)
def test_exact_chains_in_all_places_leave_the_outputs_as_they_were(name: str) -> None:
    side = SIDES.get(name, SIDE)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = random_network(name, images)
    expected = raw_outputs(model, images)
    open_network(model)
    inventory = take_inventory(model, (3, side, side))
    assert sum(info.params for info in inventory) == sum(p.numel() for p in model.parameters())
    assert all(info.eligible or info.skip_reason for info in inventory if info.kind != "batchnorm")
    plan = plan_for_ratio(inventory, model=name, ratio=2, bits=4)
    validate_plan(plan, inventory)
    assert plan_cost(inventory, plan).size_bytes < 0.5 * original_cost(inventory).size_bytes

    assert swap_exactly(model, inventory) > 10
    found = raw_outputs(model, images)
    assert len(found) == len(expected) > 0
    for wanted, given in zip(expected, found, strict=True):
        assert given.shape == wanted.shape
        size = float(wanted.abs().max())
        difference = float((given - wanted).abs().max())
        assert difference <= TOLERANCE * size
        # Far below what another image changes, else it would prove nothing.
        assert difference < 1e-3 * float((wanted - wanted.mean(dim=0)).abs().max())
