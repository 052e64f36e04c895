"""What fine-tuning is told: a file without torch, for screens and commands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qaf_core.errors import PlanError
from qaf_core.text.said import either

SCALES, CODES = "scales", "codes"
TRAINED = (SCALES, CODES)
# For the solves, and as much for fits, where a stop sets all codes that are off their grids.
SETTING_AT_STOP_SECONDS = 20.0
MOST_EPOCHS = 1000  # where a time limit is to end it


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How a network is fine-tuned.

    Attributes:
        trains: ``scales`` (scales, biases, normalisations; codes stay) or ``codes`` (these too).
        epochs: Passes over the images.
        time_limit_seconds: The learning rate falls so that it ends in this time; None for no limit.
        seed: Of the order of the images and of how they are changed.
        flips, crops: Mirror half of the images; move each by up to an eighth of its side. None: where the
            original takes an image so changed for the same.

    Raises:
        PlanError: If a field is out of range.
    """

    trains: str = CODES
    epochs: int = 40
    time_limit_seconds: float | None = 240.0
    seed: int = 0
    flips: bool | None = None
    crops: bool | None = None

    def __post_init__(self) -> None:
        if self.trains not in TRAINED:
            raise PlanError("unknown choice of what to train", got=self.trains, expected=either(TRAINED))
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise PlanError("epochs out of range", got=self.epochs, expected="a whole number, at least 1")
        limit = self.time_limit_seconds
        if limit is not None and not (0.0 < limit < math.inf):
            raise PlanError("time limit out of range", got=limit, expected="seconds, above 0")
