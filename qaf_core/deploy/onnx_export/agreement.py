"""Whether an exported network says what the evaluated one says, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from qaf_core.deploy.onnx_export.report import Agreement
from qaf_core.deploy.onnx_export.skeleton import named_outputs
from qaf_core.deploy.onnx_export.writer import Array
from qaf_core.deploy.runtime.measure_kit import CLASS_AXES
from qaf_core.errors import DataError


@torch.inference_mode()
def compare(reference: nn.Module, run: Callable[[Array], Array], batches: Iterable[Tensor]) -> Agreement:
    """Compare a network with another way to compute it.

    Args:
        reference: Maps ``(B, C, H, W)`` to class scores; of several outputs the first is compared.
        run: The same for arrays.
        batches: Normalised images.

    Raises:
        DataError: If there are no images.
    """
    same = total = images = identical = 0
    largest, low, high = 0.0, np.inf, -np.inf
    for batch in batches:
        expected = next(iter(named_outputs(reference(batch)).values())).float().cpu().numpy()
        actual = run(np.ascontiguousarray(batch.float().cpu().numpy()))
        agreeing = (
            (top_classes(expected) == top_classes(actual)) & _are_finite(expected) & _are_finite(actual)
        )
        same, total, images = same + int(agreeing.sum()), total + agreeing.size, images + len(batch)
        apart = len(batch) if expected.ndim and len(expected) == len(batch) else 1  # else one for all images
        differences = np.abs(expected - actual).reshape(apart, -1).max(axis=1)
        identical += int((differences == 0).sum())
        # A NaN must show: it compares as neither larger nor smaller.
        largest = float(np.maximum(largest, differences.max()))
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    if images == 0:
        raise DataError("no images to compare the exported network on", got=0, expected="at least one")
    return Agreement(
        share=same / total,
        images=images,
        identical=identical / images,
        largest_difference=largest,
        output_range=high - low,
    )


def _are_finite(outputs: Array) -> Array:
    """Where all the numbers that ``top_classes`` looks at are finite."""
    finite: Array = np.isfinite(outputs)
    axis = CLASS_AXES.get(outputs.ndim)
    result: Array = finite.reshape(-1) if axis is None else np.all(finite, axis=axis)
    return result


def top_classes(outputs: Array) -> Array:
    """The class on top, by image, place or pixel; of other outputs the numbers, to three digits."""
    if outputs.ndim in CLASS_AXES:
        classes: Array = outputs.argmax(axis=CLASS_AXES[outputs.ndim])
        return classes
    rounded: Array = np.array([f"{value:.3g}" for value in outputs.reshape(-1).tolist()])
    return rounded
