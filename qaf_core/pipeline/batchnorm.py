"""BatchNorm statistics of a compressed network, estimated again or kept as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qaf_core.network.layers import FactorizedLayer


def choose_batchnorm(
    original: nn.Module, compressed: nn.Module, batches: Sequence[Tensor], choice: str
) -> nn.Module:
    """The compressed network with its BatchNorm statistics as chosen.

    Args:
        original: The network whose outputs count as right.
        compressed: The network to be corrected; not changed.
        batches: Calibration images.
        choice: ``keep``, ``reestimate`` or ``better``: whichever comes closer to the original's outputs.
    """
    if choice == "keep":
        return compressed
    trial = with_batchnorm_reestimated(compressed, batches)
    if choice == "reestimate":
        return trial
    closer = divergence(original, trial, batches) < divergence(original, compressed, batches)
    return trial if closer else compressed


@torch.no_grad()
def with_batchnorm_reestimated(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """A copy whose BatchNorm statistics are those of the batches; a batch of one image has none."""
    trial = copy.deepcopy(model).eval()
    batches = [batch for batch in batches if len(batch) > 1]
    if not batches:
        return trial
    for norm in trial.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    for batch in batches:
        trial(batch)
    return trial.eval()


@torch.inference_mode()
def divergence(original: nn.Module, model: nn.Module, batches: Sequence[Tensor]) -> float:
    """How far a model's outputs are from the original's, summed over the images.

    Of class scores (of images or pixels; torchvision's segmentation networks put them out as ``out``) the
    Kullback-Leibler divergence. Other outputs, such as a detector's boxes, cannot be set against each other
    number by number: then the relative squared error of the exchanged layers' outputs.
    """
    total = 0.0
    for batch in batches:
        wanted, found = _class_scores(original(batch)), _class_scores(model(batch))
        if wanted is None or found is None:
            return sum(_layer_errors(original, model, part) for part in batches)
        wanted, found = wanted.log_softmax(dim=1), found.log_softmax(dim=1)
        total += float((wanted.exp() * (wanted - found)).sum())
    return total


def _class_scores(output: Any) -> Tensor | None:
    """The class scores among a network's outputs, the classes in dimension 1."""
    scores = output.get("out") if isinstance(output, dict) else output
    return scores if isinstance(scores, Tensor) and scores.ndim >= 2 else None


def _layer_errors(original: nn.Module, model: nn.Module, batch: Tensor) -> float:
    """Relative squared errors of the exchanged layers' outputs for one batch, added up."""
    names = [name for name, module in model.named_modules() if isinstance(module, FactorizedLayer)]
    wanted, found = _outputs(original, names, batch), _outputs(model, names, batch)
    return sum(
        float((found[name] - wanted[name]).square().sum() / wanted[name].square().sum().clamp_min(1e-30))
        for name in names
        # Behind a choice the two networks may put out different numbers of rows.
        if name in wanted and name in found and wanted[name].shape == found[name].shape
    )


def _outputs(model: nn.Module, names: Sequence[str], batch: Tensor) -> dict[str, Tensor]:
    """What the named layers put out for one batch, at their last call."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: kept.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return kept
