"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qaf_core.errors import WorkspaceError
from qaf_core.files import (
    STILL_SECONDS,
    UNUSED_SECONDS,
    ContentCache,
    appearing,
    digest_of,
    read_json,
    sweep_parts,
    write_file,
    write_json,
)


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


def test_what_the_machine_cannot_read_now_is_not_thrown_away(tmp_path: Path) -> None:
    def parse(_path: Path) -> Any:
        raise MemoryError

    cache = ContentCache(tmp_path)
    cache.keep("k", {"a": 1})
    assert cache.read("k", parse) is None
    assert cache.read("k") == {"a": 1}


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with appearing(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_and_damaged_json_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for for_people in (False, True):
        write_json(path, {"名": [1, 2.5, None]}, for_people=for_people)
        assert read_json(path) == {"名": [1, 2.5, None]}
        assert ("名" in path.read_text(encoding="utf-8")) == for_people
    assert read_json(tmp_path / "absent.json") is None
    for damaged in (b'{"a"', b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(damaged)
        assert read_json(path) is None


@pytest.mark.parametrize(
    "other",
    [
        ([2, "a"], b"ab"), ([1, "a"], b"ac"), ([1, "a"], b"a", b"b"), (b"ab", [1, "a"]), ([1, "a"],),
    ],
)  # fmt: skip
def test_other_content_has_another_digest(other: tuple[Any, ...]) -> None:
    assert digest_of([1, "a"], b"ab") != digest_of(*other)
    assert digest_of([1, "a"], b"ab") == digest_of((1, "a"), np.frombuffer(b"ab", np.uint8).data)
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})


def test_what_is_kept_comes_back_and_what_is_damaged_goes(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    assert cache.read("k") is None
    cache.keep("k", {"a": 1})
    assert cache.read("k") == {"a": 1}
    for damaged in (b"", b"null", b"{"):
        cache.keep("k", damaged)
        assert cache.read("k") is None
        assert not cache.path("k").exists()
    cache.keep("k", b"text")
    assert cache.read("k", Path.read_text) == "text"
    cache.keep("k", b"\xff")
    assert cache.read("k", lambda path: path.read_text("ascii")) is None


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ContentCache(tmp_path / "file")
    cache.keep("k", 1)
    assert cache.read("k") is None


def test_what_nobody_asks_for_goes_in_time(tmp_path: Path) -> None:
    earlier = time.time() - UNUSED_SECONDS - 60
    (tmp_path / "ab").mkdir()
    for name in ("asked.json", "forgotten.json", "ab/of-an-earlier-version.safetensors"):
        (tmp_path / name).write_text("1")
        os.utime(tmp_path / name, (earlier, earlier))
    cache = ContentCache(tmp_path)
    assert cache.read("asked") == 1
    cache.keep("new", 2)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"asked.json", "new.json"}


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    dead, alive = f".{done.pid}-7.part", f".{os.getpid()}-7.part"
    names = (f".a.json{dead}", f".b.json{dead}", f".a.json{alive}", "a.part")
    long_ago = time.time() - 2 * STILL_SECONDS
    for name in names:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / f".kit.{done.pid}.part").mkdir()
    os.utime(tmp_path / f".kit.{done.pid}.part", (long_ago, long_ago))
    (tmp_path / f".young.{done.pid}-7.part").write_text("")
    write_file(tmp_path / "a.json", b"")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[1:], f".kit.{done.pid}.part", f".young.{done.pid}-7.part", "a.json"}
    sweep_parts(tmp_path.iterdir())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[2:], f".young.{done.pid}-7.part", "a.json"}


def test_a_path_without_a_name_is_told() -> None:
    with pytest.raises(WorkspaceError, match="a file needs a name; got /"):
        write_file(Path("/"), b"")
