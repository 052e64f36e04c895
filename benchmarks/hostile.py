"""Malformed inputs of all kinds: each must be taken, or refused in one line; prints one JSON object.

    python benchmarks/hostile.py [--count 400] [--results 50] [--damaged 20] [--first 0]

``commands`` gives the command line plans, models, images, checkpoints, masks and options that are altered,
cut off or absurd; ``results`` reads altered results of a device kit; ``pages`` draws every page over a
workspace of which one thing is damaged. A fault is an internal error, more than one line on stderr, an answer
that does not come within ``LIMIT_SECONDS`` of processor time, or a part of a page that is not drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from malformed import MODEL, Inputs, altered, spoilt

from qaf_core.cli.entry import main as qaf
from qaf_core.deploy.runtime.measure_kit import KIT_SCHEMA_VERSION, result_checksum
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import QafError
from qaf_core.runs.jobs.device_kit import read_kit_result
from qaf_core.runs.store.store import Store

LIMIT_SECONDS = 60.0
PAGES = ("start", "models", "explore", "run", "tradeoffs", "layers", "export", "decide")
PARTS = ("verdict", "changes", "checks", "case", "risks", "report")  # of Decide
COLUMNS = (
    ("runs", "request"), ("runs", "result"), ("runs", "error"), ("runs", "created_at"),
    ("layers", "row"), ("layers", "details"), ("events", "data"),
)  # fmt: skip


class TooLong(BaseException):
    """A command that went on and on."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Break off what takes more processor time, or ten times as long by the clock (it may wait for ever)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


def attack_commands(workspace: Path, run_id: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Give the command line so many malformed inputs; the faults, each with the command that shows it."""
    faults: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for number in range(first, first + count):
            command = Inputs(Path(place), random.Random(number), workspace, run_id).next()
            fault = try_command(command)
            if fault is not None:
                faults.append({"number": number, "command": [word[:200] for word in command], "fault": fault})
    return faults


def try_command(command: list[str]) -> str | None:
    """What is wrong with how a command ends, or None."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with limited(LIMIT_SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = qaf(command)
    except TooLong:
        return "no end"
    except BaseException as error:
        return f"{type(error).__name__} came through: {error}"
    stderr = err.getvalue()
    if code == 1 or "Internal error" in stderr:
        return f"exit code {code}: {stderr[-300:]}"
    if code == 2 and [line for line in stderr.splitlines() if not _is_progress(line)][1:]:
        return f"more than a line: {stderr[-300:]}"
    return None


def _is_progress(line: str) -> bool:
    return line.startswith(("note:", "warning:")) or line[:13].strip()[:1].isdigit()


def result_of_kit(run_id: str, files: dict[str, str]) -> dict[str, Any]:
    """A result as the kit's script writes it."""
    row = {"median_ms": 1.0, "p5_ms": 0.9, "p95_ms": 1.2, "n": 30}
    ratio = {"value": 1.0, "low": 0.9, "high": 1.1}
    result: dict[str, Any] = {
        "schema_version": KIT_SCHEMA_VERSION, "run_id": run_id, "files": files, "batch": 1,
        "input_shape": [1, 8, 8],
        "latencies": {str(name): dict(row) for name in ModelFile},
        "ratios": {str(name): dict(ratio) for name in ModelFile}, "ratio_to_dense_int8": dict(ratio),
        "peak_memory_bytes": {str(name): 10**6 for name in ModelFile},
        "same_answers": {str(name): 1.0 for name in ModelFile}, "compared_images": 64, "failed": {},
        "machine": {
            "processor": "p", "cpu_count": 2, "platform": "l", "python": "3", "onnxruntime": "1",
            "threads": 2,
        },
    }  # fmt: skip
    return result


def attack_results(workspace: Path, run_id: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Read so many altered results of a kit; the faults."""
    files = {"a.onnx": "0" * 64}
    folder, faults = workspace / "runs" / run_id, []
    (folder / "device-kit-test.json").write_text(json.dumps({"files": files}))
    with Store(workspace) as store, tempfile.TemporaryDirectory() as place:
        for number in range(first, first + count):
            result = altered(result_of_kit(run_id, files), random.Random(number))
            path = Path(place) / "result.json"
            with contextlib.suppress(TypeError, RecursionError):
                result["checksum"] = result_checksum(result)
            path.write_text(json.dumps(result))
            try:
                read_kit_result(store, run_id, path)
            except QafError as error:
                if "\n" in str(error) or not str(error).isprintable():
                    faults.append({"number": number, "fault": repr(str(error))})
                continue
            except Exception as error:
                faults.append({"number": number, "fault": f"{type(error).__name__}: {error}"})
                continue
            shown = try_command(["show", run_id, "--workspace", str(workspace)])
            if shown is not None:
                faults.append({"number": number, "fault": shown})
    (folder / "device-kit-test.json").unlink()
    return faults


def damages(workspace: Path, run_id: str, chance: random.Random) -> Iterator[str]:
    """Damage one thing after another, and mend it again when asked for the next; what it is, in words."""
    folder = workspace / "runs" / run_id
    names = (
        "preview.json", "latency.json", "device-latency.json", "exports/model.json",
        "exports/model-int8.json", "model.safetensors", "criteria.json", "economics.json", "review.json",
        "predictions.npz", "pictures.json", "robustness.json", "stability.json",
    )  # fmt: skip
    while True:
        for name in (*names, "settings.json"):
            path = (workspace if name == "settings.json" else folder) / name
            before = path.read_bytes() if path.is_file() else None
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(spoilt(before or b'{"schema_version": 1}', chance))
            yield name
            path.unlink() if before is None else path.write_bytes(before)
        for table, column in COLUMNS:
            yield from _damaged_column(workspace, table, column, run_id, chance)


def _damaged_column(
    workspace: Path, table: str, column: str, run_id: str, chance: random.Random
) -> Iterator[str]:
    key = "id" if table == "runs" else "run_id"
    with Store(workspace) as store:
        rows = store.rows(f"SELECT rowid, {column} FROM {table} WHERE {key} = ? LIMIT 1", (run_id,))
        for row, value in rows:
            try:
                odd: Any = json.dumps(altered(json.loads(value), chance))
            except (TypeError, ValueError):
                odd = "x" if value is None else f"{value}x"
            for replacement in (odd, odd[: len(odd) // 2]):
                with store.transaction() as connection:
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (replacement, row))
                yield f"{table}.{column}"
                with store.transaction() as connection:
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))


def attack_pages(workspace: Path, run_id: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Draw every page over so many damages; the faults: parts that are not drawn, and damage nobody names."""
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    from dashboard.widgets import ui

    faults = []
    changes = damages(workspace, run_id, random.Random(first))
    for number in range(count):
        what = next(changes)
        for command in (["runs"], ["show", run_id]):
            fault = try_command([*command, "--workspace", str(workspace)])
            if fault is not None:
                faults.append({"number": number, "damage": what, "page": command[0], "fault": fault})
        for page in PAGES:
            st.cache_resource.clear()
            st.cache_data.clear()
            ui.keep_worker = lambda: None
            test = AppTest.from_string(f"from dashboard import app\napp.main({page!r})", default_timeout=120)
            test.query_params["run"] = run_id
            test.query_params["part"] = PARTS[number % len(PARTS)]
            test.run()
            shown = [element.value for kind in (test.error, test.exception) for element in kind]
            faults += [
                {"number": number, "damage": what, "page": page, "fault": str(text)[:300]}
                for text in shown
                if "could not be drawn" in str(text) or text in [one.value for one in test.exception]
            ]
    next(changes)
    return faults


def prepared(folder: Path) -> tuple[Path, str]:
    """A workspace with a finished run."""
    workspace = folder / "workspace"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = qaf(
            ["compress", MODEL, "--bits", "8", "--method", "dense", "--images", "64", "--no-check", "--json",
             "--workspace", str(workspace)]
        )  # fmt: skip
    assert code == 0
    return workspace, str(json.loads(out.getvalue())["run_id"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, count in (("count", 400), ("results", 50), ("damaged", 20), ("first", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["QAF_WORKSPACE"] = str(Path(place) / "workspace")
        os.environ["XDG_CONFIG_HOME"] = str(Path(place) / "config")
        workspace, run_id = prepared(Path(place))
        results = {
            "commands": attack_commands(workspace, run_id, options.count, options.first),
            "results": attack_results(workspace, run_id, options.results, options.first),
            "pages": attack_pages(workspace, run_id, options.damaged, options.first),
        }
    print(
        json.dumps({"faults": {name: len(faults) for name, faults in results.items()}, **results}, indent=1)
    )
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
