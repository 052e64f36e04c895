"""What a compressed network must hold to be used: criteria, checked at the field and kept with a run.

They are kept in ``criteria.json`` in the run's folder. Criteria that are set anew do not replace the former
ones: every set stays, with its time, so that a board sees what was asked before the result was known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.text.said import Said, say
from qaf_core.text.units import MISSING, decimal_text, energy_text, milliseconds_text, size_text

FILE_NAME = "criteria.json"
FORMAT = 1
MOST_CRITERIA = 50
LONGEST_TEXT = 300
PACKED = "packed"

ACCURACY_FLOOR, LARGEST_DROP = "accuracy_floor", "largest_drop"
MISSED, FALSE_ALARMS = "missed_defects", "false_alarms"
MISSED_RISE, FALSE_ALARMS_RISE = "missed_defects_rise", "false_alarms_rise"
LATENCY, FILE_SIZE, MEMORY, ENERGY = "latency", "file_size", "memory", "energy"

#: Unit and largest sensible limit of each kind; the smallest is 0.
_KINDS: dict[str, tuple[str, float]] = {
    ACCURACY_FLOOR: ("fraction", 1.0),
    LARGEST_DROP: ("fraction", 1.0),
    MISSED: ("fraction", 1.0),
    FALSE_ALARMS: ("fraction", 1.0),
    MISSED_RISE: ("fraction", 1.0),
    FALSE_ALARMS_RISE: ("fraction", 1.0),
    LATENCY: ("ms", 1e7),
    FILE_SIZE: ("bytes", 1e13),
    MEMORY: ("bytes", 1e13),
    ENERGY: ("J", 1e6),
}
KINDS = tuple(_KINDS)
#: Kinds that rest on images drawn at random: their limits are compared with intervals.
ON_IMAGES = (ACCURACY_FLOOR, LARGEST_DROP, MISSED, FALSE_ALARMS, MISSED_RISE, FALSE_ALARMS_RISE)
ONE_SIDED = (MISSED, FALSE_ALARMS, MISSED_RISE, FALSE_ALARMS_RISE)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One thing that a compressed network must hold.

    Attributes:
        kind: One of ``KINDS``. Missed defects are images of other classes than ``ok_class`` that are answered
            with it, as a share of all such images; false alarms the reverse; ``…_rise`` what of either the
            compressed network has more than the original.
        limit: In the unit of the kind: a fraction, milliseconds, bytes or joules.
        class_name: The class that an accuracy or a drop is of; None for all images.
        ok_class: The class that means "nothing found", of the one-sided errors.
        device: Words of the processor's name that a latency or memory is of; empty for this machine.
        file: Which file: ``packed``, or a name of an ONNX file such as ``factorized_int8``.
        source: Where the limit comes from, in the user's words.
        owner: Who answers for it.

    Raises:
        QafError: If a field is out of range; it names the field.
    """

    kind: str
    limit: float
    class_name: str | None = None
    ok_class: str | None = None
    device: str = ""
    file: str = PACKED
    source: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise QafError("unknown kind of criterion", got=repr(self.kind), expected=", ".join(KINDS))
        unit, most = _KINDS[self.kind]
        limit = self.limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= most:
            raise QafError(
                say("limit of {kind} out of range", kind=self.kind),
                got=repr(limit)[:40],
                expected=say("a number from 0 to {most:g}, in {unit}", most=most, unit=unit),
            )
        if self.kind in ONE_SIDED and not self.ok_class:
            raise QafError(
                say("{kind} needs the class that means ok", kind=self.kind), remedy="name it in ok_class"
            )
        for field in ("class_name", "ok_class", "device", "file", "source", "owner"):
            text = getattr(self, field)
            optional = field in ("class_name", "ok_class")
            if not (isinstance(text, str) and len(text) <= LONGEST_TEXT) and not (optional and text is None):
                raise QafError(
                    say("{field} of {kind} is no text of usual length", field=field, kind=self.kind),
                    got=say("{count:,} characters", count=len(text))
                    if isinstance(text, str)
                    else type(text).__name__,
                    expected=say("at most {most} characters", most=LONGEST_TEXT),
                )

    @property
    def unit(self) -> str:
        """``fraction``, ``ms``, ``bytes`` or ``J``."""
        return _KINDS[self.kind][0]

    @property
    def at_least(self) -> bool:
        """Whether the limit is the smallest value that will do, not the largest."""
        return self.kind == ACCURACY_FLOOR

    def _file_text(self) -> str | Said:
        """The file as people call it: packed files are not run, so of a time it is the fastest ONNX file."""
        if self.file == PACKED and self.kind == FILE_SIZE:
            return say("packed file")
        labels = {str(file): Said(file.label) for file in ModelFile}
        return labels.get(str(ModelFile.FAST) if self.file == PACKED else self.file, self.file)

    def title(self) -> Said:
        """What it limits, without the limit."""
        of = {"of": self.class_name, "ok": self.ok_class, "device": self.device, "file": self._file_text()}
        if self.kind in (ACCURACY_FLOOR, LARGEST_DROP) and self.class_name is not None:
            titles = {
                ACCURACY_FLOOR: "Accuracy of the class {of}",
                LARGEST_DROP: "Accuracy lost in the class {of}",
            }
            return Said(titles[self.kind], of)
        if self.kind in (LATENCY, MEMORY) and self.device:
            titles = {
                LATENCY: "Time of one inference on {device} ({file})",
                MEMORY: "Peak memory on {device} ({file})",
            }
            return Said(titles[self.kind], of)
        return Said(TITLES[self.kind], of)

    def text(self, value: float) -> Said:
        """A value of what it limits, as people read it: differences of shares in points."""
        if self.kind in (LARGEST_DROP, MISSED_RISE, FALSE_ALARMS_RISE):
            return say("{points} points", points=decimal_text(100 * value, 2))
        return say("{value}", value=value_text(value, self.unit))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


TITLES = {
    ACCURACY_FLOOR: "Accuracy",
    LARGEST_DROP: "Accuracy lost",
    MISSED: "Missed defects (answered {ok})",
    FALSE_ALARMS: "False alarms (not answered {ok})",
    MISSED_RISE: "More missed defects than the original (answered {ok})",
    FALSE_ALARMS_RISE: "More false alarms than the original (not answered {ok})",
    LATENCY: "Time of one inference on this machine ({file})",
    FILE_SIZE: "Size of the file to deploy ({file})",
    MEMORY: "Peak memory on this machine ({file})",
    ENERGY: "Energy of one inference",
}


def value_text(value: float, unit: str) -> str:
    """A value in a unit of criteria, as people read it."""
    if unit == "fraction":
        return f"{decimal_text(100 * value, 2)} %"
    if unit == "ms":
        return milliseconds_text(value)
    return energy_text(value) if unit == "J" else size_text(value)


def read_criterion(values: Any) -> Criterion:
    """A criterion from plain data, as screens and files give it.

    Raises:
        QafError: If it is none, or a field is out of range.
    """
    if not isinstance(values, Mapping):
        raise QafError("a criterion is no mapping", got=type(values).__name__, expected="kind, limit, …")
    known = {field.name for field in fields(Criterion)}
    if unknown := sorted(str(key) for key in values.keys() - known):
        raise QafError("unknown field of a criterion", got=", ".join(unknown), expected=", ".join(known))
    if missing := sorted({"kind", "limit"} - values.keys()):
        raise QafError(
            "a criterion lacks a field",
            got=say("no {missing}", missing=missing[0]),
            expected="kind and limit",
        )
    limit = values["limit"]
    if isinstance(limit, float) and not math.isfinite(limit):
        raise QafError(
            say("limit of {values} is not finite", values=values["kind"]), got=limit, expected="a number"
        )
    return Criterion(**values)


@dataclass(frozen=True, kw_only=True)
class CriteriaSet:
    """Criteria as they were set at one time.

    Attributes:
        set_at: Seconds since 1970, UTC.
        by: Who set them, in the user's words; may be empty.
    """

    criteria: tuple[Criterion, ...]
    set_at: float
    by: str = ""


def keep_criteria(folder: Path, criteria: Sequence[Criterion], *, by: str = "") -> None:
    """Add a set of criteria to those kept in a run's folder, unless the last one is the same.

    Raises:
        QafError: If they are too many, or two limit the same.
        WorkspaceError: If those kept are damaged, or the file cannot be written.
    """
    if len(criteria) > MOST_CRITERIA:
        raise QafError(
            "too many criteria",
            got=len(criteria),
            expected=say("at most {most}", most=MOST_CRITERIA),
        )
    names = [_identity(criterion) for criterion in criteria]
    if twice := [name for name in names if names.count(name) > 1]:
        raise QafError("two criteria limit the same", got=twice[0][0], remedy="leave one out")
    kept = read_criteria(folder)
    if kept and kept[-1].criteria == tuple(criteria):
        return
    sets = [*kept, CriteriaSet(criteria=tuple(criteria), set_at=time.time(), by=by[:LONGEST_TEXT])]
    rows = [
        {"set_at": row.set_at, "by": row.by, "criteria": [each.to_dict() for each in row.criteria]}
        for row in sets
    ]
    write_json(folder / FILE_NAME, {"format": FORMAT, "sets": rows}, for_people=True)


def read_criteria(folder: Path) -> tuple[CriteriaSet, ...]:
    """All sets of criteria kept in a run's folder, oldest first.

    Raises:
        WorkspaceError: If the file is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ()
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        return tuple(
            CriteriaSet(
                criteria=tuple(read_criterion(values) for values in row["criteria"]),
                set_at=float(row["set_at"]),
                by=str(row["by"]),
            )
            for row in content["sets"]
        )
    except (QafError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            "the criteria of a run cannot be read",
            got=f"{path} ({error})",
            remedy="move the file away and set them again",
        ) from error


def describe_changes(before: CriteriaSet, after: CriteriaSet) -> tuple[Said, ...]:
    """What one set of criteria changed in another, in words."""
    first = {_identity(each): each for each in before.criteria}
    last = {_identity(each): each for each in after.criteria}
    lines = []
    for name, each in last.items():
        former = first.get(name)
        if former is None:
            lines.append(
                say("added: {title}, limit {limit}", title=each.title(), limit=each.text(each.limit))
            )
            continue
        if former.limit != each.limit:
            limits = {"old": former.text(former.limit), "new": each.text(each.limit)}
            lines.append(say("{title}: limit {old} became {new}", title=each.title(), **limits))
        if former.source != each.source:
            old, new = former.source or MISSING, each.source or MISSING
            lines.append(say("{title}: source {old} became {new}", title=each.title(), old=old, new=new))
        if former.owner != each.owner:
            old, new = former.owner or MISSING, each.owner or MISSING
            lines.append(say("{title}: owner {old} became {new}", title=each.title(), old=old, new=new))
    for name, each in first.items():
        if name not in last:
            lines.append(
                say("dropped: {title}, limit {limit}", title=each.title(), limit=each.text(each.limit))
            )
    return tuple(lines)


def _identity(criterion: Criterion) -> tuple[Any, ...]:
    return (criterion.title().text(), criterion.kind, criterion.file)
