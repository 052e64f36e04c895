"""The kit: measured by its own script in a process of its own, and only its own result is read back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qaf_core.cli.entry import main
from qaf_core.deploy.runtime import measure_kit
from qaf_core.deploy.runtime.measure_kit import checksum, result_checksum
from qaf_core.errors import WorkspaceError
from qaf_core.runs.jobs.device_kit import read_kit_result, write_kit
from qaf_core.runs.jobs.latency import read_latency
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

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
    assert kept is not None
    assert kept.to_dict() == told
    assert {row["model"] for row in rows} == set(told["latencies"])
    assert all(value == 1.0 for value in told["same_answers"].values())
    assert set(told["same_answers"]) == set(told["latencies"])
    assert all(value > 0 for value in told["peak_memory_bytes"].values())
    assert told["latencies"]["dense_int8"]["n"] == 15
    assert (told["batch"], told["compared_images"]) == (1, 64)
    assert set(told["ratios"]) == set(told["latencies"])


def test_what_measure_says_is_whole(kit: Path, measured: Path) -> None:
    text = (kit / "README.txt").read_text(encoding="utf-8")
    assert "onnxruntime>=1.23" in text
    assert "for any processor" in text
    assert "64 images" in text
    assert (kit / "inputs.npz").stat().st_size < 100_000
    assert not list(kit.glob(".*"))  # the result was renamed, and nothing else is left


def test_a_kit_for_processors_like_this_one_says_so(finished_run: Run, tmp_path: Path) -> None:
    workspace, run_id = finished_run
    with Store(workspace) as store:
        assert write_kit(store, run_id, tmp_path / "kit", target="this")["target"] == "this"
    assert "processors like that of the machine" in (tmp_path / "kit" / "README.txt").read_text("utf-8")


def test_results_of_older_kits_of_the_run_are_read_too(
    finished_run: Run, measured: Path, tmp_path: Path
) -> None:
    workspace, run_id = finished_run
    with Store(workspace) as store:
        write_kit(store, run_id, tmp_path / "second", batch=2)
        assert read_kit_result(store, run_id, measured).batch == 1


def test_a_full_disk_leaves_no_half_kit(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, run_id = finished_run
    full = OSError(errno.ENOSPC, "No space left on device")
    real = shutil.copyfile

    def copy_or_fail(source: Path, target: Path) -> None:
        if Path(target).name == "dense_int8.onnx":
            raise full
        real(source, target)

    with Store(workspace) as store:
        with monkeypatch.context() as patch:
            patch.setattr("qaf_core.runs.jobs.device_kit.shutil.copyfile", copy_or_fail)
            with pytest.raises(WorkspaceError, match="kit cannot be written.*No space left"):
                write_kit(store, run_id, tmp_path / "kit")
            full = KeyboardInterrupt()  # type: ignore[assignment]
            with pytest.raises(KeyboardInterrupt):
                write_kit(store, run_id, tmp_path / "kit")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "kit").mkdir()
        write_kit(store, run_id, tmp_path / "kit")
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def falsify(kit: Path, target: Path, *, answers: bool = False, model: bool = False) -> Path:
    """A kit as if made of other answers, or with a model no runtime knows."""
    shutil.copytree(kit, target)
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    if answers:
        with np.load(target / "inputs.npz") as archive:
            held = dict(archive)
        held["dense_int8"] = (held["dense_int8"] + 1) % 10
        np.savez_compressed(target / "inputs.npz", **held)
    if model:
        (target / "factorized_int8_exact.onnx").write_bytes(b"no model")
    manifest["files"] = {name: checksum(target / name) for name in manifest["files"]}
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target


def test_wrong_answers_and_models_that_do_not_run_are_told(
    finished_run: Run, kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run_id = finished_run
    odd = falsify(kit, tmp_path / "odd", answers=True, model=True)
    done = measure(odd)
    assert done.returncode == 0, done.stderr
    assert "warning: factorized_int8_exact does not run on this device" in done.stdout
    assert "dense_int8 0.0%" in done.stdout
    assert "warning: dense_int8 answers wrongly on this device: only 0.0% are the same" in done.stdout
    (store_folder := workspace / "runs" / run_id).mkdir(exist_ok=True)
    (store_folder / "device-kit-odd.json").write_bytes((odd / "manifest.json").read_bytes())
    arguments = ["--result", str(odd / "result.json"), "--workspace", str(workspace)]
    assert main(["device-kit", run_id, *arguments]) == 0
    told = capsys.readouterr()
    assert "warning: dense_int8 answers wrongly on this device" in told.err
    assert "warning: factorized_int8_exact does not run on this device" in told.err
    assert "same answers as where the kit was made, on 64 images: " in told.out
    assert "The exact file" not in told.out


def test_a_kit_none_of_whose_models_runs_is_one_line(kit: Path, tmp_path: Path) -> None:
    copied = tmp_path / "kit"
    shutil.copytree(kit, copied)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["models"].values():
        (copied / file).write_bytes(b"no model")
    manifest["files"] = {name: checksum(copied / name) for name in manifest["files"]}
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = measure(copied)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no model runs here" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "missing/result.json"), "no file in a folder that exists"),
        (("--out", "."), "no file in a folder that exists"),
        (("--rounds", "0"), "--rounds 0 is out of range"),
        (("--threads", "-1"), "--threads -1 is out of range"),
    ],
)
def test_options_are_checked_before_anything_is_measured(
    kit: Path, options: tuple[str, str], message: str
) -> None:
    done = measure(kit, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise ImportError('none')", "onnxruntime cannot be imported (ImportError): pip install"),
        ("__version__ = '1.18.1'", "onnxruntime 1.18.1 is too old: pip install -U 'onnxruntime>=1.23'"),
    ],
)
def test_a_missing_or_old_onnxruntime_is_one_line(
    kit: Path, tmp_path: Path, module: str, message: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(module, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(kit / "measure.py"), "--out", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        measure_kit._write_result(tmp_path / "result.json", {})
    assert list(tmp_path.iterdir()) == []


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
        (lambda told: told["ratios"].update(factorized_fp32=None), True, "no ratio of factorized_fp32"),
        (lambda told: told.update(ratios=3), True, "damaged ratios"),
        (lambda told: told.update(failed=[1]), True, "damaged list of models"),
        (lambda told: told["same_answers"].update(dense_int8="all"), True, "damaged shares"),
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
