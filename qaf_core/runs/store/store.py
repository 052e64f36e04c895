"""The run store: runs and other jobs, their events and layers in one SQLite file."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qaf_core.errors import WorkspaceError
from qaf_core.pipeline.events import RunEvent, RunStatus
from qaf_core.runs.store.queue import (
    COLUMNS,
    FIELDS,
    IS_LISTED,
    IS_RUN,
    RUN,
    DamagedEntry,
    Queue,
    insert_job,
    job_fields,
    object_in,
)
from qaf_core.runs.store.record import JobRecord, RunRecord, StoredEvent
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.shapes import check_run
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.said import Said, say

NOT_COMPRESSED = say("this run has no compressed network")


class Store(Queue):
    """Everything known about jobs, and what only runs have: layers, events and results that grow."""

    def run_folder(self, run_id: str) -> Path:
        """Where the files of a run lie: its packed model, its traceback if it failed."""
        return self.workspace / "runs" / run_id

    def packed_file(self, record: RunRecord, fault: Said = NOT_COMPRESSED) -> Path:
        """The packed network of a run.

        Raises:
            WorkspaceError: If it has none, with the words of ``fault``.
        """
        path = self.run_folder(record.id) / PACKED_NAME
        if not path.is_file():
            raise WorkspaceError(
                fault,
                got=f"{record.id} ({record.status})",
                expected="a run that was completed, or stopped after its first layer",
                remedy="list them with: qaf runs",
            )
        return path

    # Runs

    def create_run(self, request: RunRequest, *, follows: JobRecord | None = None) -> str:
        """Queue a run, in the place of a job that it follows; its id, sortable by time and safe in a URL."""
        with self.transaction() as connection:
            return insert_job(connection, request, follows=follows)

    def take_runs(self, runs: Iterable[Mapping[str, Any]]) -> None:
        """Add runs that ended in another workspace, all or none.

        Args:
            runs: Each ``id``, ``kind``, ``status``, the three times, ``request``, ``result`` and ``layers``.
        """
        with self.transaction() as connection:
            for run in runs:
                request: RunRequest = run["request"]
                connection.execute(
                    "INSERT INTO runs (id, kind, model, status, request, result, created_at, started_at,"
                    " finished_at) VALUES (?,?,?,?,?,?,?,?,?)",
                    (
                        run["id"], run["kind"], request.model, run["status"], request.to_json(),
                        json.dumps(run["result"]), run["created_at"], run["started_at"], run["finished_at"],
                    ),
                )  # fmt: skip
                connection.executemany(
                    "INSERT INTO layers VALUES (?,?,?,?,'{}')",
                    [
                        (run["id"], row["name"], place, json.dumps(row))
                        for place, row in enumerate(run["layers"])
                    ],
                )

    def has_job(self, job_id: str) -> bool:
        """Whether a run or another job has this id."""
        return bool(self.rows("SELECT 1 FROM runs WHERE id = ?", (job_id,)))

    def run(self, run_id: str) -> RunRecord:
        """One run; of one that cannot be read what is left of it, ``failed``, its damage as the error.

        Raises:
            WorkspaceError: If there is none with this id.
        """
        rows = self.rows(f"SELECT {COLUMNS} FROM runs WHERE id = ? AND {IS_LISTED}", (run_id,))
        if not rows:
            raise WorkspaceError(
                "no such run",
                got=run_id,
                expected="the id of a run in this workspace",
                remedy="list them with: qaf runs",
            )
        layers = self.rows("SELECT row FROM layers WHERE run_id = ? ORDER BY position", (run_id,))
        return _read_run(rows[0], [row[0] for row in layers])

    def find(self, beginning: str) -> RunRecord:
        """The run whose id begins like this, if it is the only one.

        Raises:
            WorkspaceError: If there is none, or several.
        """
        pattern = beginning.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self.rows(
            f"SELECT id FROM runs WHERE id LIKE ? ESCAPE '\\' AND {IS_LISTED} ORDER BY id LIMIT 2", (pattern,)
        )
        if len(rows) > 1 and beginning:
            raise WorkspaceError("several runs begin like this", got=beginning, expected="more of the id")
        return self.run(rows[0][0] if len(rows) == 1 else beginning)

    def list_runs(self, model: str | None = None, most: int = -1) -> tuple[RunRecord, ...]:
        """All runs, or those of one model, newest first; damaged ones as in ``run``.

        Args:
            model: Its id; None for all.
            most: The newest of them only; below 0 for all.
        """
        where, values = ("", (most,)) if model is None else (" AND model = ?", (model, most))
        return self._records(f"{IS_LISTED}{where} ORDER BY created_at DESC, id DESC LIMIT ?", values)

    def runs(self, run_ids: Sequence[str]) -> tuple[RunRecord, ...]:
        """Some runs, newest first, deleted ones too; damaged ones as in ``run``."""
        marks = ",".join("?" * len(run_ids))
        return self._records(f"{IS_RUN} AND id IN ({marks}) ORDER BY created_at DESC, id DESC", run_ids)

    def _records(self, which: str, values: Iterable[Any]) -> tuple[RunRecord, ...]:
        rows = self.rows(f"SELECT {COLUMNS} FROM runs WHERE {which}", values)
        layers: dict[str, list[str]] = {}
        for run_id, row in self.rows(
            f"SELECT run_id, row FROM layers WHERE run_id IN (SELECT id FROM runs WHERE {which})"
            " ORDER BY run_id, position",
            values,
        ):
            layers.setdefault(run_id, []).append(row)
        return tuple(_read_run(row, layers.get(row[0], [])) for row in rows)

    def add_to_result(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Add what was found out after a run had ended, such as latencies; the same keys are replaced."""
        with self.transaction() as connection:
            row = connection.execute("SELECT result FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is not None and row[0] is not None:
                text = json.dumps({**object_in(row[0]), **values}, separators=(",", ":"))
                connection.execute("UPDATE runs SET result = ? WHERE id = ?", (text, run_id))

    # Layers

    def put_layer(
        self, run_id: str, position: int, row: Mapping[str, Any], details: Mapping[str, Any]
    ) -> None:
        """Keep one finished layer.

        Args:
            run_id: The run.
            position: The layer's place in forward order.
            row: What the tables show; has ``name``.
            details: What only the layer's own page shows, such as histograms.
        """
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layers VALUES (?,?,?,?,?)",
                (run_id, row["name"], position, json.dumps(row), json.dumps(details)),
            )

    def layer_details(self, run_id: str, layer: str) -> dict[str, Any]:
        """The details kept by ``put_layer``; empty if there are none."""
        rows = self.rows("SELECT details FROM layers WHERE run_id = ? AND name = ?", (run_id, layer))
        return object_in(rows[0][0]) if rows else {}

    # Events

    def append_event(self, run_id: str, event: RunEvent) -> None:
        """Add an event to a run's log."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO events (run_id, kind, layer, data, elapsed_seconds) VALUES (?,?,?,?,?)",
                (run_id, event.kind, event.layer, json.dumps(event.data), event.elapsed_seconds),
            )

    def events_since(
        self, run_id: str, seq: int = 0, kinds: Iterable[str] | None = None, layer: str | None = None
    ) -> tuple[StoredEvent, ...]:
        """The events of a run after number ``seq``, oldest first.

        Args:
            run_id: The run.
            seq: The last number already seen; 0 for all.
            kinds: Only these kinds; None for all.
            layer: Only this layer's; None for all.
        """
        query = "SELECT seq, kind, layer, data, elapsed_seconds FROM events WHERE run_id = ? AND seq > ?"
        values: list[Any] = [run_id, seq]
        if kinds is not None:
            names = tuple(kinds)
            query += f" AND kind IN ({','.join('?' * len(names))})"
            values += names
        if layer is not None:
            query += " AND layer = ?"
            values.append(layer)
        return tuple(
            StoredEvent(
                seq=number,
                event=RunEvent(
                    kind=kind, layer=of_layer, data=object_in(data), elapsed_seconds=float(elapsed)
                ),
            )
            for number, kind, of_layer, data, elapsed in self.rows(query + " ORDER BY seq", values)
        )

    def stage_starts(self, run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """When each stage of some runs began, in seconds since the run did."""
        starts: dict[str, dict[str, float]] = {}
        marks = ",".join("?" * len(run_ids))
        for run_id, stage, began in self.rows(
            "SELECT run_id, json_extract(data, '$.stage') AS stage, MIN(elapsed_seconds) FROM events"
            f" WHERE kind = 'stage' AND json_valid(data) AND run_id IN ({marks}) GROUP BY run_id, stage",
            run_ids,
        ):
            starts.setdefault(run_id, {})[str(stage)] = began
        return starts


def _read_run(row: tuple[Any, ...], layers: list[str]) -> RunRecord:
    damage = _find_damage(row, tuple(layers))
    if damage is None:
        return RunRecord(**job_fields(row, RUN, layers))
    kept = dict(zip(FIELDS, row, strict=True))
    created_at = kept["created_at"] if isinstance(kept["created_at"], int | float) else 0.0
    return RunRecord(
        id=str(kept["id"]),
        kind=str(kept["kind"]),
        status=RunStatus.FAILED,
        created_at=created_at,
        finished_at=created_at,
        request=RunRequest(model=str(object_in(kept["request"]).get("model", "?"))),
        error=str(damage),
        fault=damage.to_plain(),
        damaged=True,
    )


@functools.lru_cache(maxsize=2000)  # runs are read at every look at a page, and hardly ever change
def _find_damage(row: tuple[Any, ...], layers: tuple[str, ...]) -> DamagedEntry | None:
    try:
        check_run(RunRecord(**job_fields(row, RUN, layers)))
    except DamagedEntry as problem:
        return problem
    except (ValueError, TypeError) as problem:
        return DamagedEntry(say("a {what} in the store is damaged", what=RUN), got=f"{row[0]} ({problem})")
    return None
