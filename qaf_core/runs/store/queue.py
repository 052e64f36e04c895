"""The queue of jobs: asked for, claimed by worker processes, stopped, ended."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.database import Database
from qaf_core.runs.store.kinds import (
    HEAVY,
    KINDS,
    PLACES,
    RUN_KINDS,
    digest_request,
    kind_of,
    kinds_in,
    must_wait,
)
from qaf_core.runs.store.processes import is_alive, process_token
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import JobRequest, RunRequest
from qaf_core.text.said import Said, from_plain, say, to_plain

RUN, JOB = say("run"), say("job")
DISCARD, DISCARDED = 2, "Discarded on request: nothing was kept."  # what stands under ``cancel``
LONGEST_REASON = 160
MOST_JOBS_KEPT = 500  # that are no runs
PLACE = "COALESCE(place, created_at)"  # in the queue
FIELDS = (
    *("id", "kind", "status", "request", "result", "error", "created_at", "started_at", "finished_at"),
    "fault",
)
FAULT = "fault"  # kind of event: the parts of an error, as its line alone is told in English only
COLUMNS = (
    f"{', '.join(FIELDS[:-1])}, CASE WHEN error IS NULL THEN NULL ELSE"
    f" (SELECT data FROM events WHERE run_id = runs.id AND kind = '{FAULT}' ORDER BY seq DESC LIMIT 1) END"
)
IS_RUN = f"kind IN ({', '.join(map(repr, RUN_KINDS))})"
IS_LISTED = f"{IS_RUN} AND deleted_at IS NULL"


class Queue(Database):
    """Jobs of all kinds, runs among them."""

    def ask(self, request: JobRequest, *, anew: bool = False) -> str:
        """Queue a job that is no run, or find the same one: whoever asks for it shares it.

        Args:
            request: What is asked for.
            anew: Share only what still waits or is at work; else also a result that is kept.

        Returns:
            The job's id.
        """
        self.mark_interrupted()
        digest = digest_request(request, self.workspace)
        shared = [RunStatus.QUEUED, RunStatus.RUNNING, *(() if anew else (RunStatus.COMPLETED,))]
        with self.transaction() as connection:
            known = connection.execute(
                f"SELECT id FROM runs WHERE digest = ? AND cancel = 0 AND status IN ({_marks(shared)})"
                " AND json_valid(request) AND (result IS NULL OR json_valid(result))"
                " ORDER BY created_at DESC LIMIT 1",
                (digest, *shared),
            ).fetchone()
            return str(known[0]) if known else insert_job(connection, request, digest=digest)

    def ask_for_own(self, request: JobRequest, pid: int) -> str:
        """Queue a job that only process ``pid`` is to claim, for as long as it lives; the job's id."""
        digest = None if isinstance(request, RunRequest) else digest_request(request, self.workspace)
        with self.transaction() as connection:
            return insert_job(connection, request, pid=pid, digest=digest)

    def job(self, job_id: str) -> JobRecord | None:
        """One job of any kind; None if there is none with this id, or it was long ago."""
        return self._job("id = ?", (job_id,))

    def find_job(self, request: JobRequest) -> JobRecord | None:
        """The last job of exactly this request, files and versions included; None if none can be read."""
        return self._readable_job("digest = ?", (digest_request(request, self.workspace),))

    def last_job(self, kind: str, about: str) -> JobRecord | None:
        """The last job of a kind about a model, or a run; None if none can be read."""
        return self._readable_job("kind = ? AND model = ?", (kind, about))

    def _readable_job(self, where: str, values: tuple[str, ...]) -> JobRecord | None:
        try:
            return self._job(where, values)
        except DamagedEntry:  # as if it had never been: it is asked for anew
            return None

    def _job(self, where: str, values: tuple[str, ...]) -> JobRecord | None:
        rows = self.rows(f"SELECT {COLUMNS} FROM runs WHERE {where} ORDER BY created_at DESC LIMIT 1", values)
        if not rows:
            return None
        stages = self.rows(
            "SELECT data FROM events WHERE run_id = ? AND kind = 'stage' ORDER BY seq DESC LIMIT 1",
            (rows[0][0],),
        )
        return JobRecord(**job_fields(rows[0], JOB), stage=object_in(stages[0][0]) if stages else {})

    def count_ahead(self, job_id: str) -> int:
        """How many jobs of its lane come before a queued one."""
        rows = self.rows(f"SELECT kind, {PLACE} FROM runs WHERE id = ?", (job_id,))
        if not rows:
            return 0
        kinds = kinds_in(KINDS[rows[0][0]].lane)
        count = self.rows(
            f"SELECT COUNT(*) FROM runs WHERE {PLACE} < ? AND status IN (?,?) AND kind IN ({_marks(kinds)})",
            (rows[0][1], RunStatus.QUEUED, RunStatus.RUNNING, *kinds),
        )
        return int(count[0][0])

    def count_queued(self, lane: str) -> int:
        """How many jobs of a lane wait for a worker."""
        kinds = kinds_in(lane)
        query = f"SELECT COUNT(*) FROM runs WHERE status = ? AND pid IS NULL AND kind IN ({_marks(kinds)})"
        return int(self.rows(query, (RunStatus.QUEUED, *kinds))[0][0])

    def claim_next(self, pid: int, lane: str = HEAVY, own: str | None = None) -> str | None:
        """Make the next job of a lane the running one of process ``pid``, if its turn has come.

        It waits for those before it that somebody will do: a live process its own, or a worker.

        Args:
            pid: The process.
            lane: Where a worker looks.
            own: The job that this process asked for with `ask_for_own`, instead of the next for workers.

        Returns:
            Its id; None if there is none, or it must wait.
        """
        if own is None and not self.count_queued(lane):
            return None
        served = set(PLACES if self.worker_states() else (lane,) if own is None else ())
        with self.transaction() as connection:
            live = [
                (job_id, kind, status, owner)
                for job_id, kind, status, owner, token in connection.execute(
                    "SELECT id, kind, status, pid, pid_token FROM runs WHERE status IN (?,?)"
                    f" ORDER BY {PLACE}, id",
                    (RunStatus.QUEUED, RunStatus.RUNNING),
                ).fetchall()
                if kind in KINDS
                and (is_alive(owner, token) or (owner is None and KINDS[kind].lane in served))
            ]
            at_work = [kind for _, kind, status, _ in live if status == RunStatus.RUNNING]
            before: list[str] = []
            for job_id, kind, status, owner in live:
                if status == RunStatus.QUEUED:
                    if job_id == own or (own is None and owner is None and KINDS[kind].lane == lane):
                        break
                    before.append(kind)
            else:
                return None
            if must_wait(kind, at_work, before):
                return None
            connection.execute(
                "UPDATE runs SET status = ?, started_at = ?, pid = ?, pid_token = ? WHERE id = ?",
                (RunStatus.RUNNING, time.time(), pid, process_token(pid), job_id),
            )
            return str(job_id)

    def request_cancel(self, run_id: str) -> bool:
        """Ask a job to stop: a queued one is cancelled at once, a running run keeps what is done.

        Returns:
            Whether there was anything to stop.
        """
        with self.transaction() as connection:
            changed = connection.execute(
                "UPDATE runs SET cancel = 1, status = ?, finished_at = ? WHERE id = ? AND status = ?",
                (RunStatus.CANCELLED, time.time(), run_id, RunStatus.QUEUED),
            ).rowcount
            changed += connection.execute(
                "UPDATE runs SET cancel = 1 WHERE id = ? AND status = ?", (run_id, RunStatus.RUNNING)
            ).rowcount
        return changed > 0

    def cancel_requested(self, run_id: str) -> bool:
        """Whether someone asked this job to stop."""
        rows = self.rows("SELECT cancel FROM runs WHERE id = ?", (run_id,))
        return bool(rows and rows[0][0])

    def discard(self, run_id: str) -> None:
        """End a run at once and keep nothing that was done; the process at work on it ends itself.

        Once more after that, it takes away what the process has left meanwhile.
        """
        with self.transaction() as connection:
            connection.execute(
                "UPDATE runs SET cancel = ?, status = ?, error = ?, finished_at = ?"
                " WHERE id = ? AND status IN (?,?)",
                (
                    DISCARD,
                    RunStatus.CANCELLED,
                    DISCARDED,
                    time.time(),
                    run_id,
                    RunStatus.QUEUED,
                    RunStatus.RUNNING,
                ),
            )
            connection.execute(
                "DELETE FROM layers WHERE run_id IN (SELECT id FROM runs WHERE id = ? AND cancel = ?)",
                (run_id, DISCARD),
            )

    def discarded(self, run_id: str) -> bool:
        """Whether someone discarded this run."""
        return bool(self.rows("SELECT 1 FROM runs WHERE id = ? AND cancel = ?", (run_id, DISCARD)))

    def finish(
        self,
        run_id: str,
        status: RunStatus,
        result: Mapping[str, Any] | None = None,
        error: QafError | str | None = None,
    ) -> None:
        """Write how a job ended. One that has ended stays as it is.

        Args:
            run_id: The job's id.
            status: A final one.
            result: What came of it; of a run the JSON object of ``qaf compress --json``.
            error: Why it failed, if it did; of a text, one line.
        """
        if not RunStatus(status).is_final:
            raise WorkspaceError("not a status to end with", got=status)
        text = None if result is None else json.dumps(result, separators=(",", ":"))
        with self.transaction() as connection:
            line = None if error is None else str(error)
            ended = connection.execute(
                "UPDATE runs SET status = ?, result = ?, error = ?, finished_at = ?"
                " WHERE id = ? AND status IN (?,?)",
                (status, text, line, time.time(), run_id, RunStatus.QUEUED, RunStatus.RUNNING),
            ).rowcount
            if ended and isinstance(error, QafError):
                connection.execute(
                    "INSERT INTO events (run_id, kind, data, elapsed_seconds) VALUES (?,?,?,0)",
                    (run_id, FAULT, json.dumps(error.to_plain())),
                )

    def mark_interrupted(self) -> tuple[str, ...]:
        """Mark the jobs of dead processes as interrupted, those at work and those they waited for.

        Returns:
            Their ids.
        """
        if self.read_only:
            return ()
        holders = self.rows(
            "SELECT id, kind, pid, pid_token FROM runs WHERE status = ? OR (status = ? AND pid IS NOT NULL)",
            (RunStatus.RUNNING, RunStatus.QUEUED),
        )
        dead = {str(row_id): kind for row_id, kind, pid, token in holders if not is_alive(pid, token)}
        for row_id, kind in dead.items():
            what = RUN if kind in RUN_KINDS else JOB
            self.finish(
                row_id,
                RunStatus.INTERRUPTED,
                error=QafError(say("The process working on this {what} ended before it was done", what=what)),
            )
        return tuple(dead)

    def running_of(self, pid: int) -> tuple[str, ...]:
        """The jobs that a process is at work on."""
        rows = self.rows("SELECT id FROM runs WHERE status = ? AND pid = ?", (RunStatus.RUNNING, pid))
        return tuple(str(row[0]) for row in rows)

    def worker_of(self, run_id: str) -> int | None:
        """Number of the process at work on a run, or that was last."""
        rows = self.rows("SELECT pid FROM runs WHERE id = ?", (run_id,))
        return rows[0][0] if rows else None

    # Workers

    def put_worker(self, pid: int, state: str) -> None:
        """Note what a worker process is about: ``starting``, ``ready`` or ``running``."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO workers VALUES (?,?,?,?)",
                (pid, process_token(pid), state, time.time()),
            )

    def put_problem(self, lane: str, problem: Said | None) -> None:
        """Note why no worker of a lane comes up, in words; None for no more."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM problems WHERE lane = ?", (lane,))
            if problem is not None:
                kept = json.dumps(to_plain(problem))
                connection.execute("INSERT INTO problems VALUES (?,?)", (lane, kept))

    def problem_of(self, kind: str) -> Said | None:
        """Why no worker comes up that would do a kind of jobs; None if all is well."""
        rows = self.rows("SELECT problem FROM problems WHERE lane = ?", (KINDS[kind].lane,))
        if not rows:
            return None
        try:
            problem = from_plain(json.loads(rows[0][0]))
            return problem if isinstance(problem, Said) else Said(str(problem))
        except ValueError:  # in words, as an older version kept it
            return Said(str(rows[0][0]))

    def remove_worker(self, pid: int) -> None:
        """Forget a worker that ended."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM workers WHERE pid = ?", (pid,))

    def worker_states(self) -> dict[int, str]:
        """What the live workers are about, by process number."""
        rows = self.rows("SELECT pid, pid_token, state FROM workers")
        return {pid: state for pid, token, state in rows if is_alive(pid, token)}


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


def insert_job(
    connection: sqlite3.Connection,
    request: JobRequest,
    *,
    pid: int | None = None,
    digest: str | None = None,
    follows: JobRecord | None = None,
) -> str:
    """Queue a job, for a process of its own or for any worker; its id.

    One that follows another stands where that stood: before all that was asked for later.
    """
    now, kind = time.time(), kind_of(request).name
    token = None if pid is None else process_token(pid)
    job_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}"
    connection.execute(
        "INSERT INTO runs (id, kind, digest, model, status, request, created_at, place, pid, pid_token)"
        " VALUES (?,?,?,?,?,?,?,?,?,?)",
        (
            job_id, kind, digest, request.about, RunStatus.QUEUED, request.to_json(), now,
            None if follows is None else follows.created_at, pid, token,
        ),
    )  # fmt: skip
    old = connection.execute(
        f"SELECT id FROM runs WHERE NOT {IS_RUN} AND finished_at IS NOT NULL"
        f" ORDER BY created_at DESC LIMIT -1 OFFSET {MOST_JOBS_KEPT}"
    ).fetchall()
    connection.executemany("DELETE FROM events WHERE run_id = ?", old)
    connection.executemany("DELETE FROM runs WHERE id = ?", old)
    return job_id


class DamagedEntry(WorkspaceError):
    """An entry of the store that cannot be read."""


def job_fields(row: tuple[Any, ...], what: Said, layers: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a ``JobRecord`` from ``COLUMNS``; and ``layer_rows``, of a run.

    Raises:
        DamagedEntry: If what was asked for, or the result, cannot be read.
    """
    fields = dict(zip(FIELDS, row, strict=True))
    fields["fault"] = object_in(fields["fault"])
    try:
        fields["status"] = RunStatus(fields["status"])
        fields["request"] = KINDS[fields["kind"]].request.from_json(fields["request"])
        fields["result"] = json.loads(fields["result"] or "{}")
        rows = tuple(map(json.loads, layers))
        if not isinstance(fields["result"], dict):
            raise ValueError("its result is no object")
    except (QafError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise DamagedEntry(
            say("a {what} in the store is damaged", what=what),
            got=f"{fields['id']} ({str(problem)[:LONGEST_REASON]})",
        ) from problem
    return {**fields, **({"layer_rows": rows} if rows else {})}


def object_in(text: Any) -> dict[str, Any]:
    """The JSON object that a text holds; an empty one where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
