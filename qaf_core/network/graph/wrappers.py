"""Wrappers of a network that change nothing in a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qaf_core.network.graph.inference import example_images, inference
from qaf_core.network.graph.proof import largest_difference

COMPARED_IMAGES = 2
_WRAPPED = ("module", "_orig_mod", "ema_model")
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule", "AveragedModel")  # of PyTorch


def unwrapped(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """The network inside wrappers that change nothing in a prediction: parallel, compiled, averaged.

    A wrapper is what computes, to the last bit, the same as the one network it holds, and has no hooks.
    """
    while True:
        inner = _inner(model)
        if inner is None or not _computes_the_same(model, inner, input_shape):
            return model
        model = inner


def needs_values(model: nn.Module) -> bool:
    """Whether only what a network computes tells if it is a wrapper: it must be built with weights then."""
    inner = _inner(model)
    return inner is not None and (type(model).__name__ not in _WRAPPERS or needs_values(inner))


def _inner(model: nn.Module) -> nn.Module | None:
    """The network that a wrapper of this form holds."""
    children = dict(model.named_children())
    hooks = model._forward_hooks or model._forward_pre_hooks
    return None if hooks else next((children[name] for name in _WRAPPED if name in children), None)


def _computes_the_same(model: nn.Module, inner: nn.Module, input_shape: Sequence[int]) -> bool:
    if type(model).__name__ in _WRAPPERS:
        return True
    if any(tensor.is_meta for tensor in model.parameters()):
        return False
    try:
        images = torch.randn(COMPARED_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0)).to(
            example_images(model, input_shape, 1)
        )
        with inference(model):
            return largest_difference(model(images.clone()), inner(images.clone())) == 0.0
    except Exception:  # the user's code may raise anything: it is met again where it is captured
        return False
