"""BatchNorm statistics of a compressed network, estimated again or kept as they were."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qaf_core.network.graph.network import norms_in
from qaf_core.pipeline.divergence import divergence


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
    for norm in norms_in(trial).values():
        norm.estimate_anew()
    for batch in batches:
        trial(batch)
    return trial.eval()
