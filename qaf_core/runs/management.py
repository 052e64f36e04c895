"""Runs named, noted, tagged, put away, deleted and brought back, and begun again where they were cut off."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.queue import IS_RUN
from qaf_core.runs.store.request import LONGEST_NAME
from qaf_core.runs.store.store import Store
from qaf_core.text.said import Said, say

LONGEST_NOTE, LONGEST_TAG, MOST_TAGS = 4000, 40, 20
KEPT_SECONDS = 30 * 86_400.0  # a deleted run can be restored for so long
_UNFINISHED = (RunStatus.QUEUED, RunStatus.RUNNING)


def rename(store: Store, run_id: str, name: str) -> None:
    """Give a run another name; an empty one for its model and time again.

    Raises:
        QafError: If the name is too long.
    """
    new_name = _one_line(name, LONGEST_NAME, say("a name")) or None
    with store.transaction() as connection:
        connection.execute(
            "UPDATE runs SET request = json_set(request, '$.name', ?) WHERE id = ? AND json_valid(request)",
            (new_name, run_id),
        )


def set_note(store: Store, run_id: str, note: str) -> None:
    """Keep a note with a run; an empty one takes it away.

    Raises:
        QafError: If it is too long.
    """
    if len(note) > LONGEST_NOTE:
        raise QafError(
            "a note is too long",
            got=len(note),
            expected=say("at most {count} characters", count=LONGEST_NOTE),
        )
    _set(store, "note = ?", (note.strip() or None,), [run_id])


def tag(store: Store, run_ids: Iterable[str], add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
    """Add tags to runs and take others off.

    Raises:
        QafError: If one is empty, too long or holds a comma, or a run would have too many.
    """
    added = [_one_line(each, LONGEST_TAG, say("a tag")) for each in add]
    if not all(added) or any("," in each for each in added):
        raise QafError("not a tag", got=", ".join(added), expected="a word or a few, without commas")
    removed = {each.strip() for each in remove}
    with store.transaction() as connection:
        for run_id in run_ids:
            row = connection.execute("SELECT tags FROM runs WHERE id = ?", (run_id,)).fetchone()
            kept = [each for each in _tags(row and row[0]) if each not in removed]
            tags = list(dict.fromkeys([*kept, *added]))
            if len(tags) > MOST_TAGS:
                raise QafError(
                    "a run has too many tags", got=len(tags), expected=say("at most {count}", count=MOST_TAGS)
                )
            text = json.dumps(tags) if tags else None
            connection.execute("UPDATE runs SET tags = ? WHERE id = ?", (text, run_id))


def archive(store: Store, run_ids: Sequence[str], archived: bool = True) -> None:
    """Put runs away, or take them out again: lists leave them out unless asked; nothing else changes."""
    _set(store, "archived = ?", (int(archived),), run_ids)


def delete(store: Store, run_ids: Sequence[str]) -> None:
    """Delete runs. They can be restored for 30 days; after that they and their files go for good.

    Raises:
        WorkspaceError: If one is not finished, or something that is not finished needs it; then none is.
    """
    with store.transaction() as connection:
        needed = {
            str(run)
            for row in connection.execute(
                "SELECT id, model, CASE WHEN json_valid(request) THEN json_extract(request, '$.finetune.run')"
                " END FROM runs WHERE status IN (?,?)",
                _UNFINISHED,
            )
            for run in row
        }
        for run_id in run_ids:
            if run_id in needed:
                raise WorkspaceError(
                    "a run cannot be deleted while it, or something that needs it, waits or is at work",
                    got=run_id,
                    remedy="stop that first",
                )
        connection.executemany(
            f"UPDATE runs SET deleted_at = ? WHERE id = ? AND {IS_RUN} AND deleted_at IS NULL",
            [(time.time(), run_id) for run_id in run_ids],
        )
    purge(store, KEPT_SECONDS)


def restore(store: Store, run_ids: Sequence[str]) -> None:
    """Bring deleted runs back, with all that was kept of them."""
    _set(store, "deleted_at = NULL", (), run_ids)


def purge(store: Store, older_seconds: float = 0.0) -> int:
    """Take deleted runs and their files away for good.

    Args:
        store: The run store.
        older_seconds: Only those that were deleted so long ago.

    Returns:
        How many.
    """
    limit = time.time() - older_seconds
    old = store.rows("SELECT id FROM runs WHERE deleted_at <= ?", (limit,))
    for (run_id,) in old:
        shutil.rmtree(store.run_folder(run_id), ignore_errors=True)
    if old:
        with store.transaction() as connection:
            for table in ("events", "layers", "answers"):
                connection.executemany(f"DELETE FROM {table} WHERE run_id = ?", old)
            connection.executemany("DELETE FROM runs WHERE id = ?", old)
    return len(old)


def find_deleted(store: Store, beginning: str) -> str:
    """The id of the deleted run that begins like this.

    Raises:
        WorkspaceError: If there is none, or several.
    """
    rows = store.rows("SELECT id FROM runs WHERE deleted_at IS NOT NULL AND substr(id, 1, ?) = ?",
                      (len(beginning), beginning))  # fmt: skip
    if len(rows) != 1 or not beginning:
        raise WorkspaceError(
            say("several deleted runs begin like this") if rows else say("no such deleted run"),
            got=beginning,
            remedy="list them with: qaf runs --deleted",
        )
    return str(rows[0][0])


def resume(store: Store, run_id: str) -> bool:
    """Queue a run anew that was cut off, under its own id; layers it had solved are not solved again.

    Returns:
        Whether it was one that had been interrupted.
    """
    with store.transaction() as connection:
        changed = connection.execute(
            "UPDATE runs SET status = ?, error = NULL, started_at = NULL, finished_at = NULL, pid = NULL,"
            f" pid_token = NULL, cancel = 0 WHERE id = ? AND status = ? AND {IS_RUN} AND deleted_at IS NULL",
            (RunStatus.QUEUED, run_id, RunStatus.INTERRUPTED),
        ).rowcount
        if changed:
            for table in ("events", "layers"):
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
    return changed > 0


def _set(store: Store, change: str, values: tuple[object, ...], run_ids: Sequence[str]) -> None:
    with store.transaction() as connection:
        connection.executemany(
            f"UPDATE runs SET {change} WHERE id = ? AND {IS_RUN}", [(*values, run_id) for run_id in run_ids]
        )


def _tags(text: str | None) -> list[str]:
    try:
        tags = json.loads(text or "[]")
    except ValueError:
        return []
    return [str(each) for each in tags] if isinstance(tags, list) else []


def _one_line(text: str, longest: int, what: Said) -> str:
    line = " ".join(text.split())
    if len(line) > longest:
        raise QafError(
            say("{what} is too long", what=what), got=len(line),
            expected=say("at most {count} characters", count=longest),
        )  # fmt: skip
    return line
