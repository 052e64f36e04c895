"""How the command line prints: JSON objects, tables, costs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qaf_core.review.units import count_text, percent_text, size_text, times_text, with_prefix

if TYPE_CHECKING:
    from qaf_core.pipeline.events import RunEvent

_SKIPPED_NAMED = 3


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object; numbers JSON does not know (NaN, infinity) become null."""
    print(json.dumps(_finite(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_stage(event: RunEvent) -> None:
    """A line on stderr for a terminal; a script finds only faults there."""
    if sys.stderr.isatty():
        print(event.data["message"], file=sys.stderr)


def print_prediction(predicted: dict[str, Any]) -> None:
    """Print what is expected of a plan."""
    low, high = predicted["ci95"]
    print(
        f"expected {predicted['metric']} {percent_text(predicted['value'])} "
        f"(95 %: {percent_text(low)} to {percent_text(high)}), learnt from {predicted['learnt_from']}"
    )
    if predicted["worst"]:
        named = ", ".join(f"{row['name']} ({percent_text(row['share'], 0)})" for row in predicted["worst"])
        print(f"most harm is done by {named}")
    if predicted["unknown"]:
        print(f"nothing is known of {', '.join(predicted['unknown'])}: what they harm is not counted")
    if predicted["warning"]:
        print(f"warning: {predicted['warning']}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_images(data: dict[str, Any]) -> None:
    """Print how images were split and which of them are left out, where there is something to tell.

    Args:
        data: As in a run's result: ``split``, ``skipped`` (rows of ``name`` and ``reason``) and
            ``skipped_count``, and ``warnings`` in words; each may be missing.
    """
    for warning in data.get("warnings") or ():
        print(f"warning: {warning}")
    if data.get("split"):
        print(f"images: {data['split']}")
    skipped = data.get("skipped") or []
    count = data.get("skipped_count", len(skipped))
    if count:
        named = [f"{image['name']} ({image['reason']})" for image in skipped[:_SKIPPED_NAMED]]
        more = f" and {count - len(named):,} more" if count > len(named) else ""
        what = "1 image is" if count == 1 else f"{count:,} images are"
        print(f"{what} left out, unreadable: {', '.join(named)}{more}")


def print_costs(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print the original's cost beside the compressed network's."""
    quantities: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("parameters", "params", count_text),
        ("size", "size_bytes", size_text),
        ("operations", "macs", lambda value: with_prefix(value, "MACs")),
        ("bit operations", "bops", lambda value: with_prefix(value, "BOPs")),
    )
    rows = [
        (title, show(before[field]), show(after[field]), times_text(before[field], after[field]))
        for title, field, show in quantities
    ]
    print_table(("", "original", "compressed", "smaller"), rows)
