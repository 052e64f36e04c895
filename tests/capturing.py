"""What tests of captured networks share: a network in a line, and the proof that its capture computes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qaf_core.factorization.structures import FACTORIZED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.graph.proof import largest_difference
from qaf_core.network.plan.types import LayerPlan
from qaf_core.pipeline.check.equivalence import layers_to_blame

SHAPE = (3, 8, 8)
Forward = Callable[..., Any]


class Net(nn.Module):
    """Layers by name, and what is done with them as a function of the network and its input."""

    def __init__(self, forward: Forward, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, images: Tensor) -> Any:
        return self._forward(self, images)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def conv(inputs: int, outputs: int, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **more})


def settle(model: nn.Module) -> nn.Module:
    """No BatchNorm leaves its input as it is, and no parameter is zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator).to(tensor))
    return model.eval()


def outputs(model: nn.Module, count: int, shape: tuple[int, ...] = SHAPE) -> Any:
    """What a network says of random images."""
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(images)


def assert_captured(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """Equal outputs for batches of any size; exact chains in all places change nothing; each number once."""
    settle(model)
    expected = {count: outputs(model, count, shape) for count in (3, 2, 1)}
    network = capture(model, shape)
    for count, wanted in expected.items():
        assert largest_difference(wanted, outputs(model, count, shape)) == 0.0  # it is left as it was
        torch.testing.assert_close(outputs(network, count, shape), wanted, rtol=1e-4, atol=1e-5)
    inventory = take_inventory(network, shape)
    assert len({row.name for row in inventory}) == len(inventory)
    assert sum(row.params for row in inventory if row.calls) == sum(p.numel() for p in network.parameters())
    for turn in range(3):
        plans = []
        for index, row in enumerate(row for row in inventory if row.planned and row.structures != ("keep",)):
            forms = [form for form in row.structures if form in FACTORIZED] or ["dense"]
            form = forms[(index + turn) % len(forms)]
            plans.append(LayerPlan(name=row.name, structure=form, rank=_some_rank(form), bits=32))
        assert plans or all(row.structures in ((), ("keep",)) for row in inventory)
        assert layers_to_blame(network, inventory, plans, None, shape) == {}
    return network


def _some_rank(form: str) -> Any:
    return {"tucker2": (1, 1), "dense": None}.get(form, 1)
