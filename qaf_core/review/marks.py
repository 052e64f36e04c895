"""What the colours of masks and boxes drawn on images mean, in words."""

from __future__ import annotations

from qaf_core.pipeline.marks import COLOURS, INVENTED, MISSED, RIGHT
from qaf_core.text.said import Translate


def mark_legend(_: Translate) -> list[tuple[str, str]]:
    """Colour and meaning."""
    return [
        (COLOURS[RIGHT], _("right (plain)")),
        (COLOURS[MISSED], _("missed (hatched or dashed)")),
        (COLOURS[INVENTED], _("invented (dotted or crossed)")),
    ]
