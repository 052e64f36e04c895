"""What belongs to a registered model among a workspace's files, and nothing else."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from qaf_core.data.formats.zip import unpack_cached
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.settings import RegisteredModel
from qaf_core.data.workspace.uploads import (
    INCOMING_FOLDER,
    delete_upload,
    receive_upload,
    sweep_uploads,
    uploads_of,
)
from qaf_core.errors import WorkspaceError


def registered(**fields: str | None) -> RegisteredModel:
    steps = Preprocessing(crop=(8, 8), mean=(0.5,), std=(0.5,)).to_dict()
    return RegisteredModel(
        id="own", title="Own", base="digits/cnn", input_shape=(1, 8, 8), classes=("a", "b"),
        preprocessing=steps, **fields,
    )  # fmt: skip


def test_only_what_lies_in_the_workspace_counts(tmp_path: Path) -> None:
    own, inside = tmp_path / "own", tmp_path / "workspace" / "data" / "set-1234"
    for folder in (own, inside / "train", inside.with_name("other")):
        folder.mkdir(parents=True)
    assert uploads_of(tmp_path / "workspace", registered(data=str(own))) == ()
    assert uploads_of(tmp_path / "workspace", registered(data="builtin")) == ()
    assert uploads_of(tmp_path / "workspace", registered(data=str(inside))) == (inside,)
    assert uploads_of(tmp_path / "workspace", registered(data=str(inside / "train"))) == (inside,)
    (own / "w.pth").write_text("")
    assert uploads_of(tmp_path / "workspace", registered(weights=str(own / "w.pth"))) == ()


def test_a_link_is_never_followed_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "workspace" / "data").mkdir(parents=True)
    link = tmp_path / "workspace" / "data" / "link"
    link.symlink_to(tmp_path / "own")
    assert uploads_of(tmp_path / "workspace", registered(data=str(link))) == ()


def test_what_was_unpacked_of_a_zip_counts_and_the_zip_does_not(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr("own/a/1.png", b"a picture")
    model = registered(data=str(tmp_path / "own.zip"))
    assert uploads_of(tmp_path / "workspace", model) == ()
    unpacked = unpack_cached(tmp_path / "own.zip", tmp_path / "workspace" / "cache" / "archives")
    assert uploads_of(tmp_path / "workspace", model) == (unpacked,)
    delete_upload(unpacked)
    assert uploads_of(tmp_path / "workspace", model) == ()
    (tmp_path / "own.zip").unlink()
    assert uploads_of(tmp_path / "workspace", model) == ()


def test_files_of_just_its_class_names_count(tmp_path: Path) -> None:
    for name, text in (
        ("classes/1.txt", "a\nb\n"),
        ("classes/2.txt", "b\na"),
        ("classes/3.txt", ""),
        ("models/w.classes.txt", "a\nb"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = uploads_of(tmp_path, registered())
    assert set(found) == {tmp_path / "classes" / "1.txt", tmp_path / "models" / "w.classes.txt"}


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(WorkspaceError, match="cannot be deleted; got .*Permission denied"):
        delete_upload(tmp_path)


def test_an_upload_is_written_down_and_what_was_forgotten_is_deleted(tmp_path: Path) -> None:
    content = io.BytesIO(b"content")
    content.read()
    first = receive_upload(tmp_path, content, "../mine.zip")
    assert first["name"] == "../mine.zip"
    assert Path(first["path"]).parent == tmp_path / INCOMING_FOLDER
    assert Path(first["path"]).read_bytes() == b"content"
    second = receive_upload(tmp_path, content, "mine.zip")
    assert Path(first["path"]).exists()
    os.utime(first["path"], (1, 1))
    receive_upload(tmp_path, content, "mine.zip")
    assert not Path(first["path"]).exists()
    assert Path(second["path"]).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be kept"):
        receive_upload(tmp_path / "file", content, "mine.zip")


def test_uploads_cut_off_a_day_ago_are_deleted_and_one_at_work_is_not(tmp_path: Path) -> None:
    folders = [tmp_path / "models" / name for name in (".upload-left", ".upload-work", "kept")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "own.safetensors").write_text("")
        os.utime(folder / "own.safetensors", (1, 1))
        os.utime(folder, (1, 1))
    os.utime(folders[1] / "own.safetensors")
    sweep_uploads(tmp_path)
    assert [folder.exists() for folder in folders] == [False, True, True]
    sweep_uploads(tmp_path / "nowhere")
