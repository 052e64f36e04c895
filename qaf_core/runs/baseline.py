"""The original network's predictions, kept between runs: they depend on weights and images only."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.runs.workspace import write_file

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.datasets import ImageSet
    from qaf_core.data.models import ModelSource

# Raised whenever the way images reach the network changes: older predictions are then not used.
_FORMAT = "1"


def baseline_path(workspace: Path, model: nn.Module, source: ModelSource, images: ImageSet) -> Path:
    """Where the predictions of ``model`` on ``images`` are kept: a name made from the content of both."""
    digest = hashlib.sha256(f"{_FORMAT} {source.architecture} {source.mean} {source.std}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    digest.update(str(images.images.shape).encode())
    digest.update(np.ascontiguousarray(images.images).data)
    return workspace / "cache" / "baseline" / f"{digest.hexdigest()[:32]}.npz"


def read_predictions(path: Path, count: int) -> NDArray[Any] | None:
    """The predictions kept at ``path``; None if there are none, or not for ``count`` images."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            predictions: NDArray[Any] = archive["predictions"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return predictions if len(predictions) == count else None


def write_predictions(path: Path, predictions: NDArray[Any]) -> None:
    """Keep ``predictions`` at ``path``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=predictions)
    write_file(path, buffer.getvalue())
