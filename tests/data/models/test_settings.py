"""The settings file: written whole, read with care, and shared by several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qaf_core.data.models.settings import RegisteredModel, Settings, change_settings, check_id, read_settings
from qaf_core.data.weights.entries import WeightLimits
from qaf_core.errors import QafError, WorkspaceError

ROW: dict[str, Any] = {
    "id": "my/part",
    "title": "Part",
    "base": "cifar/resnet20",
    "input_shape": [3, 32, 32],
    "classes": ["good", "bad"],
    "preprocessing": {"crop": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}


def entry(**changes: Any) -> RegisteredModel:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in ROW.items()}
    return RegisteredModel(**{**values, **changes})


def write(folder: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "settings.json").write_text(text)


def test_a_workspace_without_a_file_has_the_default_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == read_settings(None) == Settings()
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    model = entry(weights="/w.safetensors", data="/images")
    written = change_settings(tmp_path / "new", lambda settings: replace(settings, models=(model,)))
    assert read_settings(tmp_path / "new") == written
    assert read_settings(tmp_path / "new").model("my/part") == model
    assert read_settings(tmp_path / "new").model("other") is None


def test_parts_of_another_version_are_kept(tmp_path: Path) -> None:
    write(tmp_path, {"schema_version": 1, "models": [{**ROW, "colour": "red"}], "theme": {"dark": True}})
    assert read_settings(tmp_path).other == {"theme": {"dark": True}}
    change_settings(tmp_path, lambda settings: replace(settings, models=()))
    assert json.loads((tmp_path / "settings.json").read_text())["theme"] == {"dark": True}


def test_limits_come_from_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"schema_version": 1, "limits": {"weights_bytes": 10**6}})
    assert read_settings(tmp_path).limits == WeightLimits(file_bytes=10**6)
    change_settings(tmp_path, lambda settings: settings)
    assert read_settings(tmp_path).limits == WeightLimits(file_bytes=10**6)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "another version"),
        ({"schema_version": 2}, "another version; got 2; expected 1"),
        ({"schema_version": 1, "models": {}}, "malformed"),
        ({"schema_version": 1, "models": [3]}, "malformed"),
        ({"schema_version": 1, "models": [{"id": "a"}]}, "malformed"),
        ({"schema_version": 1, "models": [ROW, ROW]}, "two models of the same id"),
        ({"schema_version": 1, "limits": {"weights_bytes": -1}}, "limit file_bytes out of range"),
        ({"schema_version": 1, "limits": {"weights_bytes": "1 GB"}}, "limit file_bytes out of range"),
        *(
            ({"schema_version": 1, "models": [{**ROW, **changes}]}, told)
            for changes, told in (
                ({"id": "../up"}, "id is malformed"),
                ({"id": "a/b/c"}, "id is malformed"),
                ({"id": "os:system"}, "id is malformed"),
                ({"title": 3}, "title of model my/part"),
                ({"weights": 3}, "weights of model my/part"),
                ({"input_shape": [3, 0, 3]}, "input_shape of model my/part"),
                ({"classes": ["a", "a"]}, "a name twice"),
                ({"preprocessing": []}, "preprocessing of model my/part"),
                ({"preprocessing": {"mean": [0], "std": [1]}}, "no crop"),
                ({"preprocessing": {"crop": [32, 32], "mean": [0], "std": [1]}}, "means for 3×32×32"),
                ({"preprocessing": {"crop": [8, 8], "mean": [0] * 3, "std": [1] * 3}}, "a crop and means"),
                ({"preprocessing": {"crop": [32, 32], "mean": [0] * 3, "std": [1, 0, 1]}}, "std of"),
            )
        ),
    ],
)
def test_a_file_edited_badly_is_told_in_one_line(tmp_path: Path, content: Any, told: str) -> None:
    write(tmp_path, content)
    with pytest.raises(QafError, match=told) as caught:
        read_settings(tmp_path)
    assert str(caught.value).isprintable()


def test_titles_are_cleaned() -> None:
    assert entry(title="a\n\x1b[2J" + "b" * 500).title.startswith(r"a \x1b[2Jb")
    assert len(entry(title="b" * 500).title) == 120


@pytest.mark.parametrize("model_id", ["", " ", "a b", "-a", "a/", "/a", "a//b", "é", "a" * 65, None, 3])
def test_an_id_is_plain(model_id: Any) -> None:
    with pytest.raises(WorkspaceError, match="id is malformed"):
        check_id(model_id)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from qaf_core.data.models.settings import RegisteredModel, change_settings\n"
        "for number in range(15):\n"
        "    model = RegisteredModel(id=f'{sys.argv[2]}-{number}', title='t', base='cifar/resnet20',\n"
        "        input_shape=(1, 4, 4), classes=('a',),\n"
        "        preprocessing={'crop': [4, 4], 'mean': [0], 'std': [1]})\n"
        "    change_settings(Path(sys.argv[1]), lambda s: replace(s, models=(*s.models, model)))\n"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path), name] for name in "ab"]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(read_settings(tmp_path).models) == 30


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written to"):
        change_settings(tmp_path / "file", lambda settings: settings)
