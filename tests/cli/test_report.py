"""``qaf report`` on a finished run: criteria and assumptions from files, faults in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qaf_core.cli.entry import main
from qaf_core.review.decision.economics import PRESETS
from qaf_core.runs.evidence import predictions
from qaf_core.runs.store.workspace import PACKED_NAME


def test_a_report_from_the_command_line(
    finished_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, run_id = finished_run
    workspace = tmp_path / "own"
    shutil.copytree(shared, workspace)
    (tmp_path / "criteria.json").write_text(json.dumps([{"kind": "largest_drop", "limit": 0.99}]))
    (tmp_path / "case.json").write_text(json.dumps(PRESETS["example_line"].to_dict()))
    given = ["report", run_id, "--workspace", str(workspace), "--json", "--out", str(tmp_path / "a.html")]
    files = ["--criteria", str(tmp_path / "criteria.json"), "--assumptions", str(tmp_path / "case.json")]
    assert main([*given, *files, "--lang", "ja"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["recommended"]) == ("pass", run_id)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert told["size_bytes"] < 8e6
    assert "採用を推奨" in page
    assert "費用対効果" in page
    plain = [part for part in given if part != "--json"]
    assert main(["--lang", "ja", *plain]) == 0
    assert "はすべての基準を満たしています。" in capsys.readouterr().out
    (tmp_path / "case.json").write_text('{"spans": {"devices": {"low": "１０", "likely": 1, "high": 1}}}')
    assert main(["--lang", "ja", *plain, *files]) == 2
    assert "devices の low が範囲外です（実際: '１０'、" in capsys.readouterr().err
    (tmp_path / "criteria.json").write_text('[{"kind": "largest_drop", "limit": -1}]')
    assert main([*given, *files]) == 2
    assert "limit of largest_drop out of range; got -1" in capsys.readouterr().err
    assert main([*given, "--criteria", str(tmp_path / "none.json")]) == 2
    assert main([*given, "--lang", "fr"]) == 2


def test_answers_that_are_not_kept_are_told_or_said_to_be_missing(
    finished_run: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, run_id = finished_run
    workspace = tmp_path / "own"
    shutil.copytree(shared, workspace)
    folder = workspace / "runs" / run_id
    (folder / predictions.FILE_NAME).unlink()
    monkeypatch.setattr(predictions, "LARGEST_BYTES", 0)  # as of masks of many images: too many to keep
    given = ["report", run_id, "--workspace", str(workspace), "--out"]
    assert main([*given, str(tmp_path / "a.csv")]) == 0
    assert not (folder / predictions.FILE_NAME).exists()
    assert len((tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines()) > 10
    (folder / PACKED_NAME).unlink()  # as of a run that was imported
    capsys.readouterr()
    assert main([*given, str(tmp_path / "a.html")]) == 0
    told = capsys.readouterr().err
    assert "the answers to each image are missing: this run has no compressed network; got" in told
    assert "not kept with this run" in (tmp_path / "a.html").read_text(encoding="utf-8")
