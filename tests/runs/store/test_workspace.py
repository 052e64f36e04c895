import os
from pathlib import Path

import pytest

from qaf_core.files import write_file
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


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_a_workspace_is_its_users_alone(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        folder = tmp_path / "earlier"
        (folder / "runs" / "a").mkdir(parents=True)
        (folder / "runs" / "a" / "model.safetensors").write_bytes(b"")
        (folder / "runs" / "a" / "tool").write_bytes(b"")
        (folder / "runs" / "a" / "tool").chmod(0o755)
        (folder / "settings.json").write_text("{}")
        open_workspace(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert modes(folder) == {
            "runs": 0o700, "runs/a": 0o700, "runs/a/model.safetensors": 0o600, "runs/a/tool": 0o700,
            "settings.json": 0o600,
        }  # fmt: skip
        write_file(folder / "cache" / "new.json", b"{}")
        assert (folder / "cache" / "new.json").stat().st_mode & 0o777 == 0o600
        assert (folder / "cache").stat().st_mode & 0o777 == 0o700
        write_file(tmp_path / "plan.json", b"{}")
        assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o644, "taken away, it is as usual"
    finally:
        os.umask(mask)


def test_what_is_not_ours_beside_a_workspace_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "notes.txt").chmod(0o644)
    (tmp_path / "runs").symlink_to(tmp_path.parent)
    before = tmp_path.parent.stat().st_mode
    open_workspace(tmp_path)
    assert (tmp_path / "notes.txt").stat().st_mode & 0o777 == 0o644
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert tmp_path.parent.stat().st_mode == before
