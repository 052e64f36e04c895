"""What the metrics of the tasks are called, and what they say, in people's words."""

from __future__ import annotations

from qaf_core.text.glossary import meaning
from qaf_core.text.said import Translate


def metric_label(name: str | None, _: Translate = str) -> str:
    """The name people see for a metric's short name, such as ``miou``; one of a user's own stays as it is.

    Args:
        name: ``Evaluation.metric`` or a key of its ``extra``; None where nothing was measured.
        _: Translation of texts.
    """
    labels = {
        "top1": _("Accuracy"),
        "top5": _("Right among five"),
        "miou": _("Mean IoU"),
        "pixel_accuracy": _("Pixels right"),
        "map50": _("mAP at 0.5"),
        "map": _("mAP, 0.5 to 0.95"),
    }
    return labels.get(name or "top1", name or "")


def metric_help(name: str | None, _: Translate = str) -> str:
    """One sentence on what a metric counts; empty for one of a user's own."""
    terms = {"top1": "accuracy", "miou": "miou", "map50": "map50"}
    term = terms.get(name or "top1")
    return meaning(term, _) if term else ""
