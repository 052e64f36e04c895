"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qaf_core.errors import WorkspaceError
from qaf_core.files import write_file


def test_a_file_is_written_with_its_folders_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b.json", b"one")
    write_file(tmp_path / "a" / "b.json", b"two")
    assert (tmp_path / "a" / "b.json").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "below.json", tmp_path):
        with pytest.raises(WorkspaceError, match="cannot be written"):
            write_file(path, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
