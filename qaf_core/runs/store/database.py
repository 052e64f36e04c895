"""The SQLite file of a workspace, shared by processes and threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qaf_core.errors import WorkspaceError
from qaf_core.runs.store.schema import prepare_schema
from qaf_core.runs.store.workspace import default_workspace, open_workspace

DATABASE_NAME = "runs.sqlite"
BUSY_TIMEOUT_SECONDS = 15.0


class Database:
    """``workspace/runs.sqlite``, opened and brought up to date.

    One object may be shared by threads; every process opens its own.

    Args:
        workspace: Folder of the file, made if missing; None for the default one.

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

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with self._lock, self._reporting():
            return self._connection.execute(query, tuple(values)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes that other processes see together or not at all."""
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
