"""An ONNX model in operation, in a process of its own: started, run for a while, killed, damaged, replaced.

As a program this file serves a model: it checks the file's SHA-256, falls back to another file where that
does not hold or the file does not open, answers again and again, and tells every window of time on a line of
its own. It ends with the process that started it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qaf_core.children import child_environment, end_with
from qaf_core.deploy.runtime.measure_kit import checksum, one_inference, open_session
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import QafError, RunCancelled
from qaf_core.text.said import Said, say, templates_of

WINDOWS = 20
START_SECONDS = 60.0
LARGEST_LATENCY_DRIFT = 0.10  # of the median, from the first quarter of the windows to the last
LARGEST_MEMORY_DRIFT = 0.05
LEAST_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class StabilityCheck:
    """One check of a model in operation.

    Attributes:
        check: ``soak_latency``, ``soak_memory``, ``restart``, ``damaged`` or ``fall_back``.
        passed: Whether it held.
        seconds: How long it took: of the last three, until the answer or the refusal was there.
        detail: What was found, in numbers or words.
        said: The template and values of ``detail`` where it is a sentence.
    """

    check: str
    passed: bool
    seconds: float
    detail: str
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, check: str, passed: bool, seconds: float, detail: Said) -> StabilityCheck:
        """A check with what was found in words."""
        return cls(check=check, passed=passed, seconds=seconds, detail=str(detail), said=templates_of(detail))


def check_stability(
    model: Path,
    fall_back: Path,
    shape: Sequence[int],
    *,
    seconds: float,
    threads: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a model for a while, kill and restart it, damage its file, and fall back to the original.

    Args:
        model: The ONNX file to deploy.
        fall_back: The original as an ONNX file.
        shape: Of one batch of images.
        seconds: Length of the soak.
        threads: Of one operation.
        should_stop: Asked once a window.

    Returns:
        A JSON-ready object: ``checks`` as in ``StabilityCheck``, and ``windows`` of the soak (elapsed
        seconds, median_ms, memory_bytes).

    Raises:
        QafError: If the undamaged model does not run.
        RunCancelled: If stopped.
    """
    options = ["--shape", ",".join(map(str, shape)), "--threads", str(threads)]
    digest = ["--sha256", checksum(model)]
    ready, windows = _soak([str(model), *digest, *options, "--seconds", str(seconds)], should_stop)
    checks = _judge_windows(windows, seconds)
    checks.append(_restart(model, [*digest, *options], ready["answer"]))
    with scratch_folder(model.stat().st_size) as folder:
        damaged = folder / model.name
        shutil.copyfile(model, damaged)
        with damaged.open("r+b") as file:  # one byte in the middle: ONNX Runtime itself may not notice
            file.seek(model.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 0xFF]))
        checks.append(_refused([str(damaged), *digest, *options, "--seconds", "0"]))
        fallen = ["--fall-back", str(fall_back), "--fall-back-sha256", checksum(fall_back)]
        checks.append(_fall_back([str(damaged), *digest, *options, *fallen, "--seconds", "0"]))
    return {"checks": [asdict(check) for check in checks], "windows": windows}


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", __name__, *arguments, "--parent", str(os.getpid())]


def _soak(
    arguments: Sequence[str], should_stop: Callable[[], bool]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = []
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,  # a pipe fills up unread
        subprocess.Popen(
            _command(arguments), env=child_environment(), stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                lines.append(json.loads(line))
                if should_stop():
                    raise RunCancelled
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()
        process.wait()
        log.seek(0)
        errors = log.read()
    if process.returncode != 0 or not lines:
        raise QafError("the exported model does not run", got=_last_line(errors), remedy="export it again")
    return lines[0], lines[1:]


def _judge_windows(windows: list[dict[str, Any]], seconds: float) -> list[StabilityCheck]:
    if len(windows) < LEAST_WINDOWS:
        raise QafError(
            "the soak was too short to tell drift",
            got=say("{count} windows", count=len(windows)),
            expected=say("at least {least}", least=LEAST_WINDOWS),
            remedy="let it last longer",
        )
    quarter = max(1, len(windows) // 4)
    checks = []
    for check, key, most, unit in (
        ("soak_latency", "median_ms", LARGEST_LATENCY_DRIFT, 1.0),
        ("soak_memory", "memory_bytes", LARGEST_MEMORY_DRIFT, 1e6),
    ):
        # The first window warms up: allocations of the first runs are no drift.
        values = [row[key] / unit for row in windows[1:]]
        first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
        drift = last / first - 1 if first > 0 else 0.0
        name = "ms" if key == "median_ms" else "MB"
        detail = f"{first:.3g} → {last:.3g} {name} ({100 * drift:+.1f} %)"
        checks.append(StabilityCheck(check=check, passed=drift <= most, seconds=seconds, detail=detail))
    return checks


def _restart(model: Path, options: Sequence[str], answer: str) -> StabilityCheck:
    """Killed while it answers, then started again: until the first answer, which must be the same."""
    arguments = [str(model), *options, "--seconds", str(START_SECONDS)]
    with subprocess.Popen(
        _command(arguments), env=child_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout is not None:
            process.stdout.readline()
        process.kill()
    began = time.perf_counter()
    done = _run([str(model), *options, "--seconds", "0"])
    seconds = time.perf_counter() - began
    reply = _first_line(done)
    same = reply.get("answer") == answer
    detail = say("the same answer") if same else say("another answer")
    if done.returncode:
        detail = _last_line(done.stderr)
    return StabilityCheck.of("restart", done.returncode == 0 and same, seconds, detail)


def _refused(arguments: Sequence[str]) -> StabilityCheck:
    began = time.perf_counter()
    done = _run(arguments)
    seconds = time.perf_counter() - began
    refused = done.returncode != 0
    detail = _last_line(done.stderr) if refused else say("the damaged file answered")
    return StabilityCheck.of("damaged", refused, seconds, detail)


def _fall_back(arguments: Sequence[str]) -> StabilityCheck:
    began = time.perf_counter()
    done = _run(arguments)
    seconds = time.perf_counter() - began
    reply = _first_line(done)
    passed = done.returncode == 0 and bool(reply.get("fallen_back"))
    detail = Said(str(reply["model"])) if "model" in reply else _last_line(done.stderr)
    return StabilityCheck.of("fall_back", passed, seconds, detail)


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            _command(arguments),
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise QafError(
            "the exported model does not start",
            got=say("nothing in {seconds:.0f} s", seconds=START_SECONDS),
        ) from error


def _first_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    line = (done.stdout.splitlines() or ["{}"])[0]
    reply: dict[str, Any] = json.loads(line)
    return reply


def _last_line(text: str) -> Said:
    lines = text.strip().splitlines()
    return Said(lines[-1][:200]) if lines else say("no message")


# The program that serves a model


def serve(arguments: Sequence[str] | None = None) -> int:
    """Open a model and answer for some seconds; one JSON object a line on stdout.

    The first tells which file answers and the digest of its answer, the others each a window.

    Returns:
        0, or 3 where no file could be used: the reason is on stderr.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--fall-back", type=Path)
    parser.add_argument("--fall-back-sha256", default="")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--parent", type=int, help="a process: this one ends with it")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        end_with(options.parent)
    shape = tuple(map(int, options.shape.split(",")))
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    files = [(options.model, options.sha256)]
    if options.fall_back is not None:
        files.append((options.fall_back, options.fall_back_sha256))
    for place, (path, digest) in enumerate(files):
        try:
            if checksum(path) != digest:
                raise ValueError(f"{path.name} is damaged: its SHA-256 is not {digest[:12]}…")
            run = one_inference(open_session(path, threads=options.threads), images)
            answer = hashlib.sha256(
                b"".join(np.asarray(part).tobytes() for part in _parts(run()))
            ).hexdigest()
        except Exception as error:  # ONNX Runtime has many of its own
            sys.stderr.write(" ".join(str(error).split()) + "\n")
            continue
        _send({"model": path.name, "fallen_back": place > 0, "answer": answer})
        _answer_for(run, options.seconds)
        return 0
    return 3


def _parts(outputs: Any) -> Sequence[Any]:
    return outputs if isinstance(outputs, list | tuple) else [outputs]


def _answer_for(run: Callable[[], object], seconds: float) -> None:
    began = time.perf_counter()
    for window in range(WINDOWS if seconds > 0 else 0):
        until = began + seconds * (window + 1) / WINDOWS
        times: list[float] = []
        while not times or time.perf_counter() < until:
            before = time.perf_counter()
            run()
            times.append((time.perf_counter() - before) * 1e3)
        elapsed = time.perf_counter() - began
        _send({"elapsed": elapsed, "median_ms": float(np.median(times)), "memory_bytes": _resident_bytes()})


def _resident_bytes() -> int:
    """Memory this process holds now; 0 where the system does not tell."""
    try:
        with Path("/proc/self/status").open(encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0


def _send(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(serve())
