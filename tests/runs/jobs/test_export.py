"""Exports of stored runs: files whole or not at all, reports beside the run, faults in one line."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from packed_networks import pack_at_random

from qaf_core.cli.entry import main
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.deploy.onnx_export.report import ExportReport, read_report
from qaf_core.deploy.packed.open import load
from qaf_core.deploy.runtime.target import saturates_products
from qaf_core.errors import PlanError, QafError
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.cost import plan_cost
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.jobs.export import export_run
from qaf_core.runs.jobs.exported_models import prepare_models
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: writing fails midway, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read_reports(folder: Path) -> list[ExportReport]:
    reports = map(read_report, sorted(folder.glob("export-*.json")))
    return [report for report in reports if report is not None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with a completed run of digits/cnn, its codes at random, and the run's id."""
    folder = tmp_path_factory.mktemp("made") / "workspace"
    with Store(folder) as store:
        return folder, make_run(store, pack_at_random)


@pytest.fixture
def store(made: tuple[Path, str], workspace: Path) -> Iterator[Store]:
    """The store of a copy of that workspace."""
    shutil.copytree(made[0], workspace)
    with Store(workspace) as opened:
        yield opened


@pytest.fixture
def run_id(made: tuple[Path, str], store: Store) -> str:
    """The completed run, in the store's workspace."""
    return made[1]


def make_run(store: Store, pack: Any, activation_bits: int = 8) -> str:
    source = find_model("digits/cnn")
    model = build_model(source)
    inventory = take_inventory(model, source.input_shape)
    plan = plan_for_ratio(
        inventory, model=source.id, ratio=2.0, bits=4, activation_bits=activation_bits, method="joint"
    )
    run_id = store.create_run(RunRequest(model=source.id, plan=plan.to_dict(), images=40))
    card = {"model": source.id, "architecture": source.architecture, "input_shape": source.input_shape,
            "mean": source.preprocessing.mean, "std": source.preprocessing.std,
            "classes": source.classes, "method": "joint",
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
    assert kept.to_dict() == told
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_the_packed_file_is_copied_and_checked(
    store: Store, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    assert main(["export", run_id, "--format", "packed", "--out", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.count("passed") == 3
    assert path.read_bytes() == (store.run_folder(run_id) / "model.safetensors").read_bytes()
    load(path)
    (kept,) = read_reports(store.run_folder(run_id))
    assert kept.format == "packed"
    assert kept.weights_stored_as == {"4 bits": 3, "8 bits": 2}


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
    store.finish(other, "completed", {"cost": {**store.run(run_id).result["cost"], "size_bytes": 9_000}})
    path = tmp_path / "model.safetensors"
    line = bad_input(capsys, other, "--format", "packed", "--out", str(path))
    assert "size as promised" in line
    assert "9,000 promised" in line
    assert not path.exists()
    assert not read_reports(store.run_folder(other))[0].passed
    assert main(["export", other, "--format", "packed", "--out", str(path), "--force"]) == 0
    assert "FAILED" in capsys.readouterr().out
    assert path.exists()


@pytest.mark.parametrize(
    ("format", "precision", "line"),
    [
        ("onyx", "int8", "unknown format.*packed, onnx"),
        ("onnx", "int4", "unknown precision.*int8, int8-fast, fp32"),
    ],
)
def test_bad_options_are_told(
    store: Store, run_id: str, tmp_path: Path, format: str, precision: str, line: str
) -> None:
    with pytest.raises(PlanError, match=line):
        export_run(store, run_id, tmp_path / "model", format=format, precision=precision)


def test_an_unknown_target_is_told(store: Store, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="unknown target; got that; expected this, any"):
        export_run(store, run_id, tmp_path / "model", format="onnx", target="that")


def test_the_fast_file_is_the_timed_one_and_says_what_differs(
    finished_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run_id = finished_run
    path = tmp_path / "fast.onnx"
    command = [
        "export",
        run_id,
        "--format",
        "onnx",
        "--precision",
        "int8-fast",
        "--workspace",
        str(workspace),
    ]
    assert main([*command, "--out", str(path)]) == 0
    out = capsys.readouterr().out
    assert "some answers differ from the evaluated network's" in out
    assert "of 100 evaluation images agree" in out
    with Store(workspace) as store:
        timed = onnx.load(prepare_models(store, run_id).paths["factorized_int8"])
        (kept,) = [row for row in read_reports(store.run_folder(run_id)) if row.precision == "int8-fast"]
    made = onnx.load(path)
    assert list(made.graph.initializer) == list(timed.graph.initializer)
    assert list(made.graph.node) == list(timed.graph.node)
    assert json.loads(made.metadata_props[-1].value)["precision"] == "int8-fast"
    stored = kept.weights_stored_as  # unsigned where this processor would cut off products of signed ones
    assert set(stored) <= ({"int8", "uint8"} if saturates_products() else {"int8"})
    assert sum(stored.values()) == 7
    assert sum(kept.integer_operators.values()) >= 7


def test_a_fast_file_that_disagrees_is_refused_unless_forced(
    finished_run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace, run_id = finished_run
    noise = [torch.full((2, 1, 8, 8), 1e3)]  # ranges of glaring images are far too wide for all others
    monkeypatch.setattr("qaf_core.runs.jobs.export.range_images", lambda *_: noise)
    path = tmp_path / "fast.onnx"
    command = [run_id, "--format", "onnx", "--precision", "int8-fast", "--out", str(path)]
    line = bad_input(capsys, *command, "--workspace", str(workspace))
    assert "agreement of at least 99.5 %" in line
    assert not path.exists()
    assert main(["export", *command, "--workspace", str(workspace), "--force"]) == 0
    assert path.exists()


def test_files_for_any_processor_say_the_same(
    finished_run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace, run_id = finished_run
    monkeypatch.setattr("qaf_core.deploy.runtime.target.saturates_products", lambda: False)
    told, largest = {}, {}
    for target in ("this", "any"):
        path = tmp_path / f"{target}.onnx"
        options = ["--precision", "int8-fast", "--target", target, "--workspace", str(workspace), "--json"]
        assert main(["export", run_id, "--format", "onnx", "--out", str(path), *options]) == 0
        told[target] = json.loads(capsys.readouterr().out)
        weights = [
            numpy_helper.to_array(row).astype(int)
            for row in onnx.load(path).graph.initializer
            if row.data_type == onnx.TensorProto.INT8
        ]
        largest[target] = max(int(abs(values).max()) for values in weights)
    assert told["any"]["target"] == "any"
    assert told["any"]["agreement"]["share"] >= 0.995
    # Of unsigned by signed numbers only products within ±64 are never cut off.
    assert largest["this"] > 64 >= largest["any"]


@pytest.mark.parametrize(
    ("format", "limit", "message"),
    [("packed", 20_000, "cannot be written"), ("onnx", 38_000, "temporary folder takes no more files")],
)
def test_a_full_disk_leaves_no_half_file(
    store: Store, run_id: str, tmp_path: Path, format: str, limit: int, message: str
) -> None:
    out = tmp_path / "out"
    with full_disk(limit), pytest.raises(QafError, match=message):
        export_run(store, run_id, out / "model", format=format)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("limit", [20_000, 38_000])
def test_a_full_disk_is_told_in_a_line(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    out = tmp_path / "out"
    with full_disk(limit):
        told = bad_input(capsys, run_id, "--format", "onnx", "--out", str(out / "model"))
    assert "full" in told or "takes no more files" in told
    assert not out.exists() or not list(out.iterdir())


def test_a_workspace_that_can_only_be_read_is_exported_from(
    store: Store, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "read_only", True)
    monkeypatch.setattr("qaf_core.runs.store.store.Store", lambda _: store)
    command = ["export", run_id, "--format", "packed", "--out", str(tmp_path / "model.safetensors")]
    assert main([*command, "--workspace", str(store.workspace)]) == 0
    assert (tmp_path / "model.safetensors").is_file()


def test_ranges_are_fitted_for_runs_without(
    store: Store, pack: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = make_run(store, pack, activation_bits=32)
    command = ["export", run_id, "--format", "onnx", "--out", str(tmp_path / "model.onnx"), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["integer_operators"].values()) == 8
    assert told["agreement"]["share"] == 1.0
