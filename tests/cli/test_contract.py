"""The command line's contracts: JSON, exit codes, one clear line for every bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qaf_core.cli.entry import main
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.runs.store.store import Store

QUICK = ("--ratio", "2", "--bits", "4")
RESULT_KEYS = {
    "run_id", "status", "model", "method", "plan", "baseline", "compressed", "drop", "drop_ci95", "cost",
    "baseline_cost", "layers", "seconds", "peak_memory_bytes",
}  # fmt: skip
LAYER_KEYS = {
    "name", "structure", "rank", "bits", "relative_error", "float_relative_error", "status", "seconds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_workspace(workspace: Path) -> None:
    """Every command here works in an empty workspace."""


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "exactly one line of JSON"
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def bad_input(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line told about bad input."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A plan for digits/cnn whose options keep the solver short."""
    return write_plan(tmp_path / "plan.json", "digits/cnn")


def write_plan(path: Path, model: str, structure: str = "cp") -> Path:
    inventory = load_inventory(find_model(model))
    plan = plan_for_ratio(inventory, model=model, ratio=2.0, bits=4, structure=structure)
    short = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}
    path.write_text(replace(plan, options=short).to_json())
    return path


def compressed(capsys: pytest.CaptureFixture[str], plan: Path, *arguments: str) -> dict[str, Any]:
    return run_json(capsys, "compress", "digits/cnn", "--plan", str(plan), "--images", "100", *arguments)


# What is there, and what it would cost


def test_models_lists_what_can_be_compressed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "models")["models"]
    ids = {row["id"] for row in rows}
    assert {"digits/cnn", "inspection/resnet18", "cifar/resnet20", "torchvision/resnet18"} <= ids
    assert main(["models"]) == 0
    assert "digits/cnn" in capsys.readouterr().out


def test_inspect_tells_layers_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run_json(capsys, "inspect", "cifar/resnet20")["layers"]
    wide = [row for row in rows if row["kind"] == "conv2d"]
    assert len(wide) == 19
    assert wide[0]["weight_shape"] == [16, 3, 3, 3]
    assert main(["inspect", "digits/cnn"]) == 0
    assert "MACs" in capsys.readouterr().out


@pytest.fixture(scope="module")
def resnet18_rows() -> tuple[LayerInfo, ...]:
    """The inventory of torchvision's ResNet-18, taken once."""
    return load_inventory(find_model("torchvision/resnet18"))


@pytest.mark.parametrize(
    ("ratio", "bits", "gbops", "percent", "gmacs"),
    [("1.2", "4", "58.30", "3.13", "1.679"), ("2", "4", "38.61", "2.07", "1.064"),
     ("2.7", "4", "30.95", "1.66", "0.824"), ("2.5", "6", "44.46", "2.39", "0.879"),
     ("3", "8", "48.39", "2.60", "0.756")],
)  # fmt: skip
def test_cost_reproduces_the_papers_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, resnet18_rows: tuple[LayerInfo, ...],
    ratio: str, bits: str, gbops: str, percent: str, gmacs: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("qaf_core.data.models.catalogue.load_inventory", lambda _source: resnet18_rows)
    value = run_json(
        capsys, "cost", "torchvision/resnet18", "--ratio", ratio, "--bits", bits, "--act-bits", "8",
        "--convention", "paper",
    )  # fmt: skip
    assert f"{value['bops'] / 1e9:.2f}" == gbops
    assert f"{100 * value['bops'] / value['baseline_cost']['bops']:.2f}" == percent
    assert f"{value['cost']['macs'] / 1e9:.3f}" == gmacs


def test_cost_follows_the_plan_and_the_method(capsys: pytest.CaptureFixture[str], plan_file: Path) -> None:
    joint = run_json(capsys, "cost", "digits/cnn", *QUICK)
    dense = run_json(capsys, "cost", "digits/cnn", "--bits", "4", "--method", "dense")
    assert joint["cost"]["params"] < dense["cost"]["params"]
    assert run_json(capsys, "cost", "digits/cnn", "--plan", str(plan_file))["cost"] == joint["cost"]
    assert main(["cost", "digits/cnn", *QUICK]) == 0
    told = capsys.readouterr()
    assert "bit operations" in told.out
    assert told.err == ""


def test_a_rank_that_makes_a_layer_larger_is_a_warning(
    capsys: pytest.CaptureFixture[str], plan_file: Path
) -> None:
    plan = json.loads(plan_file.read_text())
    row = next(row for row in plan["layers"] if row["structure"] == "cp")
    row["rank"] = 250
    plan_file.write_text(json.dumps(plan))
    assert main(["cost", "digits/cnn", "--plan", str(plan_file), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["model"] == "digits/cnn"
    warning = f"warning: rank 250 of layer {row['name']} holds more numbers than the layer itself"
    assert told.err.splitlines() == [warning]


# Runs


def test_compress_prints_the_whole_result_and_stores_it(
    capsys: pytest.CaptureFixture[str], plan_file: Path
) -> None:
    result = compressed(capsys, plan_file, "--name", "first", "--seed", "3")
    assert result.keys() >= RESULT_KEYS
    assert result["status"] == "completed"
    assert result["plan"]["seed"] == 3
    assert result["seconds"].keys() >= {"factorize", "calibrate", "evaluate", "total"}
    for key in ("baseline", "compressed"):
        assert result[key].keys() >= {"metric", "value", "n", "ci95"}
        assert result[key]["n"] == 100
        low, high = result[key]["ci95"]
        assert 0 <= low <= result[key]["value"] <= high <= 1
    assert result["drop"] == pytest.approx(result["baseline"]["value"] - result["compressed"]["value"])
    assert result["drop_ci95"][0] <= result["drop"] <= result["drop_ci95"][1]
    for key in ("cost", "baseline_cost"):
        assert result[key].keys() >= {"params", "size_bytes", "macs", "bops"}
    assert all(row.keys() >= LAYER_KEYS for row in result["layers"])
    changed = [row["name"] for row in result["plan"]["layers"] if row["structure"] != "keep"]
    assert [row["name"] for row in result["layers"]] == changed

    listed = run_json(capsys, "runs")["runs"]
    assert [row["run_id"] for row in listed] == [result["run_id"]]
    shown = run_json(capsys, "show", result["run_id"])
    assert {key: shown[key] for key in result} == result
    assert run_json(capsys, "show", result["run_id"][:8])["run_id"] == result["run_id"]
    assert main(["show", result["run_id"]]) == 0
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "first" in printed
    assert "bit operations" in printed


@pytest.mark.parametrize(
    ("model", "layer", "metric", "extra"),
    [
        ("inspection/unet", "up.2.3", "miou", "pixel_accuracy"),
        ("inspection/detector", "head.classification_head.conv.3", "map50", "map"),
    ],
)
def test_masks_and_boxes_are_compressed_measured_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, layer: str, metric: str, extra: str
) -> None:
    source = find_model(model)
    images = load_images("builtin", source, split="evaluation", limit=24)
    targets = {"y": images.targets["masks"]} if metric == "miou" else images.targets
    np.savez(tmp_path / "parts.npz", x=images.images, **targets)
    plan = json.loads(write_plan(tmp_path / "plan.json", model).read_text())
    for row in plan["layers"]:
        if row["name"] != layer:
            row.update(structure="keep", rank=None, bits=None)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    files = ("--plan", str(tmp_path / "plan.json"), "--data", str(tmp_path / "parts.npz"))
    result = run_json(capsys, "compress", model, *files)
    assert [row["name"] for row in result["layers"]] == [layer]
    for which in ("baseline", "compressed"):
        assert result[which]["metric"] == metric
        assert result[which]["n"] == 18
        assert result[which]["value"] > 0.5
        assert list(result[which]["extra"]) == [extra]
    assert abs(result["drop"]) < 0.1
    assert main(["show", result["run_id"]]) == 0
    printed = capsys.readouterr().out
    assert f"{metric} " in printed
    assert "agreement with the original" in printed
    assert "chipped edge" in printed


def test_progress_goes_to_stderr_and_the_summary_to_stdout(
    capsys: pytest.CaptureFixture[str], plan_file: Path
) -> None:
    assert main(["compress", "digits/cnn", "--plan", str(plan_file), "--images", "50"]) == 0
    captured = capsys.readouterr()
    assert "features.3" in captured.err
    assert "points (95 %: " in captured.out
    assert "features.3" not in captured.out
    told = "images: 128 images calibrate, 50 others evaluate: drawn separately, no image in both."
    assert told in captured.out
    run_id = captured.out.split()[1].rstrip(":")
    assert main(["show", run_id]) == 0
    assert told in capsys.readouterr().out


def test_spatial_forms_are_compressed_and_exported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "plan.json", "digits/cnn", structure="spatial")
    found = compressed(capsys, plan)
    forms = {row["name"]: row["structure"] for row in found["layers"]}
    assert "spatial" in forms.values()
    assert found["compressed"]["value"] > 0.3
    for form in ("packed", "onnx"):
        path = str(tmp_path / f"model.{form}")
        told = run_json(capsys, "export", found["run_id"], "--format", form, "--out", path)
        assert told["passed"] if form == "onnx" else Path(path).stat().st_size


def test_the_same_seed_gives_the_same_result(
    capsys: pytest.CaptureFixture[str], plan_file: Path, tmp_path: Path
) -> None:
    first, second = (
        compressed(capsys, plan_file, "--seed", "1", "--workspace", str(tmp_path / name)) for name in "ab"
    )
    errors = [[row["relative_error"] for row in result["layers"]] for result in (first, second)]
    assert errors[0] == errors[1]
    assert first["compressed"] == second["compressed"]


def test_a_real_checkpoint_on_real_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = os.environ.get("QAF_REAL_DATA")
    if not folder:
        pytest.skip("QAF_REAL_DATA names no folder with the real checkpoint and images")
    plan = write_plan(tmp_path / "plan.json", "cifar/resnet20")
    result = run_json(
        capsys, "compress", "cifar/resnet20", "--plan", str(plan), "--images", "200",
        "--weights", f"{folder}/cifar10_resnet20.safetensors", "--data", f"{folder}/cifar10_eval_2000.npz",
        "--calibration", f"{folder}/cifar10_calibration_1024.npz",
    )  # fmt: skip
    assert result["baseline"]["n"] == 200
    assert 0.86 < result["baseline"]["value"] < 0.95
    assert result["compressed"]["value"] > 0.6
    assert result["file"]["size_bytes"] == pytest.approx(result["cost"]["size_bytes"], rel=0.01)


def test_a_users_own_network_comes_by_module_and_factory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))\n"
        "    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), *head)\n"
        "    net.input_shape = (3, 16, 16)\n"
        "    net.classes = ('a', 'b', 'c', 'd')\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = run_json(capsys, "inspect", "own_network:make")["layers"]
    assert [row["kind"] for row in rows] == ["conv2d", "conv2d", "linear"]


@pytest.mark.parametrize("interrupts", [1, 2])
def test_ctrl_c_stops_and_keeps_the_run(workspace: Path, tmp_path: Path, interrupts: int) -> None:
    path = write_plan(tmp_path / "plan.json", "digits/cnn")
    plan = Plan.from_json(path.read_text())
    path.write_text(replace(plan, options={**plan.options, "rounding_rounds": 100_000, "patience": 100_000,
                                           "tolerance": 0.0}).to_json())  # fmt: skip
    command = [sys.executable, "-m", "qaf_core.cli", "compress", "digits/cnn", "--plan", str(path)]
    with subprocess.Popen(
        [*command, "--images", "64", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "[2/" in line:  # it goes on until it is stopped
                break
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    with Store(workspace) as store:
        (record,) = store.list_runs()
    assert record.status == "cancelled"
    assert len(record.layers) >= 1
    if interrupts == 1:
        result = json.loads(out)
        assert result["status"] == "cancelled"
        assert 0 < len(result["layers"]) < len(result["plan"]["layers"])
        assert result["cost"]["size_bytes"] > 0


@pytest.mark.parametrize("outcome", ["return 130", "raise KeyboardInterrupt"])
def test_ctrl_c_while_a_command_ends_changes_no_exit_code(outcome: str) -> None:
    script = (
        "import atexit, os, signal\n"
        "from qaf_core.cli import entry\n"
        f"def main():\n    {outcome}\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "entry.main = main\n"
        "entry.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


# Bad input


def edit_plan(path: Path, **fields: Any) -> str:
    """Change the plan's third convolution; the path."""
    plan = json.loads(path.read_text())
    row = next(row for row in plan["layers"] if row["structure"] == "cp")
    row.update(fields)
    path.write_text(json.dumps(plan))
    return str(path)


def test_an_unknown_model_is_told_with_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("inspect",), ("cost", *QUICK), ("compress", *QUICK)):
        line = bad_input(capsys, command[0], "inspection/resnet21", *command[1:])
        assert "inspection/resnet21" in line
        assert "inspection/resnet20" in line


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"rank": 0}, "rank out of range"), ({"rank": -3}, "rank out of range"),
     ({"rank": 100_000}, "rank out of range"), ({"bits": 1}, "bits out of range"),
     ({"bits": 9}, "bits out of range"), ({"structure": "magic"}, "structure"),
     ({"rank": 2.5}, "rank"), ({"bits": [4, 4]}, "bit-width")],
)  # fmt: skip
def test_rows_out_of_range_are_told(
    capsys: pytest.CaptureFixture[str], plan_file: Path, fields: dict[str, Any], said: str
) -> None:
    line = bad_input(capsys, "compress", "digits/cnn", "--plan", edit_plan(plan_file, **fields))
    assert said in line
    assert "got" in line
    assert "expected" in line


def test_plans_that_do_not_fit_are_told(
    capsys: pytest.CaptureFixture[str], plan_file: Path, tmp_path: Path
) -> None:
    assert "another model" in bad_input(capsys, "compress", "inspection/vgg", "--plan", str(plan_file))
    assert "No such file" in bad_input(capsys, "cost", "digits/cnn", "--plan", str(tmp_path / "none.json"))
    for command in ("compress", "cost", "predict"):
        for form in ("cp", "auto"):
            line = bad_input(capsys, command, "digits/cnn", "--plan", str(plan_file), "--structure", form)
            assert "--plan stands alone" in line
    line = bad_input(capsys, "compress", "digits/cnn", "--plan", str(plan_file), "--error-bound", "0.1")
    assert "got --error-bound" in line
    plan_file.write_text("{")
    assert "not valid JSON" in bad_input(capsys, "cost", "digits/cnn", "--plan", str(plan_file))
    plan_file.write_bytes(b"\xff\xfe\x00\x01")
    assert "not a text file" in bad_input(capsys, "cost", "digits/cnn", "--plan", str(plan_file))
    line = bad_input(capsys, "cost", "digits/cnn", "--plan", str(plan_file), "--ratio", "2")
    assert "--plan stands alone" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "nothing says how to compress"), (("--ratio", "2"), "nothing says"),
     (("--ratio", "0.5", "--bits", "4"), "ratio"), (("--ratio", "nan", "--bits", "4"), "ratio"),
     (("--ratio", "2", "--bits", "9"), "bits out of range"),
     ((*QUICK, "--act-bits", "1"), "activation bits"), ((*QUICK, "--method", "magic"), "unknown method"),
     ((*QUICK, "--structure", "magic"), "unknown structure"), ((*QUICK, "--images", "0"), "images"),
     ((*QUICK, "--seed", "-1"), "seed"), ((*QUICK, "--bits", "x"), "--bits"),
     ((*QUICK, "--frobnicate"), "--frobnicate"),
     (("--ratio",), "--ratio"), ((*QUICK, "--data", "nowhere"), "nowhere"),
     ((*QUICK, "--weights", "nowhere.safetensors"), "nowhere.safetensors")],
)  # fmt: skip
def test_options_out_of_range_are_told(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in bad_input(capsys, "compress", "digits/cnn", *arguments)


def test_a_model_without_weights_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--weights" in bad_input(capsys, "compress", "cifar/resnet20", *QUICK)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("keys", "another network"),
        ("shapes", "wrong shape"),
        ("nan", "NaN"),
        ("bytes", "no valid safetensors"),
    ],
)
def test_damaged_weights_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, spoil: str, said: str
) -> None:
    from safetensors.numpy import load_file, save_file

    shipped = find_model("digits/cnn").weights
    assert shipped is not None
    state = load_file(shipped)
    name = next(name for name, value in state.items() if value.ndim == 4)
    path = tmp_path / "weights.safetensors"
    if spoil == "keys":
        state["other"] = state.pop(name)
    elif spoil == "shapes":
        state[name] = np.ascontiguousarray(state[name][:, :, :2])
    elif spoil == "nan":
        state[name] = np.full_like(state[name], np.nan)
    save_file(state, path)
    if spoil == "bytes":
        path.write_bytes(path.read_bytes()[:1000])
    line = bad_input(capsys, "compress", "digits/cnn", *QUICK, "--weights", str(path))
    assert said in line


@pytest.mark.parametrize(
    ("arrays", "said"),
    [({"x": np.zeros((4, 8, 9, 3), np.uint8), "y": np.zeros(4, np.int64)}, "expected"),
     ({"x": np.zeros((4, 64, 64, 3), np.float32), "y": np.zeros(4, np.int64)}, "float32"),
     ({"x": np.zeros((0, 64, 64, 3), np.uint8), "y": np.zeros(0, np.int64)}, "images"),
     ({"x": np.zeros((4, 64, 64, 3), np.uint8), "y": np.full(4, 99)}, "99"),
     ({"x": np.zeros((4, 64, 64, 3), np.uint8), "y": np.zeros(3, np.int64)}, "3"),
     ({"z": np.zeros(3)}, "x")],
)  # fmt: skip
def test_data_that_do_not_fit_are_told_and_the_run_is_kept_as_failed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path, arrays: dict[str, Any], said: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    line = bad_input(capsys, "compress", "inspection/resnet20", *QUICK, "--data", str(path))
    assert said in line
    with Store(workspace) as store:
        (record,) = store.list_runs()
    assert record.status == "failed"
    assert record.error == line


def test_a_workspace_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for command in (("runs",), ("show", "x"), ("compress", "digits/cnn", *QUICK), ("app", "--port", "0")):
        if command[0] != "app":
            line = bad_input(capsys, *command, "--workspace", str(tmp_path / "file"))
            assert "workspace cannot be written to" in line


def test_an_unknown_run_and_an_unknown_command_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run" in bad_input(capsys, "show", "20200101")
    assert "no such run" in bad_input(capsys, "show", "%")
    assert "frobnicate" in bad_input(capsys, "frobnicate")


def test_faults_of_ours_are_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qaf_core.runs.jobs import compress

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all\nthings")

    monkeypatch.setattr(compress, "compress_network", fail)
    assert main(["compress", "digits/cnn", *QUICK, "--images", "10"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert line.startswith("Internal error: ZeroDivisionError: of all things. Details are in ")
    with Store(workspace) as store:
        (record,) = store.list_runs()
    assert record.status == "failed"
    assert record.error == line
    assert "Traceback" in (workspace / "runs" / record.id / "traceback.txt").read_text()


# The program as a process


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qaf_core.cli", *arguments],
        capture_output=True, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_help_is_quick_and_needs_no_arguments() -> None:
    began = time.monotonic()
    outcome = run_program()
    assert outcome.returncode == 0
    assert "compress" in outcome.stdout
    assert run_program("compress", "--help").returncode == 0
    assert time.monotonic() - began < 10


def test_the_program_ends_with_the_exit_codes_of_its_contract() -> None:
    assert run_program("models", "--json").returncode == 0
    outcome = run_program("inspect", "nothing")
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) == 1


def test_output_cut_off_by_a_pipe_is_no_fault() -> None:
    command = f"{sys.executable} -m qaf_core.cli models | head -n 1; exit ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in outcome.stderr
    assert "Exception" not in outcome.stderr
