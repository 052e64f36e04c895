"""The check of the original before a run: carried out once for the same weights, images and labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.errors import DataError
from qaf_core.files import write_file
from qaf_core.pipeline.check.classifier import check_original
from qaf_core.runs.jobs.baseline import baseline_path

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource

# Raised whenever the check may come to another result.
_FORMAT = 2


def needs_check(source: ModelSource, data: str) -> bool:
    """Whether a run is checked: not for the shipped networks on the images they are shipped with."""
    return not (source.shipped and data == "builtin")


def checked(
    workspace: Path,
    model: nn.Module,
    source: ModelSource,
    images: ImageSet,
    *,
    macs: int,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What `check_original` finds, from an earlier check of the same or carried out now.

    Args:
        workspace: Where results are kept.
        model, source: The original.
        images: Labelled images.
        macs: Multiplications for one image.
        on_batch: Called before every batch; may raise to end the check.

    Returns:
        `Plausibility.to_dict`.
    """
    digest = hashlib.sha256(f"{_FORMAT} {source.classes} {source.accuracy} {macs}".encode())
    digest.update(baseline_path(workspace, model, source, images).stem.encode())
    for name, values in (("labels", images.labels), *sorted(images.targets.items())):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    path = workspace / "cache" / "checks" / f"{digest.hexdigest()[:32]}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        pass
    found = check_original(model, source, images, macs=macs, on_batch=on_batch).to_dict()
    write_file(path, json.dumps(found).encode())
    return found


def refuse_serious(found: dict[str, Any]) -> None:
    """Stop a run whose original is not what it should be.

    Raises:
        DataError: With the first serious finding and what to do about it.
    """
    for finding in found["findings"]:
        if finding["serious"]:
            remedy = f"{finding['remedy']} To compress it all the same, pass --no-check"
            raise DataError(finding["sentence"], remedy=remedy)
