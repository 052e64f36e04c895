import json
from pathlib import Path

import pytest

from qaf_core.cli import doctor
from qaf_core.cli.entry import main


def test_a_sound_installation_is_called_sound(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {row["check"] for row in report["checks"]} >= {"torch", "models", "workspace", "disk", "energy"}


def test_what_is_wrong_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "raise ImportError('operator does not exist')")
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "nothing-of-this-name"))
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    assert main(["doctor", "--workspace", str(tmp_path / "file")]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[1]: line for line in lines if line.startswith("FAIL")}
    assert "operator does not exist" in failed["torch"]
    assert "nothing-of-this-name" in failed["packages"]
    assert failed.keys() == {"torch", "packages", "workspace", "disk"}


def test_it_is_told_in_japanese_too(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    assert main(["--lang", "ja", "doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("スレッドで計算可能", "付属 6 種類: ", "、実行 0 件", "空き容量 "):
        assert word in shown
