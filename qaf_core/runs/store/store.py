"""The run store: runs, their events and layers in one SQLite file, shared by processes and threads."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.store.processes import is_alive, process_token
from qaf_core.runs.store.record import (
    CANCELLED,
    FINAL_STATUSES,
    INTERRUPTED,
    QUEUED,
    RUNNING,
    RunRecord,
    StoredEvent,
)
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.schema import SCHEMA_VERSION, prepare_schema
from qaf_core.runs.store.workspace import default_workspace, open_workspace

DATABASE_NAME = "runs.sqlite"
BUSY_TIMEOUT_SECONDS = 15.0
LOST_WORKER = "The process working on this run ended before it was done."


class Store:
    """Everything known about runs, in ``workspace/runs.sqlite``.

    One object may be shared by threads; every process opens its own.

    Args:
        workspace: Folder of the store, made if missing; None for the default one.

    Raises:
        WorkspaceError: If the folder cannot be written to or the file is not a run store.
    """

    def __init__(self, workspace: Path | str | None = None) -> None:
        self.workspace = open_workspace(default_workspace() if workspace is None else Path(workspace))
        self.path = self.workspace / DATABASE_NAME
        self._lock = threading.RLock()
        with self._reporting():
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                prepare_schema(self._connection)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_folder(self, run_id: str) -> Path:
        """Where the files of a run lie: its packed model, its traceback if it failed."""
        return self.workspace / "runs" / run_id

    # Runs

    def create_run(self, request: RunRequest, *, pid: int | None = None) -> str:
        """Queue a run.

        Args:
            request: What is asked for.
            pid: If given, the run is not queued but at once the running one of that process.

        Returns:
            The run's id, sortable by time and safe in a URL.
        """
        now = time.time()
        status, started = (QUEUED, None) if pid is None else (RUNNING, now)
        token = None if pid is None else process_token(pid)
        run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}"
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, model, status, request, created_at, started_at, pid, pid_token)"
                " VALUES (?,?,?,?,?,?,?,?)",
                (run_id, request.model, status, request.to_json(), now, started, pid, token),
            )
        return run_id

    def run(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            WorkspaceError: If there is none with this id.
        """
        rows = self._rows(f"SELECT {_RUN_COLUMNS} FROM runs WHERE id = ?", (run_id,))
        if not rows:
            raise WorkspaceError(
                "no such run",
                got=run_id,
                expected="the id of a run in this workspace",
                remedy="list them with: qaf runs",
            )
        layers = self._rows("SELECT row FROM layers WHERE run_id = ? ORDER BY position", (run_id,))
        return _to_record(rows[0], [row[0] for row in layers])

    def find(self, beginning: str) -> RunRecord:
        """The run whose id begins like this, if it is the only one.

        Raises:
            WorkspaceError: If there is none, or several.
        """
        pattern = beginning.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._rows("SELECT id FROM runs WHERE id LIKE ? ESCAPE '\\' ORDER BY id LIMIT 2", (pattern,))
        if len(rows) > 1 and beginning:
            raise WorkspaceError("several runs begin like this", got=beginning, expected="more of the id")
        return self.run(rows[0][0] if len(rows) == 1 else beginning)

    def list_runs(self, model: str | None = None) -> tuple[RunRecord, ...]:
        """All runs, or those of one model, newest first."""
        where, values = ("", ()) if model is None else (" WHERE model = ?", (model,))
        rows = self._rows(f"SELECT {_RUN_COLUMNS} FROM runs{where} ORDER BY created_at DESC, id DESC", values)
        layers: dict[str, list[str]] = {}
        scope = "" if model is None else " WHERE run_id IN (SELECT id FROM runs WHERE model = ?)"
        for run_id, row in self._rows(
            f"SELECT run_id, row FROM layers{scope} ORDER BY run_id, position", values
        ):
            layers.setdefault(run_id, []).append(row)
        return tuple(_to_record(row, layers.get(row[0], [])) for row in rows)

    def claim_next(self, pid: int) -> str | None:
        """Make the oldest queued run the running one of process ``pid``.

        Returns:
            Its id; None if nothing is queued or a live process is at work on another.
        """
        if not self._rows("SELECT 1 FROM runs WHERE status = ? LIMIT 1", (QUEUED,)):
            return None
        with self._transaction() as connection:
            busy = connection.execute(
                "SELECT pid, pid_token FROM runs WHERE status = ?", (RUNNING,)
            ).fetchall()
            if any(is_alive(other, token) for other, token in busy):
                return None
            row = connection.execute(
                "SELECT id FROM runs WHERE status = ? ORDER BY created_at, id LIMIT 1", (QUEUED,)
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE runs SET status = ?, started_at = ?, pid = ?, pid_token = ? WHERE id = ?",
                (RUNNING, time.time(), pid, process_token(pid), row[0]),
            )
            return str(row[0])

    def request_cancel(self, run_id: str) -> bool:
        """Ask a run to stop: a queued one is cancelled at once, a running one keeps what is done.

        Returns:
            Whether there was anything to stop.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE runs SET cancel = 1, status = ?, finished_at = ? WHERE id = ? AND status = ?",
                (CANCELLED, time.time(), run_id, QUEUED),
            ).rowcount
            changed += connection.execute(
                "UPDATE runs SET cancel = 1 WHERE id = ? AND status = ?", (run_id, RUNNING)
            ).rowcount
        return changed > 0

    def cancel_requested(self, run_id: str) -> bool:
        """Whether someone asked this run to stop."""
        rows = self._rows("SELECT cancel FROM runs WHERE id = ?", (run_id,))
        return bool(rows and rows[0][0])

    def finish(
        self, run_id: str, status: str, result: Mapping[str, Any] | None = None, error: str | None = None
    ) -> None:
        """Write how a run ended. A run that has ended stays as it is.

        Args:
            run_id: The run.
            status: One of ``FINAL_STATUSES``.
            result: The JSON object of ``qaf compress --json``.
            error: One line, if it failed.
        """
        if status not in FINAL_STATUSES:
            raise WorkspaceError("not a status to end with", got=status, expected=", ".join(FINAL_STATUSES))
        text = None if result is None else json.dumps(result, separators=(",", ":"))
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET status = ?, result = ?, error = ?, finished_at = ?"
                " WHERE id = ? AND status IN (?,?)",
                (status, text, error, time.time(), run_id, QUEUED, RUNNING),
            )

    def add_to_result(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Add what was found out after a run had ended, such as latencies; the same keys are replaced."""
        with self._transaction() as connection:
            row = connection.execute("SELECT result FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is not None and row[0] is not None:
                text = json.dumps({**json.loads(row[0]), **values}, separators=(",", ":"))
                connection.execute("UPDATE runs SET result = ? WHERE id = ?", (text, run_id))

    def mark_interrupted(self) -> tuple[str, ...]:
        """Mark the running runs of dead processes as interrupted.

        Returns:
            Their ids.
        """
        running = self._rows("SELECT id, pid, pid_token FROM runs WHERE status = ?", (RUNNING,))
        dead = tuple(str(run_id) for run_id, pid, token in running if not is_alive(pid, token))
        for run_id in dead:
            self.finish(run_id, INTERRUPTED, error=LOST_WORKER)
        return dead

    def worker_of(self, run_id: str) -> int | None:
        """Number of the process at work on a run, or that was last."""
        rows = self._rows("SELECT pid FROM runs WHERE id = ?", (run_id,))
        return rows[0][0] if rows else None

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
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layers VALUES (?,?,?,?,?)",
                (run_id, row["name"], position, json.dumps(row), json.dumps(details)),
            )

    def layer_details(self, run_id: str, layer: str) -> dict[str, Any]:
        """The details kept by ``put_layer``; empty if there are none."""
        rows = self._rows("SELECT details FROM layers WHERE run_id = ? AND name = ?", (run_id, layer))
        return dict(json.loads(rows[0][0])) if rows else {}

    # Events

    def append_event(self, run_id: str, event: RunEvent) -> None:
        """Add an event to a run's log."""
        with self._transaction() as connection:
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
            wanted = tuple(kinds)
            query += f" AND kind IN ({','.join('?' * len(wanted))})"
            values += wanted
        if layer is not None:
            query += " AND layer = ?"
            values.append(layer)
        return tuple(
            StoredEvent(
                seq=number,
                event=RunEvent(kind=kind, layer=of_layer, data=json.loads(data), elapsed_seconds=elapsed),
            )
            for number, kind, of_layer, data, elapsed in self._rows(query + " ORDER BY seq", values)
        )

    # Workers

    def put_worker(self, pid: int, state: str) -> None:
        """Note what a worker process is about: ``starting``, ``ready`` or ``running``."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO workers VALUES (?,?,?,?)",
                (pid, process_token(pid), state, time.time()),
            )

    def remove_worker(self, pid: int) -> None:
        """Forget a worker that ended."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM workers WHERE pid = ?", (pid,))

    def worker_states(self) -> dict[int, str]:
        """What the live workers are about, by process number."""
        rows = self._rows("SELECT pid, pid_token, state FROM workers")
        return {pid: state for pid, token, state in rows if is_alive(pid, token)}

    # The file

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock, self._reporting():
            return self._connection.execute(query, tuple(values)).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._reporting():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise WorkspaceError(
                "the run store cannot be used",
                got=f"{self.path} ({error})",
                remedy="check that its folder is writable and not full, or choose another --workspace",
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise WorkspaceError(
                "the run store is damaged",
                got=f"{self.path} ({error})",
                remedy=f"move {DATABASE_NAME} away (a new one is made) or choose another --workspace",
            ) from error


_RUN_COLUMNS = "id, status, request, result, error, created_at, started_at, finished_at"


def _to_record(row: tuple[Any, ...], layers: list[str]) -> RunRecord:
    run_id, status, request_text, result_text, error, created_at, started_at, finished_at = row
    try:
        request = RunRequest.from_json(request_text)
        result: dict[str, Any] = json.loads(result_text) if result_text else {}
        rows = tuple(json.loads(layer) for layer in layers)
    except (QafError, ValueError) as problem:
        raise WorkspaceError("a run in the store is damaged", got=f"{run_id} ({problem})") from problem
    interval = result.get("drop_ci95")
    return RunRecord(
        id=run_id,
        schema_version=SCHEMA_VERSION,
        status=status,
        created_at=created_at,
        started_at=started_at,
        finished_at=finished_at,
        request=request,
        plan=result.get("plan") or request.plan,
        layers=rows,
        cost=result.get("cost"),
        baseline_cost=result.get("baseline_cost"),
        baseline=result.get("baseline"),
        compressed=result.get("compressed"),
        drop=result.get("drop"),
        drop_ci95=None if interval is None else (interval[0], interval[1]),
        seconds=result.get("seconds") or {},
        peak_memory_bytes=result.get("peak_memory_bytes"),
        environment=result.get("environment") or {},
        error=error,
        latencies=tuple(result.get("latencies") or ()),
        result=result,
    )
