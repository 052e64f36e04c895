"""The original network's predictions, kept between runs: they depend on weights and images only."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qaf_core.files import write_file

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource
    from qaf_core.pipeline.tasks import Arrays

# Raised whenever the way images reach the network or predictions are read changes: older ones are not used.
_FORMAT = "3"


def baseline_path(workspace: Path, model: nn.Module, source: ModelSource, images: ImageSet) -> Path:
    """Where the predictions of ``model`` on ``images`` are kept: a name made from the content of both."""
    told = f"{_FORMAT} {source.task} {source.architecture} {source.preprocessing}"
    if source.output is not None:
        told += f" {source.output}"
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    digest.update(str(images.images.shape).encode())
    digest.update(b"".join(images.digests()))
    return workspace / "cache" / "baseline" / f"{digest.hexdigest()[:32]}.npz"


def read_predictions(path: Path) -> Arrays | None:
    """The predictions kept at ``path``; None if there are none, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write_predictions(path: Path, predictions: Arrays) -> None:
    """Keep ``predictions`` at ``path``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **predictions)
    write_file(path, buffer.getvalue())
