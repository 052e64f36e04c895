"""Model sources that are fed otherwise than they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qaf_core.data.models.source import ModelSource


def fed(source: ModelSource, **steps: Any) -> ModelSource:
    """The source with other fields of its preprocessing."""
    return replace(source, preprocessing=replace(source.preprocessing, **steps))
