"""How far a compressed network's outputs are from the original's, and from labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.data.models.outputs import scores_in
from qaf_core.errors import DataError
from qaf_core.network.graph.network import first_tensors
from qaf_core.network.modules.quantized import FactorizedLayer

SMALLEST = 1e-30
LAYER_WEIGHT = 300.0  # against the class scores: from few images these are learnt by heart


@torch.inference_mode()
def divergence(original: nn.Module, model: nn.Module, batches: Sequence[Tensor]) -> float:
    """The sum of :func:`batch_divergence` over all images of the batches."""
    return sum(float(batch_divergence(original, model, batch)) * len(batch) for batch in batches)


def batch_divergence(original: nn.Module, model: nn.Module, batch: Tensor) -> Tensor:
    """How far a model's outputs are from the original's, the mean over a batch.

    Of class scores (of images or pixels; torchvision's segmentation networks put them out as ``out``) the
    Kullback-Leibler divergence. Other outputs, such as a detector's boxes, cannot be set against each other
    number by number: then the relative squared errors of the exchanged layers' outputs, added up.

    Args:
        original: The network whose outputs count as right; no gradient reaches it.
        model: Compared with it; gradients pass where they are on.
        batch: Images ``(B, C, H, W)``.
    """
    with torch.no_grad():
        expected = class_scores(original(batch))
    if expected is not None:
        actual = class_scores(model(batch))
        if actual is not None and actual.shape == expected.shape:
            return _from_scores(expected, actual)
    errors = _layer_errors(original, model, batch)
    return torch.stack(errors).sum() if errors else batch.new_zeros(())


def output_divergence(expected: Any, actual: Any, temperature: float = 1.0) -> float:
    """How far outputs are from those wanted, the mean over images.

    KL of class scores divided by a temperature, or half the relative squared error of other outputs.
    """
    before, after = class_scores(expected), class_scores(actual)
    if before is not None and after is not None and before.shape == after.shape:
        return max(float(_from_scores(before / temperature, after / temperature)), 0.0)
    return 0.5 * squared_error(expected, actual)


def squared_error(targets: Any, answers: Any) -> float:
    """The relative squared errors of all outputs in floating point, added up; NaN where there are none."""
    pairs = [
        (a, b)
        for a, b in zip(first_tensors(targets), first_tensors(answers), strict=False)
        if a.is_floating_point() and a.shape == b.shape and a.numel()
    ]
    if not pairs:
        return math.nan
    return sum(float((b - a).square().sum() / a.square().sum().clamp_min(SMALLEST)) for a, b in pairs)


def training_loss(
    original: nn.Module, model: nn.Module, batch: Tensor, labels: Tensor | None = None
) -> Tensor:
    """What a network that learns from its original makes small, the mean over a batch.

    The divergence of class scores, where there are any, and ``LAYER_WEIGHT`` times the mean relative squared
    error of the exchanged layers' outputs: from few images the layers between tell far more than the scores.
    With labels their cross-entropy is added.

    Args:
        original: With BatchNorm folded as in ``model``; no gradient reaches it.
        model, batch: As in :func:`batch_divergence`.
        labels: Classes of the images ``(B,)``, or None.

    Raises:
        DataError: If there are labels and no class scores.
    """
    names = _exchanged(model)
    with torch.no_grad(), _outputs_of(original, names) as expected:
        expected_scores = class_scores(original(batch))
    with _outputs_of(model, names) as actual:
        actual_scores = class_scores(model(batch))
    errors = _relative_errors(names, expected, actual)
    loss = LAYER_WEIGHT * torch.stack(errors).mean() if errors else batch.new_zeros(())
    if labels is not None:
        loss = loss + cross_entropy(actual_scores, labels)
    if expected_scores is None or actual_scores is None or expected_scores.shape != actual_scores.shape:
        return loss
    return loss + _from_scores(expected_scores, actual_scores)


def cross_entropy(scores: Tensor | None, labels: Tensor) -> Tensor:
    """Of class scores ``(B, classes)``, the mean over a batch.

    Raises:
        DataError: If there are no scores.
    """
    if scores is None:
        raise DataError("labels need a network that puts out class scores", remedy="learn without labels")
    return functional.cross_entropy(scores, labels.to(scores.device))


def class_scores(output: Any) -> Tensor | None:
    """The class scores among a network's outputs, the classes in dimension 1; None where there are none."""
    return scores_in(output)


def _from_scores(expected: Tensor, actual: Tensor) -> Tensor:
    """Kullback-Leibler divergence, summed over classes and positions, the mean over images."""
    expected, actual = expected.log_softmax(dim=1), actual.log_softmax(dim=1)
    return (expected.exp() * (expected - actual)).sum() / len(expected)


def _exchanged(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, FactorizedLayer)]


def _layer_errors(original: nn.Module, model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Relative squared errors of the exchanged layers' outputs."""
    names = _exchanged(model)
    with torch.no_grad(), _outputs_of(original, names) as expected:
        original(batch)
    with _outputs_of(model, names) as actual:
        model(batch)
    return _relative_errors(names, expected, actual)


def _relative_errors(
    names: Sequence[str], expected: Mapping[str, Sequence[Tensor]], actual: Mapping[str, Sequence[Tensor]]
) -> list[Tensor]:
    errors = []
    for name in names:
        pairs = list(zip(expected[name], actual[name], strict=False))
        # Behind a choice the two networks may put out different numbers of rows.
        if pairs and len(expected[name]) == len(actual[name]) and all(a.shape == b.shape for a, b in pairs):
            square = torch.stack([(b - a).square().sum() for a, b in pairs]).sum()
            size = torch.stack([a.square().sum() for a, _ in pairs]).sum()
            errors.append(square / size.clamp_min(SMALLEST))
    return errors


@contextmanager
def _outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the named layers put out while the ``with`` block lasts, call by call."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda *call, calls=outputs[name]: calls.append(call[-1])
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
