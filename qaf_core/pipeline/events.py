"""What a running compression tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EVENT_KINDS = ("stage", "layer_started", "iteration", "layer_finished", "finetune", "evaluated")

# A command whose environment has this variable tells how far it is, in lines on stderr that begin like this.
PROGRESS_VARIABLE = "QAF_PROGRESS"
PROGRESS_MARK = "progress: "


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """One thing that happened.

    Attributes:
        kind: One of ``EVENT_KINDS``.
        layer: The layer it concerns, or None.
        data: Plain numbers and strings, ready for JSON.
        elapsed_seconds: Since the run began.
    """

    kind: str
    layer: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    elapsed_seconds: float = 0.0
