"""The original network's predictions, kept between runs: they depend on weights and images only."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qaf_core.files import ContentCache, digest_of

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource
    from qaf_core.pipeline.tasks import Arrays

# Raised whenever the way images reach the network or predictions are read changes: older ones are not used.
_FORMAT = "4"


def predictions_key(model: nn.Module, source: ModelSource, images: ImageSet) -> str:
    """The digest of all that the predictions of ``model`` on ``images`` depend on."""
    parts = [_FORMAT, source.task, source.architecture, str(source.preprocessing), str(source.output)]
    tensors = [
        part
        for name, tensor in sorted(model.state_dict().items())
        for part in ([name, *tensor.shape], np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    ]
    return digest_of(parts, *tensors, images.images.shape, b"".join(images.digests()))


def find_predictions(
    workspace: Path, model: nn.Module, source: ModelSource, images: ImageSet, make: Callable[[], Arrays]
) -> Arrays:
    """The predictions of ``model`` on ``images`` kept in a workspace; where there are none, made and kept."""
    cache = ContentCache(workspace / "cache" / "baseline", ".npz")
    key = predictions_key(model, source, images)
    predictions = cache.read(key, _read_arrays)
    if predictions is None:
        predictions = make()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **predictions)
        cache.keep(key, buffer.getvalue())
    return predictions


def _read_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
