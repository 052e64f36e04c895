"""Exports of stored runs: files whole or not at all, reports beside the run, faults in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli import main
from qaf_core.data.models import build_model, find_model
from qaf_core.deploy.export import export_run
from qaf_core.deploy.packed import open_packed
from qaf_core.deploy.reports import read_reports
from qaf_core.errors import PlanError
from qaf_core.network.cost import plan_cost
from qaf_core.network.inventory import take_inventory
from qaf_core.network.plan import plan_for_ratio
from qaf_core.runs.request import RunRequest
from qaf_core.runs.store import Store

FULL_DISK = """
import resource, sys
from qaf_core.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def run_id(store: Store, pack: Any) -> str:
    """A completed run of digits/cnn, its codes at random."""
    return make_run(store, pack)


def make_run(store: Store, pack: Any, activation_bits: int = 8) -> str:
    source = find_model("digits/cnn")
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    plan = plan_for_ratio(
        inventory, model=source.id, ratio=2.0, bits=4, activation_bits=activation_bits, method="joint"
    )
    run_id = store.create_run(RunRequest(model=source.id, plan=plan.to_dict(), images=40))
    card = {"model": source.id, "architecture": source.architecture, "input_shape": source.input_shape,
            "mean": source.mean, "std": source.std, "classes": source.classes, "method": "joint",
            "activation_bits": activation_bits}  # fmt: skip
    pack(
        store.run_folder(run_id) / "model.safetensors",
        model,
        {row.name: (row.structure, row.rank, row.bits) for row in plan.layers},
        input_shape=source.input_shape,
        quantize_activations=activation_bits == 8,
        card=card,
    )
    store.finish(run_id, "completed", {"cost": plan_cost(inventory, plan).to_dict()})
    return run_id


def bad_input(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["export", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_onnx_is_exported_and_reported(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out" / "model.onnx"
    assert main(["export", run_id[:20], "--format", "onnx", "--out", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"]
    assert told["written"]
    assert told["size_bytes"] == path.stat().st_size
    assert told["agreement"]["share"] == told["agreement"]["identical"] == 1.0
    assert told["agreement"]["images"] == 40
    assert sum(told["integer_operators"].values()) == 10
    (kept,) = read_reports(store.run_folder(run_id))
    assert kept["checks"] == told["checks"]
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_the_packed_file_is_copied_and_checked(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["export", run_id, "--format", "packed", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.count("passed") == 3
    assert path.read_bytes() == (store.run_folder(run_id) / "model.safetensors").read_bytes()
    open_packed(path)
    (kept,) = read_reports(store.run_folder(run_id))
    assert kept["format"] == "packed"
    assert kept["weights_stored_as"] == {"4 bits": 3, "8 bits": 2}


def test_a_damaged_run_is_not_exported(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = store.run_folder(run_id) / "model.safetensors", str(tmp_path / "model")
    content = bytearray(packed.read_bytes())
    content[-7] ^= 1
    packed.write_bytes(content)
    for format in ("packed", "onnx"):
        assert "checksum" in bad_input(capsys, run_id, "--format", format, "--out", out)
    packed.unlink()
    assert "no compressed network" in bad_input(capsys, run_id, "--format", "packed", "--out", out)
    assert not Path(out).exists()


def test_a_size_that_was_not_promised_is_a_failed_check(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = store.create_run(RunRequest(model="digits/cnn"))
    packed = store.run_folder(other) / "model.safetensors"
    packed.parent.mkdir(parents=True)
    packed.write_bytes((store.run_folder(run_id) / "model.safetensors").read_bytes())
    store.finish(other, "completed", {"cost": {"size_bytes": 9_000}})
    path = tmp_path / "model.safetensors"
    line = bad_input(capsys, other, "--format", "packed", "--out", str(path))
    assert "size as promised" in line
    assert "9,000 promised" in line
    assert not path.exists()
    assert not read_reports(store.run_folder(other))[0]["passed"]
    assert main(["export", other, "--format", "packed", "--out", str(path), "--force"]) == 0
    assert "FAILED" in capsys.readouterr().out
    assert path.exists()


@pytest.mark.parametrize(
    ("format", "precision", "line"),
    [("onyx", "int8", "unknown format.*packed, onnx"), ("onnx", "int4", "unknown precision.*int8, fp32")],
)
def test_bad_options_are_told(
    store: Store, run_id: str, tmp_path: Path, format: str, precision: str, line: str
) -> None:
    with pytest.raises(PlanError, match=line):
        export_run(store, run_id, tmp_path / "model", format=format, precision=precision)


@pytest.mark.parametrize(("format", "limit"), [("packed", 20_000), ("onnx", 38_000)])
def test_a_full_disk_leaves_no_half_file(run_id: str, tmp_path: Path, format: str, limit: int) -> None:
    """A file may not grow beyond ``limit`` bytes: writing fails midway, as on a full disk."""
    out = tmp_path / "out"
    command = ["export", run_id, "--format", format, "--out", str(out / "model")]
    outcome = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(limit), *command], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 2, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert "cannot be written" in line
    assert not out.exists() or not list(out.iterdir())


def test_ranges_are_fitted_for_runs_without(
    store: Store, pack: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = make_run(store, pack, activation_bits=32)
    command = ["export", run_id, "--format", "onnx", "--out", str(tmp_path / "model.onnx"), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["integer_operators"].values()) == 8
    assert told["agreement"]["share"] == 1.0
