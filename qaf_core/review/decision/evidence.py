"""All that is known of a run when it is decided about, read from the store: no torch, no evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from qaf_core.deploy.runtime.soak import StabilityCheck
from qaf_core.deploy.runtime.speed_report import SpeedReport
from qaf_core.errors import WorkspaceError
from qaf_core.files import read_json
from qaf_core.network.plan.cost import Cost
from qaf_core.pipeline.results import Evaluation
from qaf_core.records import from_plain
from qaf_core.review.decision.criteria import PACKED, CriteriaSet, read_criteria
from qaf_core.runs.evidence.predictions import PairedPredictions, read_predictions
from qaf_core.runs.jobs.device_kit import RESULT_NAME
from qaf_core.runs.jobs.latency import FILE_NAME, read_latency
from qaf_core.runs.listing import deployable_files
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.store import Store
from qaf_core.text.said import say

Part = TypeVar("Part")

DISTURBANCES = {
    "noise": say("noise"),
    "blur": say("blur"),
    "brightness": say("brightness"),
    "jpeg": say("JPEG compression"),
    "shift": say("a small shift"),
}


#: Inputs that are no images of the task.
ODD_INPUTS = {
    "black": say("black image"),
    "white": say("white image"),
    "broken": say("lower half missing"),
    "random": say("random pixels"),
    "foreign": say("foreign pattern (chequerboard)"),
}


# What is read of the checks kept beside a run.


@dataclass(frozen=True, kw_only=True)
class _Scores:
    original: tuple[float, ...]
    compressed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Worst:
    disturbance: str
    severity: int
    extra_drop: float


@dataclass(frozen=True, kw_only=True)
class _Odd:
    input: str
    finite: bool
    agreement: float | None = None
    original_confidence: float | None = None
    compressed_confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Saliency:
    agreement: float | None
    images: int


@dataclass(frozen=True, kw_only=True)
class _Robustness:
    n: int
    disturbances: Mapping[str, _Scores]
    worst: _Worst | None = None
    odd: tuple[_Odd, ...] = ()
    saliency: _Saliency | None = None

    def __post_init__(self) -> None:
        names = {*self.disturbances, *([self.worst.disturbance] if self.worst else ())}
        lengths = {len(side) for row in self.disturbances.values() for side in (row.original, row.compressed)}
        if not names <= DISTURBANCES.keys() or len(lengths) != 1:
            raise ValueError("unknown disturbances, or not as many severities of each")
        if not {row.input for row in self.odd} <= ODD_INPUTS.keys():
            raise ValueError("unknown inputs")


@dataclass(frozen=True, kw_only=True)
class _Stability:
    checks: tuple[StabilityCheck, ...]


SPEED = "speed"
CHECKS: Mapping[str, type[_Robustness | _Stability]] = {"robustness": _Robustness, "stability": _Stability}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run.

    Attributes:
        record: The run.
        predictions: What both networks said to each image; None where that is not kept.
        timings: Measurements of speed as ``qaf latency`` and device kits give them.
        files: Size in bytes of each file that may be deployed, by name.
        criteria: All sets kept with the run, oldest first.
        added: Results of checks kept beside the run, by name: ``robustness``, ``stability``.
        unreadable: What was measured, but cannot be read any more: ``SPEED``, or the name of a check.
    """

    record: RunRecord
    predictions: PairedPredictions | None = None
    timings: tuple[SpeedReport, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    criteria: tuple[CriteriaSet, ...] = ()
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.record.title

    @property
    def before(self) -> Evaluation:
        """The original, measured."""
        return _known(self.record.baseline, self.run_id)

    @property
    def after(self) -> Evaluation:
        """The compressed network, measured."""
        return _known(self.record.compressed, self.run_id)

    @property
    def costs(self) -> tuple[Cost, Cost]:
        """Of the original and of the compressed network."""
        return _known(self.record.baseline_cost, self.run_id), _known(self.record.cost, self.run_id)

    @property
    def size_bytes(self) -> float:
        """Size of the packed file; infinite where there is none."""
        return float(self.files.get(PACKED, float("inf")))


def collect_evidence(store: Store, run_id: str, answers: PairedPredictions | None = None) -> Evidence:
    """Read what is kept of a run, with ``answers`` where they are known already.

    Raises:
        WorkspaceError: If there is no such run, it has no result, or something kept with it is damaged.
    """
    record, folder = store.run(run_id), store.run_folder(run_id)
    for part in (record.baseline, record.compressed, record.baseline_cost, record.cost):
        _known(part, f"{run_id} ({record.status})")
    timings = {name: read_latency(folder, name) for name in (FILE_NAME, RESULT_NAME)}
    checks = {name: _read_check(folder, name) for name in CHECKS}
    found = {
        **{folder / name: (SPEED, kept) for name, kept in timings.items()},
        **{folder / f"{name}.json": (name, kept) for name, kept in checks.items()},
    }
    return Evidence(
        record=record,
        predictions=answers or read_predictions(folder),
        timings=tuple(timing for timing in timings.values() if timing is not None),
        files={name: path.stat().st_size for name, path in deployable_files(folder).items()},
        criteria=read_criteria(folder),
        added={name: check for name, check in checks.items() if check is not None},
        unreadable=tuple(name for path, (name, kept) in found.items() if kept is None and path.is_file()),
    )


def _read_check(folder: Path, name: str) -> Mapping[str, Any] | None:
    content = read_json(folder / f"{name}.json")
    try:
        from_plain(CHECKS[name], content)
    except (TypeError, ValueError):
        return None
    return dict(content)


def _known(part: Part | None, run: str) -> Part:
    if part is None:
        raise WorkspaceError(
            "this run has no result to decide about",
            got=run,
            expected="a completed run",
            remedy="list them with: qaf runs",
        )
    return part


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; read once as long as its size and time stay the same."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
