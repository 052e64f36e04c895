"""The kit: measured by its own script in a process of its own, and only its own result is read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli import main
from qaf_core.deploy.device_kit import read_kit_result, write_kit
from qaf_core.deploy.latency import read_latency
from qaf_core.deploy.timing import result_checksum
from qaf_core.errors import WorkspaceError
from qaf_core.runs.request import RunRequest
from qaf_core.runs.store import Store

Run = tuple[Path, str]


@pytest.fixture(scope="module")
def kit(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit written by the command line."""
    workspace, run_id = finished_run
    folder = tmp_path_factory.mktemp("kit") / "folder"
    assert main(["device-kit", run_id, "--out", str(folder), "--workspace", str(workspace)]) == 0
    return folder


def measure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the kit's script away from this package."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-I", str(folder / "measure.py"), "--threads", "1", "--rounds", "15", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder.parent, env=environment
    )


@pytest.fixture(scope="module")
def measured(kit: Path) -> Path:
    """Its result."""
    done = measure(kit)
    assert done.returncode == 0, done.stderr
    assert "dense_int8" in done.stdout
    return kit / "result.json"


def test_a_kit_is_measured_and_read_back(
    finished_run: Run, kit: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run_id = finished_run
    assert (kit / "README.txt").read_text(encoding="utf-8").count(run_id) == 2
    script = (kit / "measure.py").read_text(encoding="utf-8")
    assert "import qaf_core" not in script
    assert "from qaf_core" not in script
    assert (
        main(["device-kit", run_id, "--result", str(measured), "--workspace", str(workspace), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    with Store(workspace) as store:
        kept = read_latency(store.run_folder(run_id), "device-latency.json")
        rows = [row for row in store.run(run_id).latencies if row["source"] == "device kit"]
    assert kept == told
    assert {row["model"] for row in rows} == set(told["latencies"])
    assert all(value == 1.0 for value in told["same_answers"].values())
    assert all(value > 0 for value in told["peak_memory_bytes"].values())
    assert told["latencies"]["dense_int8"]["n"] == 15


def test_a_kit_with_an_altered_model_is_not_measured(kit: Path, tmp_path: Path) -> None:
    copied = tmp_path / "kit"
    shutil.copytree(kit, copied)
    (copied / "dense_int8.onnx").write_bytes(b"something else")
    done = measure(copied, "--out", str(tmp_path / "result.json"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "dense_int8.onnx is missing or altered" in done.stderr
    assert not (tmp_path / "result.json").exists()


def edit(source: Path, target: Path, change: Callable[[dict[str, Any]], None], *, sign: bool) -> Path:
    told = json.loads(source.read_text(encoding="utf-8"))
    change(told)
    if sign:
        told["checksum"] = result_checksum(told)
    target.write_text(json.dumps(told), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("change", "sign", "message"),
    [
        (lambda told: told.update(run_id="20200101-000000-abcdef"), True, "of another run"),
        (lambda told: told["files"].update({"dense_int8.onnx": "0" * 64}), True, "with other files"),
        (lambda told: told.update(schema_version=99), True, "another version; got schema_version 99"),
        (lambda told: told["latencies"]["dense_int8"].update(median_ms=0.001), False, "changed after"),
        (lambda told: told["latencies"].pop("dense_int8"), True, "no latencies"),
        (lambda told: told["latencies"]["dense_int8"].update(median_ms=-1.0), True, "damaged row"),
        (lambda told: told["latencies"]["dense_int8"].update(p5_ms=1e9), True, "not in order"),
        (lambda told: told.pop("ratio_to_dense_int8"), True, "no ratio"),
        (lambda told: told.pop("machine"), True, "no description"),
    ],
)
def test_a_result_that_is_not_this_kits_is_refused(
    finished_run: Run,
    measured: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    sign: bool,
    message: str,
) -> None:
    workspace, run_id = finished_run
    file = edit(measured, tmp_path / "edited.json", change, sign=sign)
    with Store(workspace) as store, pytest.raises(WorkspaceError, match=message) as told:
        read_kit_result(store, run_id, file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_result_at_all_is_refused(finished_run: Run, tmp_path: Path, content: bytes) -> None:
    workspace, run_id = finished_run
    (tmp_path / "odd.json").write_bytes(content)
    with Store(workspace) as store:
        with pytest.raises(WorkspaceError, match="not the result of a device kit"):
            read_kit_result(store, run_id, tmp_path / "odd.json")
        with pytest.raises(WorkspaceError, match="cannot be read"):
            read_kit_result(store, run_id, tmp_path / "missing.json")


def test_a_run_no_kit_was_made_from_takes_no_result(store: Store, measured: Path, tmp_path: Path) -> None:
    other = store.create_run(RunRequest(model="digits/cnn"))
    file = edit(measured, tmp_path / "other.json", lambda told: told.update(run_id=other), sign=True)
    with pytest.raises(WorkspaceError, match="no kit was made from this run"):
        read_kit_result(store, other, file)


def test_a_kit_needs_a_folder_of_its_own(finished_run: Run, kit: Path, tmp_path: Path) -> None:
    workspace, run_id = finished_run
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with Store(workspace) as store:
        for place in (kit, tmp_path / "file"):
            with pytest.raises(WorkspaceError, match="folder of its own"):
                write_kit(store, run_id, place)
        with pytest.raises(WorkspaceError, match="batch out of range"):
            write_kit(store, run_id, tmp_path / "new", batch=0)


def test_one_of_out_and_result_must_be_given(finished_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, run_id = finished_run
    for options in ((), ("--out", "a", "--result", "b")):
        assert main(["device-kit", run_id, *options, "--workspace", str(workspace)]) == 2
        assert (
            capsys.readouterr().err == "say what to do with the kit; expected --out DIR, or --result FILE.\n"
        )
