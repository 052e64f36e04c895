"""Running a network as in a prediction."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def example_images(network: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    """Empty images of the network's type, on its device."""
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(count, *input_shape, device=first.device, dtype=first.dtype)


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
