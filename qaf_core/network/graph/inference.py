"""Running a network as in a prediction."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError
from qaf_core.text.said import say


def example_images(network: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    """Empty images of the network's type, on its device."""
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(count, *input_shape, device=first.device, dtype=first.dtype)


def as_network(network: object) -> nn.Module:
    """The network.

    Raises:
        ModelError: If it is none, or holds no numbers.
    """
    if not isinstance(network, nn.Module):
        raise ModelError("this is no network", got=type(network).__name__, expected="an nn.Module")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise ModelError(
            "the network's weights are not loaded",
            got=say("tensors on the meta device"),
            remedy="load them first",
        )
    return network


def on_cpu(network: object) -> nn.Module:
    """The network, or a copy on the CPU of one that is on another device.

    Raises:
        ModelError: As :func:`as_network`.
    """
    network = as_network(network)
    elsewhere = any(tensor.device.type != "cpu" for tensor in (*network.parameters(), *network.buffers()))
    return copy.deepcopy(network).cpu() if elsewhere else network


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no fused attention; undone afterwards."""
    training = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the network warns of is told when it runs in earnest
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, was in training.items():
            module.training = was
