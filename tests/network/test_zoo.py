"""Networks of torchvision: every layer is listed, and those that can be factorized are exchanged exactly.

The chains hold factors that are constructed, not fitted, so the exchanged network must put out what the
original did. ``benchmarks/zoo.py`` does the same at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torchvision import models
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.quantized import swap_layer
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio, validate_plan
from qaf_core.pipeline.check.equivalence import exact_chain

# One network of each kind of block: their larger siblings repeat them.
NETWORKS = (
    *("resnet18", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"),
    *("densenet121", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0"),
    *("regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "deeplabv3_resnet50"),
    "fasterrcnn_resnet50_fpn",
)
TOLERANCE = 1e-4
SIDE = 64
SIDES = {"inception_v3": 96}  # the least a network takes, where that is more


def random_network(name: str, side: int, images: Tensor) -> nn.Module:
    """The network with random weights, none of them constant, and activations of about unit size.

    BatchNorm only scales: with the mean of two images taken away too, little but noise would be left.
    """
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **_built_with(name, side)).eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
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


def _built_with(name: str, side: int) -> dict[str, Any]:
    if name.startswith("vgg"):
        return {"init_weights": False}  # as other linear layers begin, and faster
    if name in ("googlenet", "inception_v3"):
        return {"init_weights": False, "transform_input": True}
    if name.startswith("vit"):
        return {"image_size": side}
    if name.startswith(("deeplab", "fcn")):
        return {"weights_backbone": None, "aux_loss": True}
    if name.startswith("fasterrcnn"):
        return {"weights_backbone": None, "min_size": side, "max_size": side}
    return {}


@torch.inference_mode()
def raw_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors a network puts out; of a detector those of its heads, before boxes are chosen by score."""
    if not isinstance(model, GeneralizedRCNN):
        return tree_leaves(model(images))
    found: list[Tensor] = []
    handle = model.rpn.head.register_forward_hook(
        lambda _module, _inputs, output: found.extend(tree_leaves(output))
    )
    model(images)
    handle.remove()
    pooled = torch.randn(4, 256, 7, 7, generator=torch.Generator().manual_seed(1))
    found += tree_leaves(model.roi_heads.box_predictor(model.roi_heads.box_head(pooled)))
    return found


def swap_exactly(model: nn.Module, inventory: Sequence[LayerInfo]) -> int:
    """Put an exact chain in place of every layer that can be factorized, of each form in turn; how many."""
    eligible = [info for info in inventory if info.eligible]
    for index, info in enumerate(eligible):
        forms = [structure for structure in info.structures if structure in FACTORIZED]
        swap_layer(model, info.name, exact_chain(layer_of(model, info.name), forms[index % len(forms)]))
    return len(eligible)


def compare(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of any output over the largest output, and the same between two images."""
    difference, spread = 0.0, float("inf")
    for wanted, given in zip(expected, found, strict=True):
        assert given.shape == wanted.shape
        size = float(wanted.abs().max())
        difference = max(difference, float((given - wanted).abs().max()) / size)
        spread = min(spread, float((wanted - wanted.mean(dim=0)).abs().max()) / size)
    return difference, spread


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_chains_in_all_places_leave_the_outputs_as_they_were(name: str) -> None:
    side = SIDES.get(name, SIDE)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = random_network(name, side, images)
    expected = raw_outputs(model, images)
    network = capture(model, (3, side, side), prove=False)  # what follows proves it
    inventory = take_inventory(network, (3, side, side))
    given = list(model.parameters())
    assert sum(info.params for info in inventory) == sum(tensor.numel() for tensor in given)
    assert all(info.skip_reason for info in inventory if info.planned and not info.eligible)
    assert all(info.skip_reason for info in inventory if not info.planned and info.kind != "batchnorm")
    plan = plan_for_ratio(inventory, model=name, ratio=2, bits=4)
    validate_plan(plan, inventory)
    assert plan_cost(inventory, plan).size_bytes < 0.5 * original_cost(inventory).size_bytes
    assert swap_exactly(network, inventory) > 10
    found = raw_outputs(network, images)
    assert found
    difference, spread = compare(expected, found)
    assert difference <= TOLERANCE
    # Far below what another image changes, else it would prove nothing.
    assert difference < 1e-3 * spread
