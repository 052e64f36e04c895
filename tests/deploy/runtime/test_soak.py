"""A model in operation: soaked, killed, damaged and replaced, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from qaf_core.children import child_environment
from qaf_core.deploy.runtime import soak
from qaf_core.deploy.runtime.measure_kit import checksum
from qaf_core.errors import QafError, RunCancelled
from qaf_core.text.catalogue import translator
from qaf_core.text.said import retell


def write_model(path: Path, factor: float) -> Path:
    """Doubles, or so, what it is given."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [3, 8, 8], [factor] * 192)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_every_check_is_carried_out_and_timed(tmp_path: Path) -> None:
    model, original = write_model(tmp_path / "small.onnx", 2.0), write_model(tmp_path / "original.onnx", 3.0)
    found = soak.check_stability(model, original, (1, 3, 8, 8), seconds=0.4)
    checks = {row["check"]: row for row in found["checks"]}
    assert list(checks) == ["soak_latency", "soak_memory", "restart", "damaged", "fall_back"]
    assert all(checks[name]["passed"] for name in ("restart", "damaged", "fall_back"))
    assert all(row["seconds"] > 0 for row in checks.values())
    assert "small.onnx is damaged" in checks["damaged"]["detail"]
    assert checks["fall_back"]["detail"] == "original.onnx"
    assert len(found["windows"]) == soak.WINDOWS
    assert found["windows"][0]["memory_bytes"] > 0


def test_drift_is_told() -> None:
    windows = [{"median_ms": 1 + place / 20, "memory_bytes": 1e8} for place in range(20)]
    latency, memory = soak._judge_windows(windows, 60)
    assert not latency.passed
    assert memory.passed
    assert memory.detail == "100 → 100 MB (+0.0 %)"
    with pytest.raises(QafError, match="too short"):
        soak._judge_windows(windows[:3], 60)


def test_a_failure_is_told_in_any_language(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx", 2.0)
    options = [str(model), "--sha256", checksum(model), "--shape", "1,3,8,8"]
    restarted = soak._restart(model, options[1:], "not this")
    answered = soak._refused([*options, "--seconds", "0"])
    told = [retell(check.detail, check.said, translator("ja")) for check in (restarted, answered)]
    assert not restarted.passed
    assert not answered.passed
    assert told == ["判定が変わりました", "破損したファイルがそのまま動作しました"]


def test_a_model_that_does_not_run_is_said_and_a_stop_is_heard(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    with pytest.raises(QafError, match="does not run"):
        soak.check_stability(bad, bad, (1, 3, 8, 8), seconds=0.1)
    good = write_model(tmp_path / "good.onnx", 2.0)
    with pytest.raises(RunCancelled):
        soak.check_stability(good, good, (1, 3, 8, 8), seconds=30, should_stop=lambda: True)


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a.onnx", 2.0)
    options = [str(model), "--sha256", checksum(model), "--shape", "1,3,8,8", "--seconds", "6000"]
    program = (
        "import os, subprocess, sys\n"
        "from qaf_core.deploy.runtime import soak\n"
        "process = subprocess.Popen(soak._command(sys.argv[1:]), stdout=subprocess.PIPE)\n"
        "process.stdout.readline()\n"
        "print(process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        env=child_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    server, until = int(done.stdout), time.monotonic() + 60
    while _lives(server):
        if time.monotonic() > until:
            os.kill(server, signal.SIGKILL)
            pytest.fail("the server outlives the process that started it")
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_tells_much_does_not_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = "import sys; sys.stderr.write('x' * 2**20 + '\\nthe end\\n'); print('{}')"
    monkeypatch.setattr(soak, "_command", lambda _: [sys.executable, "-c", talks])
    assert soak._soak([], lambda: False) == ({}, [])
    monkeypatch.setattr(soak, "_command", lambda _: [sys.executable, "-c", f"{talks}; sys.exit(3)"])
    with pytest.raises(QafError, match="does not run; got the end"):
        soak._soak([], lambda: False)


def test_the_server_falls_back_only_to_a_sound_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "a.onnx", 2.0)
    options = ["--shape", "1,3,8,8", "--fall-back", str(model), "--fall-back-sha256", "other"]
    assert soak.serve([str(model), "--sha256", "other", *options]) == 3
    assert capsys.readouterr().err.count("is damaged") == 2
    assert soak.serve([str(model), "--sha256", checksum(model), *options]) == 0
    assert '"fallen_back": false' in capsys.readouterr().out
