"""What a run comes to, in numbers: records that are stored and shown, free of heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.data.images.image_set import SkippedImage
from qaf_core.factorization.structures import Rank
from qaf_core.network.plan.types import Bits
from qaf_core.records import Record


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """One metric of one network on one set of images; all values are fractions.

    Attributes:
        metric: Short name: ``top1``, ``miou``, ``map50``, or what a task of the user's own calls it.
        value: The metric; higher is better.
        n: Number of images.
        ci95: Interval of ``value``, 95 %.
        per_class: The metric by class name, for the classes that occur.
        agreement: How far the predictions are the original's, 0 to 1, or None.
        extra: Further metrics by short name, such as ``top5``.
    """

    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    per_class: Mapping[str, float] = field(default_factory=dict)
    agreement: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """The value, its interval and the agreement, for people."""
        low, high = self.ci95
        text = f"{self.metric} {self.value:.4f} ({low:.4f} to {high:.4f}) on {self.n} images"
        return text if self.agreement is None else f"{text}, agreement with the original {self.agreement:.4f}"


@dataclass(frozen=True, kw_only=True)
class LayerRow(Record):
    """What became of one planned layer; errors are relative Frobenius norms of its weight.

    ``output_error`` is the relative squared error of its outputs on held-back calibration images; ``status``
    says why the solve stopped.
    """

    name: str
    structure: str = ""
    rank: Rank = None
    bits: Bits = None
    relative_error: float | None = None
    float_relative_error: float | None = None
    status: str = ""
    iterations: int | None = None
    seconds: float | None = None
    output_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImagesUsed(Record):
    """The images of a run, or of a check: how they were told apart, and which could not be read.

    Attributes:
        evaluation, calibration: What they are called; empty where there were none.
        split: How the one were kept apart from the other.
        warnings: What makes the measurement uncertain, one sentence each.
        skipped: The first of those left out.
        skipped_count: How many were left out.
        said: The templates of these sentences, to tell them in other languages.
    """

    evaluation: str = ""
    calibration: str = ""
    split: str = ""
    warnings: tuple[str, ...] = ()
    skipped: tuple[SkippedImage, ...] = ()
    skipped_count: int = 0
    said: Mapping[str, Any] = field(default_factory=dict)
