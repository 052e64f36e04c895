"""Tables of the run store, and how older ones are brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from qaf_core.errors import WorkspaceError
from qaf_core.text.said import say

SCHEMA_VERSION = 4

_TABLES = """
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, status TEXT NOT NULL, request TEXT NOT NULL,
    result TEXT, error TEXT, created_at REAL NOT NULL, started_at REAL, finished_at REAL,
    pid INTEGER, pid_token TEXT, cancel INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL DEFAULT 'compress', digest TEXT, place REAL, note TEXT, tags TEXT,
    archived INTEGER NOT NULL DEFAULT 0, deleted_at REAL, listed TEXT);
CREATE INDEX IF NOT EXISTS runs_by_digest ON runs (digest);
CREATE INDEX IF NOT EXISTS runs_by_model ON runs (model, created_at);
CREATE INDEX IF NOT EXISTS runs_by_status ON runs (status, created_at);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, kind TEXT NOT NULL, layer TEXT,
    data TEXT NOT NULL, elapsed_seconds REAL NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_run ON events (run_id, seq);
CREATE TABLE IF NOT EXISTS layers (
    run_id TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, row TEXT NOT NULL,
    details TEXT NOT NULL, PRIMARY KEY (run_id, name));
CREATE TABLE IF NOT EXISTS workers (
    pid INTEGER PRIMARY KEY, pid_token TEXT, state TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS problems (lane TEXT PRIMARY KEY, problem TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    run_id TEXT PRIMARY KEY, data TEXT NOT NULL, n INTEGER NOT NULL, right_bits BLOB NOT NULL);
"""
# What lists show of a run is kept with it (``listed``), and made anew once something it tells of changes.
_TRIGGERS = tuple(
    f"CREATE TRIGGER {name} AFTER {event} BEGIN UPDATE runs SET listed = NULL WHERE id = {run}; END"
    for name, event, run in (
        ("run_changed", "UPDATE OF status, request, result, error, finished_at ON runs", "NEW.id"),
        ("layer_added", "INSERT ON layers", "NEW.run_id"),
        ("layer_changed", "UPDATE ON layers", "NEW.run_id"),
        ("layer_removed", "DELETE ON layers", "OLD.run_id"),
    )
)


def _add_kinds(connection: sqlite3.Connection) -> None:
    """Runs become jobs of a kind; what is not a run is also told from others by a digest."""
    connection.execute("ALTER TABLE runs ADD COLUMN kind TEXT NOT NULL DEFAULT 'compress'")
    connection.execute("ALTER TABLE runs ADD COLUMN digest TEXT")
    connection.execute("CREATE INDEX runs_by_digest ON runs (digest)")
    connection.execute(
        "UPDATE runs SET kind = 'finetune'"
        " WHERE json_valid(request) AND json_extract(request, '$.finetune') IS NOT NULL"
    )


def _add_problems_and_places(connection: sqlite3.Connection) -> None:
    """Why no worker of a lane comes up; and where a job stands that follows another."""
    connection.execute("ALTER TABLE runs ADD COLUMN place REAL")
    connection.execute("CREATE TABLE problems (lane TEXT PRIMARY KEY, problem TEXT NOT NULL)")


def _add_management(connection: sqlite3.Connection) -> None:
    """Runs get notes and tags, are archived and deleted, and tell lists of themselves in one row."""
    for column in ("note TEXT", "tags TEXT", "archived INTEGER NOT NULL DEFAULT 0", "deleted_at REAL",
                   "listed TEXT"):  # fmt: skip
        connection.execute(f"ALTER TABLE runs ADD COLUMN {column}")
    connection.execute(
        "CREATE TABLE answers (run_id TEXT PRIMARY KEY, data TEXT NOT NULL, n INTEGER NOT NULL,"
        " right_bits BLOB NOT NULL)"
    )
    for trigger in _TRIGGERS:
        connection.execute(trigger)


# What leads from version n (the key) to n + 1, run inside one transaction.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {
    1: _add_kinds, 2: _add_problems_and_places, 3: _add_management,
}  # fmt: skip


def prepare_schema(connection: sqlite3.Connection) -> None:
    """Create the tables, or bring older ones up to date.

    Args:
        connection: Open, in autocommit mode.

    Raises:
        WorkspaceError: If the store was written by a newer version of the product.
    """
    version = _read_version(connection)
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _read_version(connection)
        if version is None:
            tables = filter(None, (part.strip() for part in _TABLES.split(";")))
            for statement in (*tables, *_TRIGGERS):
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?)", (SCHEMA_VERSION,))
        else:
            _migrate(connection, version)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise WorkspaceError(
            "the run store was written by a newer version",
            got=f"schema {version}",
            expected=say("at most {most}", most=SCHEMA_VERSION),
            remedy="update this installation or choose another --workspace",
        )
    while version < SCHEMA_VERSION:
        MIGRATIONS[version](connection)
        version += 1
        connection.execute("UPDATE schema_version SET version = ?", (version,))


def _read_version(connection: sqlite3.Connection) -> int | None:
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'").fetchone()
    if known is None:
        return None
    row = connection.execute("SELECT version FROM schema_version").fetchone()
    return None if row is None else int(row[0])
