"""``qaf report`` on a finished run: criteria and assumptions from files, faults in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qaf_core.cli.entry import main
from qaf_core.review.decision.economics import PRESETS


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
    (tmp_path / "criteria.json").write_text('[{"kind": "largest_drop", "limit": -1}]')
    assert main([*given, *files]) == 2
    assert "limit of largest_drop out of range; got -1" in capsys.readouterr().err
    assert main([*given, "--criteria", str(tmp_path / "none.json")]) == 2
    assert main([*given, "--lang", "fr"]) == 2
