"""The user's own models in a workspace: added, found without their code, removed; uploads stay inside."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qaf_core.data.formats.zip import add_archive
from qaf_core.data.models.architectures import build_architecture
from qaf_core.data.models.catalogue import build_model, find_model, list_models, load_inventory
from qaf_core.data.models.overrides import read_preprocessing
from qaf_core.data.models.settings import read_settings
from qaf_core.data.workspace.registry import (
    add_factory,
    add_model,
    add_weights,
    clean_file_name,
    remove_model,
)
from qaf_core.errors import DataError, ModelError, QafError, WeightsError, WorkspaceError

CODE = """
import torch
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
make.input_shape = (1, 8, 8)
make.classes = ("good", "bad")
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a cifar/resnet20 with three classes."""
    torch.manual_seed(0)
    save_file(build_architecture("cifar_resnet20", 3).state_dict(), tmp_path / "three.safetensors")
    return tmp_path / "three.safetensors"


def test_a_model_is_added_listed_and_built(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    workspace = tmp_path / "workspace"
    added = add_model(
        workspace, model_id="my/part", base="cifar/resnet20", weights=str(weights),
        classes=tmp_path / "classes.txt", data=str(tmp_path), title="Part, line 4",
    )  # fmt: skip
    source = find_model("my/part", workspace=workspace)
    assert source == added
    assert list_models(workspace)[0] == source
    assert (source.title, source.classes, source.data) == (
        "Part, line 4",
        ("one", "two", "three"),
        str(tmp_path),
    )
    assert source.registered
    assert not source.shipped
    assert build_model(source).get_parameter("linear.weight").shape[0] == 3
    assert load_inventory(source)
    with pytest.raises(ModelError, match="unknown model; got my/part"):
        find_model("my/part")
    with pytest.raises(ModelError, match="my/part"):
        find_model("my/prat", workspace=workspace)
    assert add_model(workspace, model_id="my/part", base="digits/cnn").default_data == "digits"
    assert len(read_settings(workspace).models) == 1
    assert remove_model(workspace, "my/part") == ()
    assert not read_settings(workspace).models
    with pytest.raises(WorkspaceError, match="no such registered model"):
        remove_model(workspace, "my/part")


def test_a_factory_is_found_from_anywhere_and_listed_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_registered.py").write_text(CODE)
    monkeypatch.chdir(folder)
    workspace = tmp_path / "workspace"
    add_factory(workspace, model_id="own", factory="own_registered:make")
    script = (
        "import sys; from pathlib import Path\n"
        "from qaf_core.data.models.catalogue import find_model, list_models\n"
        "workspace = Path(sys.argv[1])\n"
        "source = find_model('own', workspace=workspace)\n"
        "assert source in list_models(workspace) and source.classes == ('good', 'bad'), source\n"
        "assert not {'torch', 'own_registered'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(workspace)]
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path, env={**os.environ})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    monkeypatch.delitem(sys.modules, "own_registered", raising=False)
    source = find_model("own", workspace=workspace)
    assert len(load_inventory(source)) == 2
    assert build_model(source)


def test_pages_cannot_register_code(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="code cannot be registered here.*--factory"):
        add_model(tmp_path, model_id="own", base="os:getcwd")
    with pytest.raises(ModelError, match="a factory is malformed"):
        add_factory(tmp_path, model_id="own", factory="digits/cnn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_id": "digits/cnn"}, "always here"),
        ({"model_id": "cifar/mine"}, "always here.*my/mine"),
        ({"model_id": "../x"}, "malformed"),
        ({"base": "cifar/resnet21"}, "unknown model"),
        ({"weights": "nowhere.pth"}, "not found"),
        ({"classes": "nowhere.txt"}, "class file cannot be read"),
        ({"data": "/nowhere/x"}, "data not found: /nowhere/x"),
        ({"data": "torchvision:CIFAR10:/nowhere"}, "data not found: /nowhere"),
        ({"data": "torchvision:CIFAR10"}, "needs its name and its folder"),
    ],
)
def test_what_cannot_be_added_changes_nothing(tmp_path: Path, changes: dict[str, str], told: str) -> None:
    with pytest.raises(QafError, match=told):
        add_model(tmp_path, **{"model_id": "mine", "base": "cifar/resnet20", **changes})  # type: ignore[arg-type]
    assert not read_settings(tmp_path).models


def test_classes_must_fit_the_weights(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "four.txt").write_text("a\nb\nc\nd")
    with pytest.raises(DataError, match=r"three\.safetensors; got 4 names; expected 3"):
        find_model("cifar/resnet20", weights, classes=tmp_path / "four.txt")
    with pytest.raises(DataError, match="do not fit digits/cnn; got 4 names; expected 10"):
        find_model("digits/cnn", classes=tmp_path / "four.txt")
    assert len(find_model("cifar/resnet20", classes=tmp_path / "four.txt").classes) == 4


def test_names_kept_with_the_weights_are_used_unless_others_are_given(tmp_path: Path) -> None:
    state = build_architecture("cifar_resnet20", 3).state_dict()
    for text, told in (
        ('["a", "b", "c"]', None),
        ('["a", "b"]', "got 2 names; expected 3"),
        ("x", "no JSON"),
    ):
        save_file(state, tmp_path / "w.safetensors", metadata={"classes": text})
        if told is None:
            assert find_model("cifar/resnet20", tmp_path / "w.safetensors").classes == ("a", "b", "c")
        else:
            with pytest.raises(DataError, match=told):
                find_model("cifar/resnet20", tmp_path / "w.safetensors")
    (tmp_path / "own.txt").write_text("x\ny\nz")
    named = find_model("cifar/resnet20", tmp_path / "w.safetensors", classes=tmp_path / "own.txt")
    assert named.classes == ("x", "y", "z")


def test_images_may_be_prepared_in_another_way(tmp_path: Path) -> None:
    changes = {"channel_order": "bgr", "mean": [0.1, 0.2, 0.3], "crop": [96, 64]}
    add_model(tmp_path, model_id="own", base="torchvision/resnet18", preprocessing=changes)
    source = find_model("own", workspace=tmp_path)
    steps = source.preprocessing
    assert (steps.channel_order, steps.mean, steps.std) == ("bgr", (0.1, 0.2, 0.3), (0.229, 0.224, 0.225))
    assert source.input_shape == (3, 96, 64)
    (tmp_path / "steps.json").write_text('{"mean": [0.5]}')
    assert read_preprocessing(tmp_path / "steps.json") == {"mean": [0.5]}
    with pytest.raises(ModelError, match="preprocessing is malformed"):
        find_model("cifar/resnet20", preprocessing={"mean": [0.5]})
    with pytest.raises(ModelError, match="got 1 channels; expected 3"):
        find_model("cifar/resnet20", preprocessing={"mean": [0.5], "std": [1]})
    with pytest.raises(ModelError, match="unknown|fields"):
        find_model("cifar/resnet20", preprocessing={"colour": 1})
    for content in ("{", "[]"):
        (tmp_path / "steps.json").write_text(content)
        with pytest.raises(ModelError, match="preprocessing"):
            read_preprocessing(tmp_path / "steps.json")
    with pytest.raises(ModelError, match="preprocessing cannot be read"):
        read_preprocessing(tmp_path / "none.json")


def test_the_workspaces_limit_holds_for_its_models(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "settings.json").write_text('{"schema_version": 1, "limits": {"weights_bytes": 1000}}')
    with pytest.raises(WeightsError, match="too large.*expected at most 1,000"):
        find_model("cifar/resnet20", weights, workspace=tmp_path)


# --- Uploads


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(100_000):
            yield piece


def test_an_upload_lands_in_the_workspace_and_goes_with_its_model(tmp_path: Path, weights: Path) -> None:
    workspace = tmp_path / "workspace"
    stored = add_weights(workspace, r"C:\Users\me\Best Model (3).SAFETENSORS", pieces(weights))
    assert stored == workspace / "models" / "Best-Model-3.safetensors"
    assert stored.read_bytes() == weights.read_bytes()
    assert add_weights(workspace, "Best Model (3).safetensors", pieces(weights)) == stored
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, other)
    second = add_weights(workspace, "Best-Model-3.safetensors", pieces(other))
    assert second.name == "Best-Model-3-2.safetensors"
    for model_id in ("one", "two"):
        add_model(workspace, model_id=model_id, base="cifar/resnet20", weights=str(stored))
    assert remove_model(workspace, "one") == (), "the other model still needs the file"
    assert remove_model(workspace, "two") == (stored,)
    assert not stored.exists()
    add_model(workspace, model_id="three", base="cifar/resnet20", weights=str(weights))
    remove_model(workspace, "three")
    assert weights.exists(), "only files of the workspace are deleted"
    assert sorted(path.name for path in (workspace / "models").iterdir()) == [second.name]


@pytest.fixture
def uploaded(tmp_path: Path, weights: Path) -> tuple[Path, dict[str, Path]]:
    """A workspace with two models of the same classes and images, and what was uploaded for them."""
    workspace = tmp_path / "workspace"
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        archive.writestr("parts/a/1.png", b"a picture")
    names = workspace / "classes" / "1f.txt"
    names.parent.mkdir(parents=True)
    names.write_text("one\ntwo\nthree\n")
    (names.parent / "2f.txt").write_text("other\nnames")
    stored = {
        "weights": add_weights(workspace, "w.safetensors", pieces(weights)),
        "names": names,
        "images": add_archive(workspace, tmp_path / "parts.zip", "parts.zip"),
    }
    for model_id in ("one", "two"):
        add_model(
            workspace, model_id=model_id, base="cifar/resnet20", weights=str(stored["weights"]),
            classes=names, data=f"torchvision:ImageFolder:{stored['images'] / 'a'}",
        )  # fmt: skip
    return workspace, stored


def test_images_and_class_names_go_with_the_last_model_that_uses_them(
    uploaded: tuple[Path, dict[str, Path]],
) -> None:
    workspace, stored = uploaded
    assert remove_model(workspace, "one", ()) == ()
    assert set(remove_model(workspace, "two", ())) == set(stored.values())
    assert not any(path.exists() for path in stored.values())
    assert (workspace / "classes" / "2f.txt").exists()


@pytest.mark.parametrize("kept", ["weights", "names", "images"])
def test_what_others_use_stays(uploaded: tuple[Path, dict[str, Path]], kept: str) -> None:
    workspace, stored = uploaded
    remove_model(workspace, "one", ())
    used = str(stored[kept] / "a" if kept == "images" else stored[kept])
    deleted = remove_model(workspace, "two", ["builtin", "torchvision:x", used])
    assert set(deleted) == set(stored.values()) - {stored[kept]}
    assert stored[kept].exists()


def test_where_nobody_says_what_is_used_only_weights_go(uploaded: tuple[Path, dict[str, Path]]) -> None:
    workspace, stored = uploaded
    remove_model(workspace, "one")
    assert remove_model(workspace, "two") == (stored["weights"],)
    assert stored["images"].exists()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("w.pth", "w.pth"),
        ("../../etc/w.pth", "w.pth"),
        ("..\\..\\w.pt", "w.pt"),
        (".hidden.safetensors", "hidden.safetensors"),
        ("/etc/.pth", "weights.pth"),
        ("a\nb\x00c\x1b[2J\u202e.bin", "a-b-c-2J.bin"),
        ("傷.ckpt", "weights.ckpt"),
        ("x" * 500 + ".safetensors", "x" * 68 + ".safetensors"),
    ],
)
def test_a_name_from_outside_stays_in_the_folder(name: str, kept: str) -> None:
    assert clean_file_name(name) == kept


@pytest.mark.parametrize("name", ["", "w", "w.pkl", "w.py", "w.safetensors/", "safetensors", "w.pth\x00.exe"])
def test_files_of_other_kinds_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="holds no weights"):
        clean_file_name(name)


def test_an_upload_that_is_refused_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    workspace = tmp_path / "workspace"
    for name, content, told in (
        ("w.safetensors", b"nonsense", r"weights file w\.safetensors is no valid"),
        ("w.pth", pickle.dumps(Bomb()), r"weights file w\.pth"),
        ("w.safetensors", pickle.dumps(Bomb()), "no valid"),
    ):
        with pytest.raises(WeightsError, match=told):
            add_weights(workspace, name, [content])
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            read.append(1)
            yield b"\0" * 1000

    with pytest.raises(WeightsError, match="too large; got more than 100,000 bytes"):
        add_weights(workspace, "w.pth", endless(), limit_bytes=100_000)
    assert len(read) == 101

    def broken() -> Iterator[bytes]:
        yield weights.read_bytes()[:1000]
        raise RuntimeError("the connection is gone")

    with pytest.raises(RuntimeError):
        add_weights(workspace, "w.safetensors", broken())
    assert list((workspace / "models").iterdir()) == []
    assert not (tmp_path / "ran").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be kept"):
        add_weights(tmp_path / "file", "w.safetensors", pieces(weights))
