"""``qaf runs`` and the words behind it, in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qaf_core.cli.entry import main
from qaf_core.runs.store.store import Store


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["runs", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["runs"]


def test_runs_are_named_tagged_put_away_deleted_and_restored(
    seeded_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = [row["run_id"] for row in told(capsys) if row["status"] == "completed"][:2]
    assert told(capsys, "rename", first, "the chosen one") == [first]
    told(capsys, "note", first, "as agreed")
    told(capsys, "tag", first, second, "--add", "line 3", "--add", "b")
    told(capsys, "tag", second, "--remove", "b")
    rows = {row["run_id"]: row for row in told(capsys, "--tag", "line 3")}
    assert set(rows) == {first, second}
    assert (rows[first]["name"], rows[first]["note"]) == ("the chosen one", "as agreed")
    assert (rows[first]["tags"], rows[second]["tags"]) == (["line 3", "b"], ["line 3"])
    told(capsys, "archive", second)
    assert second not in {row["run_id"] for row in told(capsys)}
    assert second in {row["run_id"] for row in told(capsys, "--archived")}
    told(capsys, "archive", second, "--undo")
    assert told(capsys, "delete", first, second) == [first, second]
    assert {first, second} & {row["run_id"] for row in told(capsys)} == set()
    assert {row["run_id"] for row in told(capsys, "--deleted")} == {first, second}
    told(capsys, "restore", first)
    assert main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert f"{first}  completed" in listed
    assert "the chosen one [line 3, b]" in listed


def test_what_is_not_there_is_bad_input(seeded_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "delete", "2001"]) == 2
    assert "no such run" in capsys.readouterr().err
    assert main(["runs", "restore", "2001"]) == 2
    assert "qaf runs --deleted" in capsys.readouterr().err
