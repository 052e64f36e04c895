"""Malformed inputs are taken, or refused in one line: the short form of ``benchmarks/hostile.py``."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from malformed import Inputs

from benchmarks import hostile
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store


@pytest.fixture
def attacked(finished_run: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """A copy of a workspace with a finished run."""
    workspace, run_id = finished_run
    return Path(shutil.copytree(workspace, tmp_path / "attacked")), run_id


def test_commands(attacked: tuple[Path, str]) -> None:
    assert hostile.attack_commands(*attacked, count=30) == []


@pytest.mark.parametrize(
    "command",
    [
        ["compress", "digits/cnn", "--ratio", "2", "--bits", "4", "--seed", str(2**64)],
        ["plan", "digits/cnn", "--ratio", "2", "--bits", "4", "--out", "/"],
        ["compress", "digits/cnn", "--bits", "8", "--method", "dense", "--data", "{npy}"],
        ["compress", "digits/cnn", "--plan", "{endless}", "--images", "8", "--no-check"],
        ["export", "{run}", "--format", "packed", "--out", "/"],
        ["export", "{run}", "--format", "packed", "--out", "/dev/full"],
    ],
)
def test_what_once_was_an_internal_error_or_had_no_end(
    attacked: tuple[Path, str], tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = Inputs(tmp_path, random.Random(0), *attacked)
    files = {"run": attacked[1], "npy": inputs.array_as_npz(), "endless": inputs.plan_with(starts=10**9)}
    words = [word.format(**files) for word in command]
    assert hostile.qaf([*words, "--workspace", str(attacked[0])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_results_of_device_kits(store: Store) -> None:
    run_id = store.create_run(RunRequest(model="digits/cnn"))
    store.finish(run_id, "completed", {"latencies": []})
    store.run_folder(run_id).mkdir(parents=True)
    assert hostile.attack_results(store.workspace, run_id, count=60) == []
