"""Every kind of layer in torchvision's networks, listed and exchanged exactly; prints one JSON object.

python benchmarks/exact_chains.py [--networks resnet50,vit_b_16] [--side 64]

Each network is listed at its full input size (or at --side), its layers that can be factorized are exchanged
for chains whose factors are constructed, not fitted, and the outputs compared. The weights are random: what
is proved is geometry, order, groups, shared layers and heads. ``difference`` is the largest difference of any
output over the largest output; ``spread`` the same between two images, far above it. ``inspect_seconds`` is
what ``qaf inspect`` takes once torch and torchvision are imported.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torchvision import models
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.factorization.factors import exact_factors
from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import swap_layer
from qaf_core.network.plan.cost import original_cost, plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.validation import validate_plan

NETWORKS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg16_bn"),
    *("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "inception_v3"),
    *("shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    *("swin_t", "swin_v2_t", "deeplabv3_resnet50", "fcn_resnet50", "ssdlite320_mobilenet_v3_large"),
    "fasterrcnn_resnet50_fpn",
)


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
    return {"weights_backbone": None} if name.startswith("ssdlite") else {}


@torch.inference_mode()
def raw_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors a network puts out; of a detector those of its heads, before boxes are chosen by score."""
    if not isinstance(model, GeneralizedRCNN | SSD):
        return tree_leaves(model(images))
    outputs: list[Tensor] = []
    head = model.head if isinstance(model, SSD) else model.rpn.head
    handle = head.register_forward_hook(lambda _module, _inputs, output: outputs.extend(tree_leaves(output)))
    model(images)
    handle.remove()
    if isinstance(model, GeneralizedRCNN):
        pooled = torch.randn(4, 256, 7, 7, generator=torch.Generator().manual_seed(1))
        outputs += tree_leaves(model.roi_heads.box_predictor(model.roi_heads.box_head(pooled)))
    return outputs


def swap_exactly(model: nn.Module, inventory: Sequence[LayerInfo]) -> int:
    """Put an exact chain in place of every layer that can be factorized, of each form in turn; how many."""
    eligible = [info for info in inventory if info.eligible]
    for index, info in enumerate(eligible):
        layer = layer_of(model, info.name)
        forms = [structure for structure in info.structures if structure in FACTORIZED]
        factors = exact_factors(layer.rows, forms[index % len(forms)])
        swap_layer(model, info.name, build_chain(layer, factors))
    return len(eligible)


def prove(name: str, side: int) -> dict[str, Any]:
    """List a network, plan and cost it, exchange its layers and compare the outputs."""
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = random_network(name, side, images)
    expected = raw_outputs(model, images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = capture(model, (3, side, side))
    inventory = take_inventory(model, (3, side, side))
    plan = plan_for_ratio(inventory, model=name, ratio=2, bits=4)
    validate_plan(plan, inventory)
    after, before = plan_cost(inventory, plan), original_cost(inventory)
    rows = {
        "side": side,
        "rows": len(inventory),
        "parameters": sum(info.params for info in inventory),
        "parameters_of_the_network": parameters,
        "macs": before.macs,
        "size_fraction": after.size_bytes / before.size_bytes,
        "factorizable": swap_exactly(model, inventory),
        "kept": Counter(_reason(info) for info in inventory if info.planned and not info.eligible),
        "kept_of_other_kinds": Counter(
            _reason(info) for info in inventory if not info.planned and info.kind != "batchnorm"
        ),
    }
    return {**rows, **_compare(expected, raw_outputs(model, images))}


def _reason(info: LayerInfo) -> str:
    return info.skip_reason or "no reason given"


def _compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> dict[str, Any]:
    difference, spread = 0.0, float("inf")
    for target, output in zip(expected, actual, strict=True):
        if output.shape != target.shape:
            raise RuntimeError(f"outputs of shape {tuple(output.shape)} instead of {tuple(target.shape)}")
        size = float(target.abs().max())
        difference = max(difference, float((output - target).abs().max()) / size)
        spread = min(spread, float((target - target.mean(dim=0)).abs().max()) / size)
    return {"outputs": len(actual), "difference": difference, "spread": spread}


def main() -> None:
    """Measure the networks named on the command line, all by default."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--networks", default=",".join(NETWORKS))
    arguments.add_argument("--side", type=int)
    chosen = arguments.parse_args()
    results = {}
    load_inventory(find_model("torchvision/resnet18"))  # what torch sets up on its first pass
    for name in chosen.networks.split(","):
        source = find_model(f"torchvision/{name}")
        began = time.perf_counter()
        load_inventory(source)
        seconds = time.perf_counter() - began
        results[name] = {
            "inspect_seconds": round(seconds, 3),
            **prove(name, chosen.side or source.input_shape[1]),
        }
    worst = max(row["difference"] for row in results.values())
    print(json.dumps({"networks": results, "worst_difference": worst}, indent=1))


if __name__ == "__main__":
    main()
