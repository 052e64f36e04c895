"""The kinds of long work: what each is asked with, who does it, and what may be at work beside it."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import qaf_core
from qaf_core.data.models.settings import read_settings
from qaf_core.errors import DataError
from qaf_core.files import digest_of
from qaf_core.runs.store.request import (
    AnswersRequest,
    CheckRequest,
    DeviceKitRequest,
    ExportRequest,
    InspectRequest,
    JobRequest,
    LatencyRequest,
    PlanRequest,
    RegisterRequest,
    RobustnessRequest,
    RunRequest,
    SearchRequest,
    SensitivityRequest,
    StabilityRequest,
)
from qaf_core.runs.store.workspace import PACKED_NAME

HEAVY, LIGHT, QUICK = "heavy", "light", "quick"
# How many jobs of a lane are at work at once: nobody waits an hour to look at a model.
PLACES = {HEAVY: 1, LIGHT: 2, QUICK: 2}
RUN_KINDS = ("compress", "finetune")  # what is a run: these are listed and have pages
ALONE = ("latency", "stability")  # heavy or light work beside them would be measured too
MOST_FILES = 20_000
_LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: As in the store.
        request: What it is asked with.
        work: Module of ``qaf_core.runs`` and its function ``(store, job, progress) -> result``.
        lane: The queue it waits in, one of ``PLACES``.
        limit_seconds: Longest time at work in a worker; None for no limit.
    """

    name: str
    request: type[JobRequest]
    work: str
    lane: str
    limit_seconds: float | None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("compress", RunRequest, "jobs.compress:carry_out", HEAVY, None),
        Kind("finetune", RunRequest, "jobs.compress:carry_out", HEAVY, None),
        Kind("plan", PlanRequest, "jobs.plans.auto:carry_out", HEAVY, None),
        Kind("sensitivity", SensitivityRequest, "jobs.plans.knowledge:carry_out", HEAVY, 3600.0),
        Kind("search", SearchRequest, "jobs.plans.search:carry_out", HEAVY, None),
        Kind("latency", LatencyRequest, "jobs.latency:carry_out", HEAVY, 900.0),
        Kind("export", ExportRequest, "jobs.export:carry_out", LIGHT, 900.0),
        Kind("device_kit", DeviceKitRequest, "jobs.device_kit:carry_out", LIGHT, 900.0),
        Kind("check", CheckRequest, "jobs.check:carry_out", LIGHT, 1800.0),
        Kind("inspect", InspectRequest, "jobs.models:carry_out_inspection", QUICK, 120.0),
        Kind("register", RegisterRequest, "jobs.models:carry_out_registering", QUICK, 600.0),
        Kind("answers", AnswersRequest, "evidence.networks:carry_out", HEAVY, 3600.0),
        Kind("robustness", RobustnessRequest, "evidence.robustness:carry_out", HEAVY, 3600.0),
        Kind("stability", StabilityRequest, "evidence.stability:carry_out", HEAVY, None),
    )
}


def kind_of(request: JobRequest) -> Kind:
    """The kind of job a request asks for."""
    if isinstance(request, RunRequest):
        return KINDS["compress" if request.finetune is None else "finetune"]
    return next(kind for kind in KINDS.values() if kind.request is type(request))


def must_wait(name: str, at_work: Sequence[str], before: Sequence[str]) -> bool:
    """Whether a job's turn has not come: its lane is taken, or it or another is to be alone.

    Args:
        name: Its kind.
        at_work: Kinds of the jobs at work.
        before: Kinds of the queued jobs that were asked for before it, in this order.
    """
    lane, lanes = KINDS[name].lane, [KINDS[other].lane for other in at_work]
    if lanes.count(lane) >= PLACES[lane] or any(KINDS[other].lane == lane for other in before):
        return True
    beside = {other for other, its in zip(at_work, lanes, strict=True) if its != QUICK}
    if lane == QUICK or name in ALONE:
        return lane != QUICK and bool(beside)
    if HEAVY not in lanes:  # what is next there only waits for light jobs to end: no more of these begin
        beside.update([other for other in before if KINDS[other].lane == HEAVY][:1])
    return not beside.isdisjoint(ALONE)


def kinds_in(lane: str) -> tuple[str, ...]:
    """The names of the kinds that wait in a lane."""
    return tuple(kind.name for kind in KINDS.values() if kind.lane == lane)


def digest_request(request: JobRequest, workspace: Path) -> str:
    """What tells a job from all that may come to another result.

    That is the request, the files it names, this machine, and the versions of the product and its libraries.
    """
    return digest_of(
        kind_of(request).name, request.to_json(), _installation(), [*_stamps(request, workspace)]
    )


def _stamps(request: JobRequest, workspace: Path) -> Iterator[Any]:
    """Sizes and times of the files a request names, and what its model is registered as."""
    fields = vars(request)
    if "run" in fields:
        yield _stamp(workspace / "runs" / fields["run"] / PACKED_NAME)
    entry = read_settings(workspace).model(fields["model"]) if "model" in fields else None
    yield None if entry is None else repr(entry)
    for name in sorted(fields.keys() & {"weights", "classes", "data", "calibration"}):
        text = fields[name] or getattr(entry, name, None)
        if isinstance(text, str):
            files = (Path(text.partition("#")[0]),) if name in ("weights", "classes") else _files(text)
            yield from map(_stamp, files)
    if entry is not None and entry.code_path is not None:
        for place in sorted(Path(entry.code_path).glob(f"{re.split('[.:]', entry.base)[0]}*")):
            yield from map(_stamp, [place, *islice(sorted(place.rglob("*.py")), MOST_FILES)])


def _files(data: str) -> Iterator[Path]:
    """A place of images and what is in it."""
    from qaf_core.data.formats.sources import data_path, torchvision_place  # reads pictures: not at once

    try:
        named = torchvision_place(data)
        place = data_path(data) if named is None else named.root
    except (DataError, RuntimeError):
        return
    yield from (place, *sorted(islice(place.rglob("*"), MOST_FILES)))


def _stamp(path: Path) -> list[Any] | None:
    try:
        status = path.expanduser().stat()
    except (OSError, RuntimeError, ValueError):  # no such file, an unknown ~user, a null character
        return None
    return [str(path), status.st_size, status.st_mtime_ns]


@functools.cache
def _installation() -> tuple[Any, ...]:
    code = (path.read_bytes() for path in sorted(Path(qaf_core.__file__).parent.rglob("*.py")))
    return (platform.node(), os.cpu_count(), digest_of(*code), *map(_version, _LIBRARIES))


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
