"""What an export made and what was checked about it; kept beside the run. Free of heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from qaf_core.errors import ModelError
from qaf_core.files import read_json, write_json
from qaf_core.records import Record, from_plain
from qaf_core.text.said import Said, Translate, retell, said_of, say, templates_of

PACKED, ONNX = "packed", "onnx"
FORMATS = (PACKED, ONNX)


class Precision(StrEnum):
    """The kinds of ONNX files."""

    INT8 = "int8"
    FAST = "int8-fast"
    FP32 = "fp32"

    @property
    def difference(self) -> str:
        """How its answers relate to the evaluated network's."""
        return _DIFFERENCES[self]


_DIFFERENCES = {
    Precision.INT8: "exact: the evaluated network's outputs; additions between layers in floating point",
    Precision.FAST: "fastest: the same codes, but outputs of layers and additions are rounded to 8 bits too,"
    " so that some answers differ from the evaluated network's",
    Precision.FP32: "the factors in floating point, activations not rounded",
}
REPORT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well two networks agree.

    Attributes:
        share: Of images (or, for outputs by pixel, of pixels) with the same class on top.
        images: How many were compared.
        identical: Share of images whose outputs are the same to the last bit.
        largest_difference: Between two outputs.
        output_range: From the smallest to the largest output of the reference, to compare it with.
    """

    share: float
    images: int
    identical: float
    largest_difference: float
    output_range: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried out on the exported file.

    Attributes:
        name: What was checked, for people.
        passed: Whether it holds.
        detail: What was found, in a sentence.
        said: The templates of name and detail, to tell them in other languages.
    """

    name: str
    passed: bool
    detail: str
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: Said, passed: bool, detail: Said) -> Check:
        """One told by templates."""
        return cls(name=name.text(), passed=passed, detail=detail.text(), said=templates_of(name, detail))

    def told(self, _: Translate) -> str:
        """Name and detail in the language of ``_``."""
        return f"{retell(self.name, self.said, _)}: {retell(self.detail, self.said, _)}"


@dataclass(frozen=True, kw_only=True)
class ExportReport(Record):
    """What an export made and what was checked about it.

    Attributes:
        format: ``onnx`` or ``packed``.
        path: The file; it was only written if all checks passed, or by force.
        written: Whether it was written.
        precision: See ``Precision``; None for ``packed``.
        target: The processor its integers are for, ``this`` or ``any``; None without integers.
        size_bytes: Of the file.
        checks: All that was checked; see ``passed``.
        agreement: Against the evaluated network on its evaluation images; None if there were none. For
            ``fp32`` the evaluated network is taken without rounding its activations.
        integer_operators: By kind, as ONNX Runtime runs the file.
        float_operators: Convolutions and matrix products left in floating point, by kind.
        weights_stored_as: How many weights are kept as ``int4``, ``uint4``, ``int8``, ``uint8`` or
            ``float32``.
        any_batch: Whether any number of images goes in at once, or just one.
        opset: ONNX's operator set.
        seconds: The export took.
    """

    format: str
    path: str
    written: bool
    precision: Precision | None
    target: str | None = None
    size_bytes: int
    checks: tuple[Check, ...]
    agreement: Agreement | None
    integer_operators: Mapping[str, int]
    float_operators: Mapping[str, int]
    weights_stored_as: Mapping[str, int]
    any_batch: bool
    opset: int | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with ``passed``."""
        return {**super().to_dict(), "passed": self.passed}


class ExportRejected(ModelError):
    """An export that failed its checks and was not written.

    Attributes:
        report: What was found.
    """

    def __init__(self, report: ExportReport) -> None:
        failed = next(check for check in report.checks if not check.passed)
        super().__init__(
            say("the exported network failed a check: {check}", check=said_of(failed.name, failed.said)),
            got=said_of(failed.detail, failed.said),
            remedy="nothing was written; --force (in Python force=True) writes it all the same",
        )
        self.report = report


def keep_report(folder: Path, report: ExportReport) -> Path:
    """Write a report into a run's folder, in place of an earlier one of the same kind; the file written.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    kind = report.format if report.precision is None else f"{report.format}-{report.precision}"
    path = folder / f"export-{kind}.json"
    content = {"version": REPORT_VERSION, **report.to_dict()}
    write_json(path, content, for_people=True)
    return path


def read_report(path: Path) -> ExportReport | None:
    """A report as ``to_dict`` gave it, written as JSON; None where there is none, or it is damaged."""
    try:
        return from_plain(ExportReport, read_json(path))
    except (TypeError, ValueError):
        return None
