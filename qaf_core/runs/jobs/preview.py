"""A run's preview: some evaluation images with what both networks say, as JSON beside the packed file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.files import read_json, write_json
from qaf_core.pipeline.marks import Found
from qaf_core.records import from_plain

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.data.load import ImageSet
    from qaf_core.data.models.source import ModelSource

PREVIEW_NAME = "preview.json"
_ANSWERS = {"predicted", "right", "confidence", "top", "task", "found"}


def write_preview(
    folder: Path, original: nn.Module, compressed: nn.Module, source: ModelSource, images: ImageSet
) -> None:
    """Keep the rows of `preview_predictions` of the original, with the compressed network's word beside it.

    Args:
        folder: The run's.
        original, compressed: Networks of one task.
        source: How they are fed.
        images: Labelled images.
    """
    from qaf_core.pipeline.preview import preview_predictions

    rows = preview_predictions(original, source, images)
    after = preview_predictions(compressed, source, images)
    for row, other in zip(rows, after, strict=True):
        row["compressed"] = {key: other[key] for key in _ANSWERS & other.keys()}
        if "found" in other:  # its masks or boxes are drawn on a picture of their own
            row["compressed"]["image"] = other["image"]
    if rows:
        write_json(folder / PREVIEW_NAME, rows)


def read_preview(folder: Path) -> list[dict[str, Any]]:
    """The rows kept in a run's folder; none where there is no preview or it is damaged."""
    rows = read_json(folder / PREVIEW_NAME)
    try:
        from_plain(_Preview, {"rows": rows})
    except (TypeError, ValueError):
        return []
    return list(rows)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    predicted: str | None = None
    right: bool | None = None
    confidence: float | None = None
    task: str | None = None
    found: Found | None = None


@dataclass(frozen=True, kw_only=True)
class _Compressed(_Answer):
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Row(_Answer):
    image: str
    label: str
    compressed: _Compressed | None = None


@dataclass(frozen=True, kw_only=True)
class _Preview:
    rows: tuple[_Row, ...]
