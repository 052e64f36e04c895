from pathlib import Path

import pytest

from qaf_core.runs.store.workspace import default_workspace, open_workspace


def test_a_workspace_is_made_and_told_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_workspace(Path("new/folder")) == tmp_path / "new" / "folder"
    assert (tmp_path / "new" / "folder").is_dir()


def test_the_default_workspace_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QAF_WORKSPACE", raising=False)
    assert default_workspace() == tmp_path / ".local/share/qaf"
    monkeypatch.setenv("QAF_WORKSPACE", "~/elsewhere")
    assert default_workspace() == tmp_path / "elsewhere"
