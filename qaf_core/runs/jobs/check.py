"""The check of the original before a run: carried out once for the same weights, images and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.errors import DataError
from qaf_core.files import ContentCache, digest_of
from qaf_core.pipeline.check.classifier import check_original
from qaf_core.runs.jobs.baseline import predictions_key

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
    targets = [
        part
        for name, values in (("labels", images.labels), *sorted(images.targets.items()))
        for part in ([name, str(values.dtype), *values.shape], values.tobytes())
    ]
    asked = [_FORMAT, source.classes, source.accuracy, macs, predictions_key(model, source, images)]
    cache, key = ContentCache(workspace / "cache" / "checks"), digest_of(asked, *targets)
    found: dict[str, Any] | None = cache.read(key)
    if found is None:
        found = check_original(model, source, images, macs=macs, on_batch=on_batch).to_dict()
        cache.keep(key, found)
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
