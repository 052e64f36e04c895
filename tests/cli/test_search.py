"""``qaf sensitivity``, ``predict`` and ``search``: their JSON, and one clear line for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli.entry import main
from qaf_core.network.plan.types import Plan
from qaf_core.runs.store.store import Store
from qaf_core.search.sensitivity import curvature, measure, settings

MODEL = "digits/cnn"


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the model's sensitivity is known, from few settings."""
    folder = tmp_path_factory.mktemp("explored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "RATIOS", (3.0,))
        patch.setattr(measure, "ANCHORS", 2)
        patch.setattr(curvature, "PROBES", 16)
        assert main(["sensitivity", MODEL, "--workspace", str(folder)]) == 0
    return folder


def run_json(capsys: pytest.CaptureFixture[str], explored: Path, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json", "--workspace", str(explored)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def bad_input(capsys: pytest.CaptureFixture[str], explored: Path, *arguments: str) -> str:
    assert main(["search", MODEL, *arguments, "--workspace", str(explored)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_sensitivity_tells_harm_size_and_operations_of_every_setting(
    capsys: pytest.CaptureFixture[str], explored: Path
) -> None:
    found = run_json(capsys, explored, "sensitivity", MODEL)
    assert found["model"] == MODEL
    assert next(layer["name"] for layer in found["layers"]) == "features.0"
    for layer in found["layers"]:
        for row in layer["settings"]:
            assert {"structure", "rank", "bits", "harm", "size_bytes", "bops"} <= row.keys()
    assert found["baseline"]["metric"] == "top1"


def test_a_plan_is_predicted_before_it_is_run(capsys: pytest.CaptureFixture[str], explored: Path) -> None:
    gentle = run_json(capsys, explored, "predict", MODEL, "--ratio", "1.5", "--bits", "8")
    hard = run_json(capsys, explored, "predict", MODEL, "--ratio", "7", "--bits", "2")
    assert gentle["predicted"]["value"] > hard["predicted"]["value"]
    low, high = gentle["predicted"]["ci95"]
    assert 0 < low <= gentle["predicted"]["value"] <= high <= 1
    assert gentle["cost"]["size_bytes"] > hard["cost"]["size_bytes"]


def test_a_search_keeps_budgets_and_locks_and_runs_what_it_found(
    capsys: pytest.CaptureFixture[str], explored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.json"
    found = run_json(
        capsys,
        explored,
        "search",
        MODEL,
        "--budget",
        "size=16kB",
        "--budget",
        "bops=0.1x",
        "--lock",
        "features.0=dense:8",
        "--time-limit",
        "1",
        "--images",
        "100",
        "--out",
        str(out),
    )
    assert found["status"] == "completed"
    assert found["cost"]["size_bytes"] <= 16_000
    assert found["budget"] == ["size=16kB", "bops=0.1x"]
    assert found["binding"] == "size"
    assert {"value", "ci95"} <= found["predicted"].keys()
    assert {"sensitivity", "factorize", "calibrate", "evaluate", "total"} <= found["seconds"].keys()
    plan = Plan.from_json(out.read_text())
    assert (plan.layer("features.0").structure, plan.layer("features.0").bits) == ("dense", 8)
    assert found["compressed"]["value"] > 0.8
    with Store(explored) as store:
        assert store.run(found["run_id"]).plan == plan


def test_a_drop_makes_the_model_small_without_a_run(
    capsys: pytest.CaptureFixture[str], explored: Path
) -> None:
    arguments = ("search", MODEL, "--no-run", "--time-limit", "0", "--budget")
    strict, loose = (run_json(capsys, explored, *arguments, f"drop={points}pp") for points in ("0.5", "5"))
    assert loose["cost"]["size_bytes"] < strict["cost"]["size_bytes"]
    assert "run_id" not in strict


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no budget is given"),
        (("--budget", "size=20kB", "--effort", "hard"), "unknown effort"),
        (("--budget", "size=lots"), "not a budget"),
        (("--budget", "size=1kB"), "most in the way"),
        (
            ("--budget", "size=20kB", "--lock", "features.0=keep", "--lock", "features.0=dense:4"),
            "contradict",
        ),
        (("--budget", "size=20kB", "--lock", "features.7=keep"), "features.7 (locked) is most in the way"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], explored: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert told in bad_input(capsys, explored, "--no-run", "--time-limit", "0", *arguments)
