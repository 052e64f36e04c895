"""Code that a workspace names runs once the user has named or trusted it, and not before."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qaf_core.cli.entry import main
from qaf_core.data.models.catalogue import build_network, find_model
from qaf_core.data.models.settings import RegisteredModel, change_settings
from qaf_core.data.workspace import trust
from qaf_core.data.workspace.registry import add_factory
from qaf_core.errors import ModelError
from qaf_core.runs.store.request import InspectRequest, source_of

CODE = """
import pathlib
from torch import nn
pathlib.Path(__file__).with_suffix(".run").touch()
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
make.input_shape = (3, 1, 1)
make.classes = ("a", "b")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of code, which the current one is; nothing is trusted, and nothing imported stays."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trust, "_granted", set())
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "strange.py").write_text(CODE)
    monkeypatch.chdir(folder)
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    sys.modules.pop("strange", None)


def foreign(workspace: Path, code_path: str | None) -> None:
    """Settings of a workspace that came from elsewhere."""
    workspace.mkdir()
    steps = {"crop": [1, 1], "mean": [0.5] * 3, "std": [0.5] * 3}
    entry = RegisteredModel(
        id="my/own", title="own", base="strange:make", code_path=code_path, input_shape=(3, 1, 1),
        classes=("a", "b"), preprocessing=steps,
    )  # fmt: skip
    change_settings(workspace, lambda settings: replace(settings, models=(entry,)))


@pytest.mark.parametrize("named", [True, False])
def test_a_registered_models_code_runs_once_trusted(
    code: Path, workspace: Path, named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(workspace, str(code) if named else None)
    assert main(["inspect", "my/own"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"strange:make in {code}" in line
    assert line.endswith("qaf models --trust my/own.")
    with pytest.raises(trust.UntrustedCode):
        build_network(find_model("my/own", workspace=workspace))
    assert not (code / "strange.run").exists()
    assert main(["models", "--trust", "my/own"]) == 0
    assert main(["inspect", "my/own"]) == 0
    assert (code / "strange.run").exists()
    assert not [path for path in workspace.rglob("*") if "trust" in path.name], "kept elsewhere"


def test_what_a_run_names_is_asked_for_too(code: Path, workspace: Path) -> None:
    request = InspectRequest(model="strange:make")
    with pytest.raises(ModelError, match="not been trusted.*qaf models --trust strange:make"):
        source_of(request, workspace)
    assert not (code / "strange.run").exists()
    assert main(["inspect", "strange:make"]) == 0, "named on the command line"
    assert source_of(request, workspace).classes == ("a", "b")


def test_who_registers_code_trusts_it(code: Path, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("")  # it cannot be remembered: for this process then
    add_factory(workspace, model_id="my/own", factory="strange:make")
    assert len(build_network(find_model("my/own", workspace=workspace))) == 2  # type: ignore[arg-type]


def test_a_name_without_code_is_told(code: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--trust", "digits/cnn"]) == 2
    assert "no code is known under this name; got digits/cnn" in capsys.readouterr().err
