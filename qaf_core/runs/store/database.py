"""The SQLite file of a workspace, shared by processes and threads."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qaf_core.errors import WorkspaceError
from qaf_core.runs.store.schema import prepare_schema
from qaf_core.runs.store.workspace import DATABASE_NAME, default_workspace, open_workspace
from qaf_core.text.said import say

BUSY_TIMEOUT_SECONDS = 15.0


class Database:
    """``workspace/runs.sqlite``, opened and brought up to date.

    One object may be shared by threads; every process opens its own. Where the folder can only be read, what
    it held when it was opened can be seen, and nothing changed.

    Args:
        workspace: Folder of the file, made if missing; None for the default one.

    Raises:
        WorkspaceError: If the folder can be neither written to nor read, or the file is not a run store.

    Attributes:
        workspace: The folder.
        path: The file.
        read_only: Whether the folder can only be read.
    """

    def __init__(self, workspace: Path | str | None = None) -> None:
        folder = (default_workspace() if workspace is None else Path(workspace)).expanduser().absolute()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        opened = folder / DATABASE_NAME
        try:
            open_workspace(folder)
        except WorkspaceError as problem:
            try:
                opened = self._copy_of(opened)
            except OSError:
                raise problem from None
        self.workspace, self.path, self.read_only = folder, folder / DATABASE_NAME, self._copy is not None
        self._lock = threading.RLock()
        with self._reporting():
            self._connection = sqlite3.connect(
                opened, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._file = self._identity()
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
            if self._copy is not None:
                self._copy.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with self._lock, self._reporting():
            self.check_there()
            return self._connection.execute(query, tuple(values)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Changes that other processes see together or not at all."""
        if self.read_only:
            raise WorkspaceError(
                "the workspace can only be read",
                got=str(self.workspace),
                remedy="to run something, choose a folder you can write to with --workspace",
            )
        with self._lock, self._reporting():
            self.check_there()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def check_there(self) -> None:
        """Check that the file is still the one that was opened.

        Raises:
            WorkspaceError: If it was deleted or replaced: what is written to it now would be lost.
        """
        if self._identity() != self._file:
            raise WorkspaceError(
                "the workspace was deleted or replaced while it was in use",
                got=str(self.workspace),
                remedy="put it back, or end qaf app and start it again with another --workspace",
            )

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _copy_of(self, database: Path) -> Path:
        """The run store with what is not merged into it yet: SQLite opens no such file it cannot write."""
        if not database.is_file():
            raise FileNotFoundError(database)
        self._copy = tempfile.TemporaryDirectory(prefix="qaf-")
        copied = Path(self._copy.name, DATABASE_NAME)
        shutil.copyfile(database, copied)
        log = f"{DATABASE_NAME}-wal"
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(database.with_name(log), copied.with_name(log))
        return copied

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
                remedy=say(
                    "move {database_name} away (a new one is made) or choose another --workspace",
                    database_name=DATABASE_NAME,
                ),
            ) from error
