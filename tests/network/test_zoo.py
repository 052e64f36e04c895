"""Networks of torchvision: every layer is listed, and those that can be factorized are exchanged exactly.

The chains hold factors that are constructed, not fitted, so the exchanged network must put out what the
original did. ``benchmarks/zoo.py`` does the same at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small_networks import SIDE as SMALL_SIDE
from small_networks import (
    convnext,
    densenet,
    detector,
    mobilenet,
    second_swin,
    segmentation,
    swin,
    vision_transformer,
)
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
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.validation import validate_plan
from qaf_core.pipeline.check.equivalence import exact_chain

# One network of each kind of block, and how many of its layers are exchanged.
NETWORKS: dict[Any, int] = {
    "resnet18": 21, "shufflenet_v2_x0_5": 38,
    mobilenet: 15, densenet: 11, convnext: 7, vision_transformer: 14, swin: 15, second_swin: 10,
    segmentation: 7, detector: 14,
}  # fmt: skip
TOLERANCE = 1e-4
SIDE = 64


def random_network(network: str | Callable[[], nn.Module], images: Tensor) -> nn.Module:
    """The network with random weights, none of them constant, and activations of about unit size.

    BatchNorm only scales: with the mean of two images taken away too, little but noise would be left.
    """
    torch.manual_seed(0)
    model = models.get_model(network, weights=None) if isinstance(network, str) else network()
    norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
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
    if not isinstance(model, GeneralizedRCNN):
        return tree_leaves(model(images))
    found: list[Tensor] = []
    handle = model.rpn.head.register_forward_hook(
        lambda _module, _inputs, output: found.extend(tree_leaves(output))
    )
    model(images)
    handle.remove()
    pooled = torch.randn(4, 8, 7, 7, generator=torch.Generator().manual_seed(1))
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


@pytest.mark.parametrize(
    ("build", "layers"), NETWORKS.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_exact_chains_in_all_places_leave_the_outputs_as_they_were(build: Any, layers: int) -> None:
    side = SIDE if isinstance(build, str) else SMALL_SIDE
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = random_network(build, images)
    expected = raw_outputs(model, images)
    network = capture(model, (3, side, side), prove=False)  # what follows proves it
    inventory = take_inventory(network, (3, side, side))
    given = list(model.parameters())
    assert sum(info.params for info in inventory) == sum(tensor.numel() for tensor in given)
    assert all(info.skip_reason for info in inventory if info.planned and not info.eligible)
    assert all(info.skip_reason for info in inventory if not info.planned and info.kind != "batchnorm")
    plan = plan_for_ratio(inventory, model="m", ratio=2, bits=4)
    validate_plan(plan, inventory)
    assert plan_cost(inventory, plan).size_bytes < 0.5 * original_cost(inventory).size_bytes
    assert swap_exactly(network, inventory) == layers
    found = raw_outputs(network, images)
    assert found
    difference, spread = compare(expected, found)
    assert difference <= TOLERANCE
    # Far below what another image changes, else it would prove nothing.
    assert difference < 1e-3 * spread
