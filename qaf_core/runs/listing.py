"""What lists show of each run, in one row: made once, kept with the run, read with one query for all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.speed_report import HERE
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.records import Record, to_plain
from qaf_core.runs.jobs.latency import read_latency
from qaf_core.runs.store.queue import IS_RUN
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import EXPORTS_FOLDER, PACKED_NAME

PACKED = "packed"
# The file that would be deployed: the first of these that was made.
DEPLOYED = (ModelFile.FAST.value, "model-int8-fast", ModelFile.EXACT.value, "model-int8")
_PLACES = ("weights", "classes", "data", "calibration")
AT_ONCE = 100  # rows made in one transaction: others can write between
# Whether a run is not deleted, or is.
_SHOWN, _DELETED = "deleted_at IS NULL", "deleted_at IS NOT NULL"
_COLUMNS = "id, kind, status, created_at, finished_at, note, tags, archived, deleted_at, listed"


@dataclass(frozen=True, kw_only=True)
class RunSummary(Record):
    """What a run's entry and its files tell a list.

    Attributes:
        title: The name people see.
        named: Whether they gave it.
        error: Why it came to nothing; None where it did not.
        damaged: Whether its entry cannot be read.
        data: What it was evaluated on, in words.
        places: Files and folders its request names.
        plan: Its plan as far as it was done, in one line.
        done, planned: Layers compressed, and layers the plan changes.
        shares: Of the planned layers, by structure.
        bits: Mean weight bits of the planned layers.
        fewer_params: Parameters of the original over those left.
        metric, value, low, high, n: As measured; None before.
        before: The original's value, low and high.
        drop, drop_low, drop_high: What is lost against it on the same images, with its 95 % interval.
        size_bytes, bops, energy_joules: Of the packed file, and of one image by the cost model.
        original_bytes, original_bops, original_joules: The same of the original.
        files: Sizes in bytes of the files that can be deployed, by name.
        latency_ms, dense_ms, original_ms: Median for one image on this machine: fastest integer file, the
            original in 8 bits, the original.
        slower: Time of the fastest file over that of the original in 8 bits, with its interval.
        memory_bytes: Peak of one inference with the fastest file here.
    """

    title: str
    named: bool = False
    model: str
    method: str
    error: str | None = None
    damaged: bool = False
    data: str = ""
    places: tuple[str, ...] = ()
    plan: str = ""
    done: int = 0
    planned: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    bits: float | None = None
    fewer_params: float | None = None
    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    before: tuple[float, float, float] | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    size_bytes: float | None = None
    bops: float | None = None
    energy_joules: float | None = None
    original_bytes: float | None = None
    original_bops: float | None = None
    original_joules: float | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    latency_ms: float | None = None
    dense_ms: float | None = None
    original_ms: float | None = None
    slower: tuple[float, float, float] | None = None
    memory_bytes: float | None = None

    @property
    def deployed_bytes(self) -> float | None:
        """Size of the file that would be deployed; None before one is made."""
        return next((float(self.files[name]) for name in DEPLOYED if name in self.files), None)


# What the fields are as JSON.
_KINDS: dict[str, tuple[type, ...]] = {
    each.name: {
        "str": (str,), "bool": (bool,), "int": (int,), "str | None": (str, type(None)),
        "float | None": (float, int, type(None)),
    }.get(str(each.type), (dict,) if str(each.type).startswith("Mapping") else (list, type(None)))
    for each in fields(RunSummary)
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunRow(RunSummary):
    """One run in a list.

    Attributes:
        id, kind, status, created_at, finished_at: As of ``RunRecord``.
        note, tags: The user's.
        archived: Whether it is put away.
        deleted_at: Seconds since 1970; None where it is not deleted.
    """

    id: str
    kind: str
    status: RunStatus
    created_at: float
    finished_at: float | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    archived: bool = False
    deleted_at: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status.is_final

    @property
    def is_partial(self) -> bool:
        """Whether it has ended with layers of its plan as they were."""
        return self.is_final and self.done < self.planned

    @property
    def is_measured(self) -> bool:
        """Whether it has an accuracy and a cost."""
        return self.value is not None and self.size_bytes is not None and self.bops is not None


def list_rows(store: Store, *, model: str | None = None, deleted: bool = False) -> tuple[RunRow, ...]:
    """All runs, newest first, archived ones too; rows of ended runs are kept once they are made.

    Args:
        store: The run store.
        model: Only this model's.
        deleted: Those that are deleted and can be restored, instead of those that are not.
    """
    where, values = ("", ()) if model is None else (" AND model = ?", (model,))
    records = store.rows(
        f"SELECT {_COLUMNS} FROM runs WHERE {IS_RUN} AND {_DELETED if deleted else _SHOWN}{where}"
        " ORDER BY created_at DESC, id DESC",
        values,
    )
    rows = {row[0]: None if row[-1] is None else _kept(row) for row in records}
    lacking = [run_id for run_id, row in rows.items() if row is None]
    by_id = {row[0]: row for row in records} if lacking else {}
    for start in range(0, len(lacking), AT_ONCE):
        summaries = _make(store, lacking[start : start + AT_ONCE])
        rows.update({run_id: _row(by_id[run_id], summary) for run_id, summary in summaries.items()})
    return tuple(row for row in rows.values() if row is not None)


def refresh_row(store: Store, run_id: str) -> None:
    """Have a run's row made anew: a file of it has come or gone."""
    with store.transaction() as connection:
        connection.execute("UPDATE runs SET listed = NULL WHERE id = ?", (run_id,))


def row_of(record: RunRecord, folder: Path | None = None) -> RunRow:
    """The row of one run, its folder looked into if there is one."""
    fields = {name: getattr(record, name) for name in ("id", "kind", "status", "created_at", "finished_at")}
    return RunRow(**vars(_summarise(record, folder)), **fields)


@lru_cache(maxsize=20_000)  # lists are read at every look at a page, and hardly ever change
def _kept(row: tuple[Any, ...]) -> RunRow | None:
    try:
        return _row(row, _read(json.loads(row[-1])))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _read(data: dict[str, Any]) -> RunSummary:
    """What ``to_plain`` made of it: as ``from_plain``, which takes ten times as long.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: If something is of another kind.
    """
    for name, value in data.items():
        if not isinstance(value, _KINDS[name]):
            raise TypeError(name)
        if isinstance(value, list):
            data[name] = tuple(value)
        elif isinstance(value, dict) and not all(isinstance(part, int | float) for part in value.values()):
            raise TypeError(name)
    for name in ("before", "slower"):
        if data[name] is not None:
            first, low, high = data[name]
            data[name] = (float(first), float(low), float(high))
    return RunSummary(**data)


def _make(store: Store, run_ids: Sequence[str]) -> dict[str, RunSummary]:
    """Rows made from the runs themselves; those of ended runs are kept."""
    if store.read_only:
        return {run.id: _summarise(run, store.run_folder(run.id)) for run in store.runs(run_ids)}
    summaries = {}
    with store.transaction() as connection:  # nothing changes between reading and keeping
        for run in store.runs(run_ids):
            summaries[run.id] = _summarise(run, store.run_folder(run.id))
            if run.is_final:
                text = json.dumps(to_plain(summaries[run.id]), separators=(",", ":"))
                connection.execute("UPDATE runs SET listed = ? WHERE id = ?", (text, run.id))
    return summaries


def _row(row: tuple[Any, ...], summary: RunSummary) -> RunRow:
    columns = dict(zip(_COLUMNS.split(", ")[:-1], row, strict=False))
    try:
        status = RunStatus(columns["status"])
        tags = tuple(str(tag) for tag in json.loads(columns["tags"] or "[]"))
    except (ValueError, TypeError):
        status, tags = RunStatus.FAILED, ()
    columns |= {
        "status": RunStatus.FAILED if summary.damaged else status, "tags": tags,
        "note": str(columns["note"] or ""), "archived": bool(columns["archived"]),
        "created_at": columns["created_at"] if isinstance(columns["created_at"], int | float) else 0.0,
    }  # fmt: skip
    return RunRow(**vars(summary), **columns)


def _summarise(run: RunRecord, folder: Path | None) -> RunSummary:
    """What a run tells; as much as can be read."""
    if run.damaged:
        return RunSummary(title=run.title, model=run.model, method=run.method, error=run.error, damaged=True)
    done = {row.name for row in run.layers}
    chosen = [row for row in run.plan.layers if row.structure != KEEP]
    bits = [fmean(row.bits) if isinstance(row.bits, tuple) else row.bits for row in chosen if row.bits]
    counts = Counter(row.structure for row in chosen)
    return RunSummary(
        title=run.title,
        named=bool(run.request.name),
        model=run.model,
        method=run.method,
        error=run.error,
        data=run.images.evaluation or run.request.data,
        places=tuple(filter(None, (getattr(run.request, name) for name in _PLACES))),
        plan=plan_text(run.plan_done if done else run.plan),
        done=len(run.layers),
        planned=len(chosen),
        shares={name: count / len(chosen) for name, count in counts.items()},
        bits=fmean(bits) if bits else None,
        files={} if folder is None else _file_sizes(folder),
        **_measured(run),
        **_costs(run),
        **_speed(run, folder),
    )


def _measured(run: RunRecord) -> dict[str, Any]:
    after, before = run.compressed, run.baseline
    low, high = run.drop_ci95 or (None, None)
    values: dict[str, Any] = {"drop": run.drop, "drop_low": low, "drop_high": high}
    if after is not None:
        low, high = after.ci95
        values |= {"metric": after.metric, "value": after.value, "low": low, "high": high, "n": after.n}
    if before is not None:
        values["before"] = (before.value, *before.ci95)
    return values


def _costs(run: RunRecord) -> dict[str, Any]:
    cost, before = run.cost, run.baseline_cost
    values: dict[str, Any] = {"size_bytes": run.size_bytes}
    if cost is not None:
        values |= {"bops": cost.bops, "energy_joules": cost.energy_joules}
    if before is not None:
        values |= {
            "original_bytes": before.size_bytes, "original_bops": before.bops,
            "original_joules": before.energy_joules,
        }  # fmt: skip
    if cost is not None and before is not None and cost.params > 0:
        values["fewer_params"] = before.params / cost.params
    return values


def _speed(run: RunRecord, folder: Path | None) -> dict[str, Any]:
    """Measured on this machine, for one image; nothing where it was not."""
    times = {row.get("model"): row for row in run.latencies if row.get("source") == HERE}
    values = {
        key: times[file]["median_ms"] / max(1, times[file].get("batch") or 1)
        for key, file in (("latency_ms", ModelFile.FAST), ("dense_ms", ModelFile.DENSE),
                          ("original_ms", ModelFile.ORIGINAL))
        if file in times and isinstance(times[file].get("median_ms"), int | float)
    }  # fmt: skip
    if "latency_ms" not in values:
        return values
    values["memory_bytes"] = times[ModelFile.FAST].get("peak_memory_bytes")
    report = None if folder is None else read_latency(folder)
    if report is not None and (ratio := report.ratio()):
        values["slower"] = (ratio.value, ratio.low, ratio.high)
    return values


def deployable_files(folder: Path) -> dict[str, Path]:
    """The files of a run that may be deployed, by name: the packed one, ONNX files as timed and exported."""
    files = {PACKED: folder / PACKED_NAME}
    for place in ("onnx", EXPORTS_FOLDER):
        files |= {path.stem: path for path in sorted(folder.glob(f"{place}/*.onnx"))}
    return {name: path for name, path in files.items() if path.is_file()}


def _file_sizes(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_size for name, path in deployable_files(folder).items()}


def plan_text(plan: Plan) -> str:
    """A plan in a few numbers, ``cp 18, dense 2 · R 12–134 · W4 · A8``: nothing needs translating."""
    if not plan.layers:
        return ""
    counts = Counter(row.structure for row in plan.layers).most_common()
    parts = [", ".join(f"{name} {count}" for name, count in counts)]
    factorized = [row for row in plan.layers if row.rank is not None]
    if ranks := [rank for row in factorized for rank in _numbers(row.rank)]:
        low, high = min(ranks), max(ranks)
        parts.append(f"R {low}" if low == high else f"R {low}–{high}")
    if bits := {b for row in factorized or plan.layers for b in _numbers(row.bits)}:
        parts.append("W" + "/".join(map(str, sorted(bits))))
    return " · ".join([*parts, f"A{plan.activation_bits}"])


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)
